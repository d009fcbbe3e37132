//! Types that are unpacked, but for those with codebooks. Layouts and meanings are described in [`crate::quant`]; what
//! integer scales say there is worked into floats here.

use super::unpack::{
    UnpackedFormat, all_values, any_plane, bits, byte, every, f16s, field, format, nibbles32, nibbles64, pairs128,
    plane, word,
};
use crate::kernels::simd::Simd;
use crate::quant::{TensorType, WeightType, fp4, iq4};

format!(/** Q4_1. */ Q4_1, Q4_1, {
    const QUANT_ABS_MAX: u8 = 15;
    const MINS: bool = true;
    const ZERO_POINT: u8 = 0;
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
    const QUANT_ABS_MAX: u8 = 16;
    const ZERO_POINT: u8 = 16;
    #[inline(always)]
    fn quants<S: Simd>(s: S, body: &[u8], _g: usize, half: usize) -> [S::I; 8] {
        fives32(s, body, half)
    }
});

format!(/** Q5_1. */ Q5_1, Q5_1, {
    const QUANT_ABS_MAX: u8 = 31;
    const MINS: bool = true;
    const ZERO_POINT: u8 = 0;
    #[inline(always)]
    fn quants<S: Simd>(s: S, body: &[u8], _g: usize, half: usize) -> [S::I; 8] {
        fives32(s, body, half)
    }
});

format!(/** Q2_K. */ Q2K, Q2_K, {
    const QUANT_ABS_MAX: u8 = 3;
    const GROUP: usize = 16;
    const MINS: bool = true;
    const INT_SCALES: bool = true;
    const ZERO_POINT: u8 = 0;
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
    const QUANT_ABS_MAX: u8 = 4;
    const GROUP: usize = 16;
    const INT_SCALES: bool = true;
    const ZERO_POINT: u8 = 4;
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
    const QUANT_ABS_MAX: u8 = 31;
    const MINS: bool = true;
    const ZERO_POINT: u8 = 0;
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
    const QUANT_ABS_MAX: u8 = 127;
    #[inline(always)]
    fn quants<S: Simd>(s: S, body: &[u8], _g: usize, half: usize) -> [S::I; 8] {
        all_values::<S, Self>(s, iq4::VALUES, nibbles32(s, body, 0, half))
    }
});

format!(/** IQ4_XS. */ Iq4Xs, IQ4_XS, {
    const QUANT_ABS_MAX: u8 = 127;
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
    const QUANT_ABS_MAX: u8 = 12;
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
    const QUANT_ABS_MAX: u8 = 12;
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
    const QUANT_ABS_MAX: u8 = 1;
    const INT_SCALES: bool = true;
    const ZERO_POINT: u8 = 1;
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
    const QUANT_ABS_MAX: u8 = 1;
    const INT_SCALES: bool = true;
    const ZERO_POINT: u8 = 1;
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
    const QUANT_ABS_MAX: u8 = 1;
    const ZERO_POINT: u8 = 1;
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
    const QUANT_ABS_MAX: u8 = 2;
    const ZERO_POINT: u8 = 1;
    #[inline(always)]
    fn quants<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 8] {
        let mut out = [s.splat_i(0); 8];
        for (u, out) in out.iter_mut().enumerate() {
            *out = bits(s, word(s, body, 2 * g + u % 2, half), 2 * (u / 2), 3);
        }
        out
    }
});
