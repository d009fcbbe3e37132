//! How the panels of types with float scales are unpacked: signed bytes, scales, minima. Layouts and meanings are described
//! in [`crate::quant`]; what integer scales and codebooks say there is worked into floats and bytes here.
//!
//! Functions that are always inlined and arrays, not closures: see [`super::matmul`].

use super::simd::Simd;
use crate::quant::{SUPER, TensorType, UNIT, WeightType, fp4, iq4};

/// A weight type as groups of signed bytes with a float scale, 32 columns at a time.
pub trait ScaledFormat {
    /// The weight type.
    const TYPE: WeightType;
    /// Columns of a panel block.
    const COLS: usize = Self::TYPE.block_len();
    /// Bytes of a block's body.
    const BODY: usize = Self::TYPE.panel_parts().0;
    /// Bytes of a block's tail.
    const TAIL: usize = Self::TYPE.panel_parts().1;
    /// Columns under one scale: 16 or 32.
    const GROUP: usize = 32;
    /// Every value of a group has something added to it.
    const MINS: bool = false;
    /// The quant that stands for 0, a power of two up to 64, or 0; 128 for [`values`].
    const ZERO: u8 = 128;
    /// The largest magnitude of what quants stand for.
    const REACH: u8;

    /// The quants of the columns `32 g ..` of a block, [`ScaledFormat::ZERO`] more than what they stand for; [`values`],
    /// [`offset`] more.
    fn quants<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 8];
    /// Quants are looked up in a grid. Where that means gathers, which take most of the time, nothing is gained by multiplying
    /// them as they come.
    const GRID: bool = false;
    /// The block has one float scale, which [`ScaledFormat::factors`] are multiplied with.
    const INT_SCALES: bool = false;
    /// So it has, and the products of a group's quants and activations add up to no more than fits i16.
    const INT_SUMS: bool = Self::INT_SCALES && Self::GROUP * Self::REACH as usize * 127 <= i16::MAX as usize;
    /// The scales of these columns: one, or two of 16.
    #[inline(always)]
    fn scales<S: Simd>(s: S, (body, tail): (&[u8], &[u8]), g: usize, half: usize) -> [S::F; 2] {
        let d = Self::d(s, tail, half);
        let factors = Self::factors(s, body, g, half);
        match Self::INT_SCALES {
            false => [d; 2],
            true => [s.mul(d, s.to_f(factors[0])), s.mul(d, s.to_f(factors[1]))],
        }
    }
    /// The integer scales of these columns.
    #[inline(always)]
    fn factors<S: Simd>(s: S, _body: &[u8], _g: usize, _half: usize) -> [S::I; 2] {
        [s.splat_i(1); 2]
    }
    /// The block's float scale.
    #[inline(always)]
    fn d<S: Simd>(s: S, tail: &[u8], half: usize) -> S::F {
        f16s(s, tail, 0, half)
    }
    /// The f32 bits of what is added to the values of these columns; in blocks of 256 two i16, for 16 columns each, to be
    /// multiplied by [`ScaledFormat::dmin`] and taken off.
    #[inline(always)]
    fn mins<S: Simd>(s: S, (_body, tail): (&[u8], &[u8]), _g: usize, half: usize) -> S::I {
        s.as_i(f16s(s, tail, 1, half))
    }
    /// The factor of a block's minima.
    #[inline(always)]
    fn dmin<S: Simd>(s: S, tail: &[u8], half: usize) -> S::F {
        f16s(s, tail, 1, half)
    }
}

/// The vector of a unit.
#[inline(always)]
fn word<S: Simd>(s: S, body: &[u8], unit: usize, half: usize) -> S::I {
    s.load_bytes(&body[unit * UNIT + half * S::LANES * 4..])
}

/// Field `i` of a tail of f16.
#[inline(always)]
fn f16s<S: Simd>(s: S, tail: &[u8], i: usize, half: usize) -> S::F {
    s.load_f16(&tail[32 * i + half * S::LANES * 2..])
}

#[inline(always)]
fn every<S: Simd>(s: S, byte: u8) -> S::I {
    s.splat_i(i32::from_ne_bytes([byte; 4]))
}

/// Bits `shift ..` of every byte.
#[inline(always)]
fn bits<S: Simd>(s: S, a: S::I, shift: usize, mask: u8) -> S::I {
    s.and(s.shr_by(a, shift as u32), every(s, mask))
}

/// Byte `i` of every lane.
#[inline(always)]
fn byte<S: Simd>(s: S, a: S::I, i: usize) -> S::I {
    s.and(s.shr_by(a, 8 * i as u32), s.splat_i(0xff))
}

/// Bits `shift ..` of every lane.
#[inline(always)]
fn field<S: Simd>(s: S, a: S::I, shift: usize, mask: i32) -> S::I {
    s.and(s.shr_by(a, shift as u32), s.splat_i(mask))
}

/// Bit `plane` of every byte, as bit `to`.
#[inline(always)]
fn plane<S: Simd>(s: S, planes: S::I, plane: usize, to: usize) -> S::I {
    let moved = if plane < to { s.shl_by(planes, (to - plane) as u32) } else { s.shr_by(planes, (plane - to) as u32) };
    s.and(moved, every(s, 1 << to))
}

/// The same where the plane is not known when this is compiled.
#[inline(always)]
fn any_plane<S: Simd>(s: S, planes: S::I, plane: usize, to: usize) -> S::I {
    s.and(s.rotate_right(planes, (plane as u32).wrapping_sub(to as u32) % 32), every(s, 1 << to))
}

/// What quants in a tile are more than what they stand for. Without VNNI as little as [`super::acts`] has starting values
/// for, so that sums of products fit i16; bytes of eight bits are signed then.
pub const fn offset<S: Simd, F: ScaledFormat>() -> u8 {
    match F::REACH {
        _ if S::VNNI => 128,
        _ if F::ZERO == 0 => 0,
        ..=16 if F::COLS < SUPER => 16,
        ..=32 if F::COLS == SUPER => 32,
        ..=64 if F::COLS == SUPER => 64,
        _ => 0,
    }
}

/// A table's values by their indices, [`offset`] more.
#[inline(always)]
fn values<S: Simd, F: ScaledFormat>(s: S, table: [i8; 16], indices: S::I) -> S::I {
    s.look_up(table.map(|value| value.cast_unsigned().wrapping_add(offset::<S, F>())), indices)
}

/// Quants, [`offset`] more than what they stand for.
#[inline(always)]
pub fn in_tile<S: Simd, F: ScaledFormat>(s: S, quants: S::I) -> S::I {
    match offset::<S, F>().wrapping_sub(F::ZERO) {
        more if F::ZERO < 128 && more > 0 => s.add_i(quants, every(s, more)),
        _ => quants,
    }
}

/// `values` of eight vectors.
#[inline(always)]
fn all_values<S: Simd, F: ScaledFormat>(s: S, table: [i8; 16], indices: [S::I; 8]) -> [S::I; 8] {
    let mut out = indices;
    for out in &mut out {
        *out = values::<S, F>(s, table, *out);
    }
    out
}

/// Nibbles of 32 columns in four units from `first` on: columns 0..16 low, 16..32 high.
#[inline(always)]
fn nibbles32<S: Simd>(s: S, body: &[u8], first: usize, half: usize) -> [S::I; 8] {
    let mut out = [s.splat_i(0); 8];
    for u in 0..4 {
        let both = word(s, body, first + u, half);
        out[u] = bits(s, both, 0, 15);
        out[4 + u] = bits(s, both, 4, 15);
    }
    out
}

/// Nibbles of group `g` of 32 columns: two groups share the eight units from `first + 8 (g / 2)` on.
#[inline(always)]
fn nibbles64<S: Simd>(s: S, body: &[u8], first: usize, g: usize, half: usize) -> [S::I; 8] {
    let mut out = [s.splat_i(0); 8];
    for (l, out) in out.iter_mut().enumerate() {
        *out = bits(s, word(s, body, first + 8 * (g / 2) + l, half), 4 * (g % 2), 15);
    }
    out
}

/// Bit pairs of group `g`: four groups share the eight units from `first + 8 (g / 4)` on.
#[inline(always)]
fn pairs128<S: Simd>(s: S, body: &[u8], first: usize, g: usize, half: usize) -> [S::I; 8] {
    let mut out = [s.splat_i(0); 8];
    for (l, out) in out.iter_mut().enumerate() {
        *out = bits(s, word(s, body, first + 8 * (g / 4) + l, half), 2 * (g % 4), 3);
    }
    out
}

macro_rules! format {
    ($(#[$doc:meta])* $name:ident, $ty:ident, { $($item:tt)* }) => {
        $(#[$doc])*
        pub struct $name;
        impl ScaledFormat for $name {
            const TYPE: WeightType = WeightType::of(TensorType::$ty).expect("a weight type");
            $($item)*
        }
    };
}

mod grid_formats;
pub use grid_formats::{Iq1M, Iq1S, Iq2S, Iq2Xs, Iq2Xxs, Iq3S, Iq3Xxs};

format!(/** Q4_1. */ Q4_1, Q4_1, {
    const REACH: u8 = 15;
    const MINS: bool = true;
    const ZERO: u8 = 0;
    #[inline(always)]
    fn quants<S: Simd>(s: S, body: &[u8], _g: usize, half: usize) -> [S::I; 8] {
        nibbles32(s, body, 0, half)
    }
});

/// Nibbles and fifth bits of 32 columns.
#[inline(always)]
fn fives32<S: Simd>(s: S, body: &[u8], half: usize) -> [S::I; 8] {
    let (planes, mut out) = (word(s, body, 0, half), nibbles32(s, body, 1, half));
    for (u, out) in out.iter_mut().enumerate() {
        *out = s.or(*out, plane(s, planes, u, 4));
    }
    out
}

format!(/** Q5_0. */ Q5_0, Q5_0, {
    const REACH: u8 = 16;
    const ZERO: u8 = 16;
    #[inline(always)]
    fn quants<S: Simd>(s: S, body: &[u8], _g: usize, half: usize) -> [S::I; 8] {
        fives32(s, body, half)
    }
});

format!(/** Q5_1. */ Q5_1, Q5_1, {
    const REACH: u8 = 31;
    const MINS: bool = true;
    const ZERO: u8 = 0;
    #[inline(always)]
    fn quants<S: Simd>(s: S, body: &[u8], _g: usize, half: usize) -> [S::I; 8] {
        fives32(s, body, half)
    }
});

format!(/** Q2_K. */ Q2K, Q2_K, {
    const REACH: u8 = 3;
    const GROUP: usize = 16;
    const MINS: bool = true;
    const INT_SCALES: bool = true;
    const ZERO: u8 = 0;
    #[inline(always)]
    fn quants<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 8] {
        pairs128(s, body, 4, g, half)
    }
    #[inline(always)]
    fn factors<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 2] {
        let two = s.shr_by(word(s, body, g / 2, half), 16 * (g % 2) as u32);
        [field(s, two, 0, 15), field(s, two, 8, 15)]
    }
    #[inline(always)]
    fn mins<S: Simd>(s: S, (body, _tail): (&[u8], &[u8]), g: usize, half: usize) -> S::I {
        let two = s.shr_by(word(s, body, g / 2, half), 16 * (g % 2) as u32);
        s.or(field(s, two, 4, 15), s.shl::<4>(s.and(two, s.splat_i(0xf000))))
    }
});

format!(/** Q3_K. */ Q3K, Q3_K, {
    const REACH: u8 = 4;
    const GROUP: usize = 16;
    const INT_SCALES: bool = true;
    const ZERO: u8 = 4;
    #[inline(always)]
    fn quants<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 8] {
        let mut out = pairs128(s, body, 8, g, half);
        for (l, out) in out.iter_mut().enumerate() {
            *out = s.or(*out, any_plane(s, word(s, body, l, half), g, 2));
        }
        out
    }
    #[inline(always)]
    fn factors<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 2] {
        let i = g / 2;
        let low = bits(s, word(s, body, 24 + i % 2, half), 4 * (i / 2), 15);
        let all = s.or(low, s.shl::<4>(bits(s, word(s, body, 26, half), 2 * i, 3)));
        let two = s.shr_by(all, 16 * (g % 2) as u32);
        [s.sub_i(byte(s, two, 0), s.splat_i(32)), s.sub_i(byte(s, two, 1), s.splat_i(32))]
    }
});

/// The six bits of scale (`at` 0) or minimum (`at` 1) of group `g` of Q5_K.
#[inline(always)]
fn q5k_six<S: Simd>(s: S, body: &[u8], g: usize, half: usize, at: usize) -> S::I {
    let low = field(s, word(s, body, g / 4, half), 8 * (g % 4) + 4 * at, 15);
    let top = field(s, word(s, body, 2, half), 8 * (g % 4) + 4 * (g / 4) + 2 * at, 3);
    s.or(low, s.shl::<4>(top))
}

format!(/** Q5_K. */ Q5K, Q5_K, {
    const REACH: u8 = 31;
    const MINS: bool = true;
    const ZERO: u8 = 0;
    #[inline(always)]
    fn quants<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 8] {
        let mut out = nibbles64(s, body, 11, g, half);
        for (l, out) in out.iter_mut().enumerate() {
            *out = s.or(*out, any_plane(s, word(s, body, 3 + l, half), g, 4));
        }
        out
    }
    #[inline(always)]
    fn scales<S: Simd>(s: S, (body, tail): (&[u8], &[u8]), g: usize, half: usize) -> [S::F; 2] {
        [s.mul(f16s(s, tail, 0, half), s.to_f(q5k_six(s, body, g, half, 0))); 2]
    }
    #[inline(always)]
    fn mins<S: Simd>(s: S, (body, _tail): (&[u8], &[u8]), g: usize, half: usize) -> S::I {
        let six = q5k_six(s, body, g, half, 1);
        s.or(six, s.shl::<16>(six))
    }
});

format!(/** IQ4_NL. */ Iq4Nl, IQ4_NL, {
    const REACH: u8 = 127;
    #[inline(always)]
    fn quants<S: Simd>(s: S, body: &[u8], _g: usize, half: usize) -> [S::I; 8] {
        all_values::<S, Self>(s, iq4::VALUES, nibbles32(s, body, 0, half))
    }
});

format!(/** IQ4_XS. */ Iq4Xs, IQ4_XS, {
    const REACH: u8 = 127;
    #[inline(always)]
    fn quants<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 8] {
        all_values::<S, Self>(s, iq4::VALUES, nibbles64(s, body, 1, g, half))
    }
    #[inline(always)]
    fn scales<S: Simd>(s: S, (body, tail): (&[u8], &[u8]), g: usize, half: usize) -> [S::F; 2] {
        let h = s.load_u16(&tail[32 + half * S::LANES * 2..]);
        let tops = s.or(h, s.shl::<14>(h));
        let top = if g < 4 { s.shl::<4>(tops) } else { tops };
        let low = field(s, word(s, body, 0, half), 8 * (g % 4) + 4 * (g / 4), 15);
        let six = s.or(low, s.and(byte(s, top, g % 4), s.splat_i(0x30)));
        [s.mul(f16s(s, tail, 0, half), s.to_f(s.sub_i(six, s.splat_i(32)))); 2]
    }
});

format!(/** MXFP4. A scale of 2^-128 is taken as 0: its products are below every normal number. */ Mxfp4, MXFP4, {
    const REACH: u8 = 12;
    #[inline(always)]
    fn quants<S: Simd>(s: S, body: &[u8], _g: usize, half: usize) -> [S::I; 8] {
        all_values::<S, Self>(s, fp4::VALUES, nibbles32(s, body, 0, half))
    }
    #[inline(always)]
    fn scales<S: Simd>(s: S, (_body, tail): (&[u8], &[u8]), _g: usize, half: usize) -> [S::F; 2] {
        // 2^(e - 128): the exponent's place holds e - 127.
        let e = s.and(s.load_i8(&tail[half * S::LANES..]), s.splat_i(0xff));
        [s.mul(s.as_f(s.shl::<23>(e)), s.splat(0.5)); 2]
    }
});

/// Half of the unsigned number of four exponent and three mantissa bits from bit 20 on, where a float with a bias of 127
/// instead of 7 has them.
#[inline(always)]
fn half_ue4m3<S: Simd>(s: S, bits: S::I) -> S::F {
    s.mul(s.as_f(s.and(bits, s.splat_i(0x07f0_0000))), s.splat(f32::from_bits(0x7b00_0000)))
}

format!(/** NVFP4. */ Nvfp4, NVFP4, {
    const REACH: u8 = 12;
    const GROUP: usize = 16;
    #[inline(always)]
    fn quants<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 8] {
        let mut out = [s.splat_i(0); 8];
        for i in 0..4 {
            let both = word(s, body, 4 * g + i, half);
            let first = i / 2 * 4 + i % 2;
            out[first] = bits(s, both, 0, 15);
            out[first + 2] = bits(s, both, 4, 15);
        }
        all_values::<S, Self>(s, fp4::VALUES, out)
    }
    #[inline(always)]
    fn scales<S: Simd>(s: S, (_body, tail): (&[u8], &[u8]), g: usize, half: usize) -> [S::F; 2] {
        // 0x7f alone is no number and counts as 0: then, and only then, one more reaches the sign bit of a byte that has it
        // not set. Bytes with a sign are taken by their magnitude.
        let (four, magnitudes) = (word(s, tail, 0, half), s.and(word(s, tail, 0, half), every(s, 0x7f)));
        let over = s.and(s.add_i(magnitudes, every(s, 1)), every(s, 0x80));
        let none = s.and(over, s.xor(four, every(s, 0x80)));
        let numbers = s.and(magnitudes, s.xor(s.sub_i(none, s.shr::<7>(none)), every(s, 0x7f)));
        let two = s.shr_by(numbers, 16 * g as u32);
        [half_ue4m3(s, s.shl::<20>(two)), half_ue4m3(s, s.shl::<12>(two))]
    }
});

format!(/** TQ2_0. */ Tq2_0, TQ2_0, {
    const REACH: u8 = 1;
    const INT_SCALES: bool = true;
    const ZERO: u8 = 1;
    #[inline(always)]
    fn quants<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 8] {
        pairs128(s, body, 0, g, half)
    }
});

/// Digit `n` of every byte: the integer part of 3 times the fraction that `3^n` times the byte leaves.
#[inline(always)]
fn digit<S: Simd>(s: S, a: S::I, n: usize) -> S::I {
    // As halves of 16 bits with the byte on top, a fraction of 2^16; the lower ones leave the digit where it belongs, the
    // upper ones 8 bits above the byte's place.
    const POWERS: [i32; 5] = [0x1_0001, 0x3_0003, 0x9_0009, 0x1b_001b, 0x51_0051];
    let power = s.splat_i(POWERS[n]);
    let (low, high) =
        (s.shl::<8>(s.and(a, s.splat_i(0x00ff_00ff))), s.and(a, s.splat_i(0xff00_ff00_u32.cast_signed())));
    let low = s.mul_high_u16(s.mul_low_u16(low, power), s.splat_i(0x0003_0003));
    let high = s.mul_high_u16(s.mul_low_u16(high, power), s.splat_i(0x0300_0300));
    s.or(low, s.and(high, s.splat_i(0x0300_0300)))
}

format!(/** TQ1_0. */ Tq1_0, TQ1_0, {
    const REACH: u8 = 1;
    const INT_SCALES: bool = true;
    const ZERO: u8 = 1;
    #[inline(always)]
    fn quants<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 8] {
        let mut out = [s.splat_i(0); 8];
        for (u, out) in out.iter_mut().enumerate() {
            let (unit, n) = match 8 * g + u {
                at @ 0..40 => (at % 8, at / 8),
                at @ 40..60 => (8 + at % 4, (at - 40) / 4),
                at => (12, at - 60),
            };
            *out = digit(s, word(s, body, unit, half), n);
        }
        out
    }
});

format!(/** Q1_0. */ Q1_0, Q1_0, {
    const REACH: u8 = 1;
    const ZERO: u8 = 1;
    #[inline(always)]
    fn quants<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 8] {
        let planes = word(s, body, g, half);
        let mut out = [s.splat_i(0); 8];
        for (u, out) in out.iter_mut().enumerate() {
            *out = plane(s, planes, u, 1);
        }
        out
    }
});

format!(/** Q2_0. */ Q2_0, Q2_0, {
    const REACH: u8 = 2;
    const ZERO: u8 = 1;
    #[inline(always)]
    fn quants<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 8] {
        let mut out = [s.splat_i(0); 8];
        for (u, out) in out.iter_mut().enumerate() {
            *out = bits(s, word(s, body, 2 * g + u % 2, half), 2 * (u / 2), 3);
        }
        out
    }
});
