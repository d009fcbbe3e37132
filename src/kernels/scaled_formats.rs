//! How the panels of types with float scales are unpacked: signed bytes, scales, minima. Layouts and meanings are described
//! in [`crate::quant`]; what integer scales and codebooks say there is worked into floats and bytes here.
//!
//! Functions that are always inlined and arrays, not closures: see [`super::matmul`].

use super::simd::Simd;
use crate::quant::{SUPER, TensorType, UNIT, WeightType, fp4, grids, iq4};

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

/// Grids of eight codes of two bits as a kernel looks them up: the first four in the low halves of the bytes, the others in
/// the high ones.
const fn by_nibbles<const N: usize>(grid: &[u16; N]) -> [u32; N] {
    let mut table = [0; N];
    let mut i = 0;
    while i < N * 8 {
        let code = (grid[i / 8] >> (2 * (i % 8)) & 3) as u32;
        table[i / 8] |= code << (8 * (i % 4) + 4 * (i % 8 / 4));
        i += 1;
    }
    table
}

/// Grids of four codes of four bits, a byte each.
const fn by_bytes<const N: usize>(grid: &[u16; N]) -> [u32; N] {
    let mut table = [0; N];
    let mut i = 0;
    while i < N * 4 {
        table[i / 4] |= ((grid[i / 4] >> (4 * (i % 4)) & 15) as u32) << (8 * (i % 4));
        i += 1;
    }
    table
}

/// The halves of grids of eight codes of two bits, or of four codes of four bits, as tables of bytes.
const fn half_entries<const N: usize>(grid: &[u16; N], half: usize) -> [u8; N] {
    let mut table = [0; N];
    let mut i = 0;
    while i < N {
        table[i] = grid[i].to_le_bytes()[half];
        i += 1;
    }
    table
}

/// A grid as the kernels look it up: by lanes, or the lower and the upper half of an entry by bytes.
struct Lookup<const N: usize> {
    lanes: [u32; N],
    halves: [[u8; N]; 2],
}

const fn of_eight<const N: usize>(grid: &[u16; N]) -> Lookup<N> {
    Lookup { lanes: by_nibbles(grid), halves: [half_entries(grid, 0), half_entries(grid, 1)] }
}

const fn of_four<const N: usize>(grid: &[u16; N]) -> Lookup<N> {
    Lookup { lanes: by_bytes(grid), halves: [half_entries(grid, 0), half_entries(grid, 1)] }
}

static IQ1: [u32; 2048] = by_nibbles(&grids::IQ1);
static IQ2_XXS: Lookup<256> = of_eight(&grids::IQ2_XXS);
static IQ2_XS: Lookup<512> = of_eight(&grids::IQ2_XS);
static IQ2_S: Lookup<1024> = of_eight(&grids::IQ2_S);
static IQ3_XXS: Lookup<256> = of_four(&grids::IQ3_XXS);
static IQ3_S: Lookup<512> = of_four(&grids::IQ3_S);

/// Levels of IQ2 and their negatives, by code and then sign.
const IQ2_LEVELS: [i8; 16] = [8, 25, 43, 0, -8, -25, -43, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const IQ3_XXS_LEVELS: [i8; 16] = [4, 12, 20, 28, 36, 44, 52, 62, -4, -12, -20, -28, -36, -44, -52, -62];
const IQ3_S_LEVELS: [i8; 16] = [1, 3, 5, 7, 9, 11, 13, 15, -1, -3, -5, -7, -9, -11, -13, -15];
/// Eight times -1, 0, 1, and one more, or one less where the shift is down.
const IQ1_LEVELS: [i8; 16] = [-7, 1, 9, 0, -9, -1, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// The eighth signs worked out, and the four bits that lay in their places: see [`crate::quant`]'s codebook types.
#[inline(always)]
fn eighths<S: Simd>(s: S, signs: S::I) -> (S::I, S::I) {
    let places = 0xaa00_0000_u32.cast_signed();
    let sevens = s.and(signs, s.splat_i(!places));
    let mut t = s.xor(sevens, s.shl::<16>(sevens));
    t = s.xor(t, s.shl::<8>(t));
    t = s.xor(t, s.shl::<1>(t));
    let x = field(s, signs, 25, 0x55);
    let x = s.and(s.or(x, s.shr::<1>(x)), s.splat_i(0x33));
    let others = s.and(s.or(x, s.shr::<2>(x)), s.splat_i(0x0f));
    (s.or(sevens, s.and(t, s.splat_i(places))), others)
}

/// 32 columns of IQ1 or IQ2: entry `indices[k]` of the grid for eight of them, `signs` on top of the codes.
#[inline(always)]
fn eights<S: Simd, F: ScaledFormat, const N: usize>(
    s: S,
    (grid, levels): (&[u32; N], [i8; 16]),
    indices: [S::I; 4],
    signs: [S::I; 8],
) -> [S::I; 8] {
    let mut out = signs;
    for k in 0..4 {
        let entry = s.gather(grid, indices[k]);
        out[2 * k] = values::<S, F>(s, levels, s.or(bits(s, entry, 0, 3), signs[2 * k]));
        out[2 * k + 1] = values::<S, F>(s, levels, s.or(bits(s, entry, 4, 3), signs[2 * k + 1]));
    }
    out
}

/// Where in a lane the bits above the eight of four indices lie: from `shift` and then every `step` on, `count` each.
type Upper = (usize, usize, usize);

/// What [`Simd::look_up_bytes`] needs of them.
const fn tests((shift, step, count): Upper) -> [u32; 2] {
    let (mut tests, mut k) = ([0; 2], 0);
    while k < 4 * count {
        tests[k % count] |= 1u32 << (8 * (k / count) + shift + step * (k / count) + k % count);
        k += 1;
    }
    tests
}

/// 32 columns of IQ2: eight for each of the indices in `low` and `upper`.
#[inline(always)]
fn iq2<S: Simd, F: ScaledFormat, const N: usize>(
    s: S,
    grid: &Lookup<N>,
    (low, upper, at): (S::I, S::I, Upper),
    signs: S::I,
) -> [S::I; 8] {
    if !S::BYTE_TABLES {
        let indices = longer(s, low, upper, (at.0, at.1), (1 << at.2) - 1);
        return eights::<S, F, N>(s, (&grid.lanes, IQ2_LEVELS), indices, planes(s, signs, 2));
    }
    let (upper, tests) = (s.four_times(upper), tests(at));
    let first = s.look_up_bytes(&grid.halves[0], low, upper, tests);
    let second = s.look_up_bytes(&grid.halves[1], low, upper, tests);
    let mut out = [low; 8];
    for k in 0..4 {
        for (half, codes) in [first, second].into_iter().enumerate() {
            let codes = s.windows(codes, codes, 8 * k, [0, 2, 4, 6]);
            out[2 * k + half] = s.levels([8, 25, 43, 0, 8, 25, 43, 0], codes, signs, 2 * k + half);
        }
    }
    out
}

/// 32 columns of IQ3: four for each of the indices in two lanes and `upper`.
#[inline(always)]
fn iq3<S: Simd, F: ScaledFormat, const N: usize>(
    s: S,
    (grid, levels): (&Lookup<N>, [i8; 16]),
    (low, upper, count): ([S::I; 2], S::I, usize),
    signs: S::I,
) -> [S::I; 8] {
    let mut out = [signs; 8];
    for word in 0..2 {
        let at = (4 * word, 1, count);
        if S::BYTE_TABLES {
            let (upper, tests) = (s.four_times(upper), tests(at));
            let first = s.look_up_bytes(&grid.halves[0], low[word], upper, tests);
            let second = s.look_up_bytes(&grid.halves[1], low[word], upper, tests);
            let mut table = [0; 8];
            for (to, from) in table.iter_mut().zip(levels) {
                *to = from.cast_unsigned();
            }
            for k in 0..4 {
                let codes = s.windows(first, second, 8 * k, [0, 4, 0, 4]);
                out[4 * word + k] = s.levels(table, codes, signs, 4 * word + k);
            }
        } else {
            let (indices, signs) = (longer(s, low[word], upper, (at.0, at.1), (1 << count) - 1), planes(s, signs, 3));
            for k in 0..4 {
                out[4 * word + k] =
                    values::<S, F>(s, levels, s.or(s.gather(&grid.lanes, indices[k]), signs[4 * word + k]));
            }
        }
    }
    out
}

/// The eight planes of a unit, as bit `to` of every byte.
#[inline(always)]
fn planes<S: Simd>(s: S, unit: S::I, to: usize) -> [S::I; 8] {
    let mut out = [unit; 8];
    for (u, out) in out.iter_mut().enumerate() {
        *out = plane(s, unit, u, to);
    }
    out
}

/// The bytes of every lane.
#[inline(always)]
fn four_bytes<S: Simd>(s: S, unit: S::I) -> [S::I; 4] {
    [byte(s, unit, 0), byte(s, unit, 1), byte(s, unit, 2), s.shr::<24>(unit)]
}

/// Indices of four low bytes and the bits above them: those of `upper` that `mask` leaves, from `shift` and then every
/// `step` on.
#[inline(always)]
fn longer<S: Simd>(s: S, low: S::I, upper: S::I, (shift, step): (usize, usize), mask: i32) -> [S::I; 4] {
    let mut out = four_bytes(s, low);
    for (k, out) in out.iter_mut().enumerate() {
        *out = s.or(*out, s.shl::<8>(field(s, upper, shift + step * k, mask)));
    }
    out
}

/// `d * (k + 1/2) * factor`.
#[inline(always)]
fn and_a_half<S: Simd>(s: S, d: S::F, k: S::I, factor: f32) -> S::F {
    s.mul(s.mul(d, s.add(s.to_f(k), s.splat(0.5))), s.splat(factor))
}

/// The four-bit scale of group `sub` of 16, of the units 0 and 1.
#[inline(always)]
fn scale16<S: Simd>(s: S, body: &[u8], sub: usize, half: usize) -> S::I {
    field(s, word(s, body, sub / 4 % 2, half), 8 * (sub % 4) + 4 * (sub / 8), 15)
}

/// `2 k + 1`.
#[inline(always)]
fn odd<S: Simd>(s: S, k: S::I) -> S::I {
    s.or(s.shl::<1>(k), s.splat_i(1))
}

/// Of IQ2: `d * (k + 1/2) / 4` is an eighth of `d` times an odd number; both products are exact.
#[inline(always)]
fn iq2_d<S: Simd>(s: S, tail: &[u8], half: usize) -> S::F {
    s.mul(f16s(s, tail, 0, half), s.splat(0.125))
}

#[inline(always)]
fn iq2_factors16<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 2] {
    [odd(s, scale16(s, body, 2 * g, half)), odd(s, scale16(s, body, 2 * g + 1, half))]
}

format!(/** IQ2_XXS. */ Iq2Xxs, IQ2_XXS, {
    const REACH: u8 = 43;
    const INT_SCALES: bool = true;
    const GRID: bool = true;
    #[inline(always)]
    fn quants<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 8] {
        let (low, (signs, _)) = (word(s, body, 2 * g, half), eighths(s, word(s, body, 2 * g + 1, half)));
        iq2::<S, Self, _>(s, &IQ2_XXS, (low, low, (0, 0, 0)), signs)
    }
    #[inline(always)]
    fn factors<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 2] {
        [odd(s, eighths(s, word(s, body, 2 * g + 1, half)).1); 2]
    }
    #[inline(always)]
    fn d<S: Simd>(s: S, tail: &[u8], half: usize) -> S::F {
        iq2_d(s, tail, half)
    }
});

format!(/** IQ2_XS. */ Iq2Xs, IQ2_XS, {
    const REACH: u8 = 43;
    const INT_SCALES: bool = true;
    const GRID: bool = true;
    const GROUP: usize = 16;
    #[inline(always)]
    fn quants<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 8] {
        let (low, (signs, ninths)) = (word(s, body, 2 + 2 * g, half), eighths(s, word(s, body, 3 + 2 * g, half)));
        iq2::<S, Self, _>(s, &IQ2_XS, (low, ninths, (0, 1, 1)), signs)
    }
    #[inline(always)]
    fn factors<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 2] {
        iq2_factors16(s, body, g, half)
    }
    #[inline(always)]
    fn d<S: Simd>(s: S, tail: &[u8], half: usize) -> S::F {
        iq2_d(s, tail, half)
    }
});

format!(/** IQ2_S. */ Iq2S, IQ2_S, {
    const REACH: u8 = 43;
    const INT_SCALES: bool = true;
    const GRID: bool = true;
    const GROUP: usize = 16;
    #[inline(always)]
    fn quants<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 8] {
        let (low, signs) = (word(s, body, 4 + 2 * g, half), word(s, body, 5 + 2 * g, half));
        let upper = s.shr_by(word(s, body, 2 + g / 4, half), 8 * (g % 4) as u32);
        iq2::<S, Self, _>(s, &IQ2_S, (low, upper, (0, 2, 2)), signs)
    }
    #[inline(always)]
    fn factors<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 2] {
        iq2_factors16(s, body, g, half)
    }
    #[inline(always)]
    fn d<S: Simd>(s: S, tail: &[u8], half: usize) -> S::F {
        iq2_d(s, tail, half)
    }
});

format!(/** IQ3_XXS. */ Iq3Xxs, IQ3_XXS, {
    const REACH: u8 = 62;
    const INT_SCALES: bool = true;
    const GRID: bool = true;
    #[inline(always)]
    fn quants<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 8] {
        let (signs, _) = eighths(s, word(s, body, 3 * g + 2, half));
        let (first, second) = (word(s, body, 3 * g, half), word(s, body, 3 * g + 1, half));
        iq3::<S, Self, _>(s, (&IQ3_XXS, IQ3_XXS_LEVELS), ([first, second], signs, 0), signs)
    }
    #[inline(always)]
    fn factors<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 2] {
        [odd(s, eighths(s, word(s, body, 3 * g + 2, half)).1); 2]
    }
    /// Of `d * (k + 1/2) / 2`.
    #[inline(always)]
    fn d<S: Simd>(s: S, tail: &[u8], half: usize) -> S::F {
        s.mul(f16s(s, tail, 0, half), s.splat(0.25))
    }
});

format!(/** IQ3_S. */ Iq3S, IQ3_S, {
    const REACH: u8 = 15;
    const GRID: bool = true;
    #[inline(always)]
    fn quants<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 8] {
        let (first, second) = (word(s, body, 3 + 3 * g, half), word(s, body, 4 + 3 * g, half));
        let (signs, ninths) = (word(s, body, 5 + 3 * g, half), word(s, body, 1 + g / 4, half));
        let ninths = s.shr_by(ninths, 8 * (g % 4) as u32);
        iq3::<S, Self, _>(s, (&IQ3_S, IQ3_S_LEVELS), ([first, second], ninths, 1), signs)
    }
    #[inline(always)]
    fn scales<S: Simd>(s: S, (body, tail): (&[u8], &[u8]), g: usize, half: usize) -> [S::F; 2] {
        let scale = field(s, word(s, body, 0, half), 8 * (g % 4) + 4 * (g / 4), 15);
        [and_a_half(s, f16s(s, tail, 0, half), scale, 2.0); 2]
    }
});

/// Whether the lowest bit of a lane is set, as bit 2 of each of its bytes.
#[inline(always)]
fn down<S: Simd>(s: S, bit: S::I) -> S::I {
    s.and(s.sub_i(s.splat_i(0), s.and(bit, s.splat_i(1))), every(s, 4))
}

format!(/** IQ1_S. */ Iq1S, IQ1_S, {
    const REACH: u8 = 9;
    const GRID: bool = true;
    #[inline(always)]
    fn quants<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 8] {
        let (low, more) = (word(s, body, g, half), s.shr_by(word(s, body, 8 + g / 2, half), 16 * (g % 2) as u32));
        let down = down(s, s.shr::<15>(more));
        eights::<S, Self, _>(s, (&IQ1, IQ1_LEVELS), longer(s, low, more, (0, 3), 7), [down; 8])
    }
    #[inline(always)]
    fn scales<S: Simd>(s: S, (body, tail): (&[u8], &[u8]), g: usize, half: usize) -> [S::F; 2] {
        let scale = field(s, word(s, body, 8 + g / 2, half), 16 * (g % 2) + 12, 7);
        [and_a_half(s, f16s(s, tail, 0, half), scale, 0.25); 2]
    }
});

format!(/** IQ1_M. */ Iq1M, IQ1_M, {
    const REACH: u8 = 9;
    const GRID: bool = true;
    const GROUP: usize = 16;
    #[inline(always)]
    fn quants<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 8] {
        let (low, more) = (word(s, body, 1 + g, half), s.shr_by(word(s, body, 9 + g / 2, half), 16 * (g % 2) as u32));
        let mut downs = [more; 8];
        for (u, out) in downs.iter_mut().enumerate() {
            *out = down(s, s.shr_by(more, 4 * (u / 2) as u32 + 3));
        }
        eights::<S, Self, _>(s, (&IQ1, IQ1_LEVELS), longer(s, low, more, (0, 4), 7), downs)
    }
    #[inline(always)]
    fn scales<S: Simd>(s: S, (body, tail): (&[u8], &[u8]), g: usize, half: usize) -> [S::F; 2] {
        let (d, h) = (f16s(s, tail, 0, half), s.load_u16(&tail[32 + half * S::LANES * 2..]));
        let (tops, low) = (s.or(h, s.shl::<12>(h)), word(s, body, 0, half));
        // Group `4 i + j` of 16 columns has its low bits at `8 j + 2 i`, its top one at `8 j + i`.
        let (i, j) = (g / 2, 2 * (g % 2));
        let (low, tops) = (s.shr_by(low, (8 * j + 2 * i) as u32), s.shr_by(tops, (8 * j + i) as u32));
        let first = s.or(field(s, low, 0, 3), s.shl::<2>(field(s, tops, 0, 1)));
        let second = s.or(field(s, low, 8, 3), s.shl::<2>(field(s, tops, 8, 1)));
        [and_a_half(s, d, first, 0.25), and_a_half(s, d, second, 0.25)]
    }
});
