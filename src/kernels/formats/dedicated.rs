//! Types with kernels of their own: how their panels turn into vectors. Layouts are described in [`crate::quant`].

use crate::kernels::simd::Simd;
use crate::quant::{UNIT, WeightType};

/// An integer weight type: units of unsigned bytes and scales, all as vectors over the panel's rows.
///
/// A block's columns are read in slices; a slice has `STEPS` steps, and step `l` yields `WIDTH` vectors that share
/// loads: vector `w` is unit `(slice * WIDTH + w) * STEPS + l`, columns `4 * unit ..`. `half` picks the vector within
/// the panel's 16 rows: rows `half * S::LANES ..`.
pub trait IntFormat {
    /// The weight type.
    const TYPE: WeightType;
    /// Columns of a panel block.
    const COLS: usize = Self::TYPE.block_len();
    /// Bytes of a block's body.
    const BODY: usize = Self::TYPE.panel_parts().0;
    /// Bytes of a block's tail.
    const TAIL: usize = Self::TYPE.panel_parts().1;
    /// Columns under one scale: 16 or 32.
    const GROUP: usize;
    /// Vectors that share loads, at most 4.
    const WIDTH: usize;
    /// Steps of a slice.
    const STEPS: usize;
    /// Largest quant.
    const QUANT_MAX: usize;
    /// A constant was added to the true quants: the record's starting values take it out.
    const OFFSET: bool;
    /// Scales are integers under a float per block, so that a block is summed in integers; else one float per block.
    const INT_SCALES: bool;
    /// Values have a minimum per 32 columns (with integer scales).
    const MINS: bool = false;

    /// The quants of one step.
    fn step<S: Simd>(s: S, body: &[u8], slice: usize, l: usize, half: usize) -> [S::I; 4];

    /// The block's float scale.
    #[inline(always)]
    fn d<S: Simd>(s: S, tail: &[u8], half: usize) -> S::F {
        f16s(s, tail, half)
    }
    /// The block's float scale of minima.
    #[inline(always)]
    fn dmin<S: Simd>(s: S, tail: &[u8], half: usize) -> S::F {
        f16s(s, &tail[tail.len() / 2..], half)
    }
    /// The integer scales of the block's groups, as [`Simd::dot_pairs`] takes them after [`Simd::dot`].
    #[inline(always)]
    fn scales<S: Simd>(s: S, _body: &[u8], _half: usize) -> [S::I; 16] {
        [s.splat_i(0); 16]
    }
    /// The minima of sub-blocks `(0, 2) (1, 3) (4, 6) (5, 7)` as i16 pairs.
    #[inline(always)]
    fn mins<S: Simd>(s: S, _body: &[u8], _half: usize) -> [S::I; 4] {
        [s.splat_i(0); 4]
    }
}

#[inline(always)]
fn unit<S: Simd>(s: S, units: &[u8], unit: usize, half: usize) -> S::I {
    s.load_bytes(&units[unit * UNIT + half * S::LANES * 4..])
}

#[inline(always)]
fn f16s<S: Simd>(s: S, halves: &[u8], half: usize) -> S::F {
    s.load_f16(&halves[half * S::LANES * 2..])
}

#[inline(always)]
fn masked<S: Simd>(s: S, a: S::I, byte: u8) -> S::I {
    s.and(a, s.splat_i(i32::from_ne_bytes([byte; 4])))
}

/// Q8_0.
pub struct Q8_0;

impl IntFormat for Q8_0 {
    const TYPE: WeightType = WeightType::Q8_0;
    const GROUP: usize = 32;
    const WIDTH: usize = 1;
    const STEPS: usize = 8;
    const QUANT_MAX: usize = 255;
    const OFFSET: bool = true;
    const INT_SCALES: bool = false;

    #[inline(always)]
    fn step<S: Simd>(s: S, body: &[u8], _slice: usize, l: usize, half: usize) -> [S::I; 4] {
        let quants = unit(s, body, l, half);
        [if S::DOT.is_unsigned() { quants } else { s.xor(quants, s.splat_i(i32::from_ne_bytes([0x80; 4]))) }; 4]
    }
}

/// Q4_0. Where weights are unsigned, the quants are sixteen times the nibbles: their offset is then 128, as that of Q8_0.
pub struct Q4_0;

impl IntFormat for Q4_0 {
    const TYPE: WeightType = WeightType::Q4_0;
    const GROUP: usize = 32;
    const WIDTH: usize = 2;
    const STEPS: usize = 4;
    const QUANT_MAX: usize = 15;
    const OFFSET: bool = true;
    const INT_SCALES: bool = false;

    #[inline(always)]
    fn step<S: Simd>(s: S, body: &[u8], _slice: usize, l: usize, half: usize) -> [S::I; 4] {
        let bytes = unit(s, body, l, half);
        let [low, high] = match S::DOT.is_unsigned() {
            true => [masked(s, s.shl::<4>(bytes), 0xf0), masked(s, bytes, 0xf0)],
            false => [masked(s, bytes, 0x0f), masked(s, s.shr::<4>(bytes), 0x0f)],
        };
        [low, high, high, high]
    }
    #[inline(always)]
    fn d<S: Simd>(s: S, tail: &[u8], half: usize) -> S::F {
        s.mul(f16s(s, tail, half), s.splat(if S::DOT.is_unsigned() { 1.0 / 16.0 } else { 1.0 }))
    }
}

/// Q4_K.
pub struct Q4K;

impl IntFormat for Q4K {
    const TYPE: WeightType = WeightType::Q4K;
    const GROUP: usize = 32;
    const WIDTH: usize = 2;
    const STEPS: usize = 8;
    const QUANT_MAX: usize = 15;
    const OFFSET: bool = false;
    const INT_SCALES: bool = true;
    const MINS: bool = true;

    #[inline(always)]
    fn step<S: Simd>(s: S, body: &[u8], slice: usize, l: usize, half: usize) -> [S::I; 4] {
        let bytes = unit(s, body, 3 + slice * 8 + l, half);
        let high = masked(s, s.shr::<4>(bytes), 0x0f);
        [masked(s, bytes, 0x0f), high, high, high]
    }
    #[inline(always)]
    fn scales<S: Simd>(s: S, body: &[u8], half: usize) -> [S::I; 16] {
        let upper = unit(s, body, 2, half);
        let first = s.or(masked(s, unit(s, body, 0, half), 0x0f), masked(s, s.shl::<4>(upper), 0x30));
        let second = s.or(masked(s, unit(s, body, 1, half), 0x0f), masked(s, upper, 0x30));
        let mut scales = [s.splat_i(0); 16];
        [scales[0], scales[1], scales[2], scales[3]] = s.scales_u8(first);
        [scales[4], scales[5], scales[6], scales[7]] = s.scales_u8(second);
        scales
    }
    #[inline(always)]
    fn mins<S: Simd>(s: S, body: &[u8], half: usize) -> [S::I; 4] {
        let upper = unit(s, body, 2, half);
        let (first, second) = (s.shr::<4>(unit(s, body, 0, half)), s.shr::<4>(unit(s, body, 1, half)));
        let first = s.or(masked(s, first, 0x0f), masked(s, s.shl::<2>(upper), 0x30));
        let second = s.or(masked(s, second, 0x0f), masked(s, s.shr::<2>(upper), 0x30));
        let even = s.splat_i(0x00ff_00ff);
        [s.and(first, even), s.and(s.shr::<8>(first), even), s.and(second, even), s.and(s.shr::<8>(second), even)]
    }
}

/// Q6_K.
pub struct Q6K;

impl IntFormat for Q6K {
    const TYPE: WeightType = WeightType::Q6K;
    const GROUP: usize = 16;
    const WIDTH: usize = 4;
    const STEPS: usize = 8;
    const QUANT_MAX: usize = 63;
    const OFFSET: bool = true;
    const INT_SCALES: bool = true;

    #[inline(always)]
    fn step<S: Simd>(s: S, body: &[u8], slice: usize, l: usize, half: usize) -> [S::I; 4] {
        // Columns run as 2 slices of 4 quarters of 32: quarters 0 and 2 share the first 32 nibble bytes, 1 and 3
        // the second; the bit pairs of all four quarters share 32 bytes.
        let first = 4 + (slice * 8 + l) * 3;
        let low = [unit(s, body, first, half), unit(s, body, first + 1, half)];
        let pairs = unit(s, body, first + 2, half);
        [
            s.or(masked(s, low[0], 0x0f), masked(s, s.shl::<4>(pairs), 0x30)),
            s.or(masked(s, low[1], 0x0f), masked(s, s.shl::<2>(pairs), 0x30)),
            s.or(masked(s, s.shr::<4>(low[0]), 0x0f), masked(s, pairs, 0x30)),
            s.or(masked(s, s.shr::<4>(low[1]), 0x0f), masked(s, s.shr::<2>(pairs), 0x30)),
        ]
    }
    #[inline(always)]
    fn scales<S: Simd>(s: S, body: &[u8], half: usize) -> [S::I; 16] {
        // Without a loop, which the compiler would fill an array in memory with and then copy that.
        let [a, b, c, d] = s.scales_i8(unit(s, body, 0, half));
        let [e, f, g, h] = s.scales_i8(unit(s, body, 1, half));
        let [i, j, k, l] = s.scales_i8(unit(s, body, 2, half));
        let [m, n, o, p] = s.scales_i8(unit(s, body, 3, half));
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }
}

/// A float weight type: steps of one or two columns.
pub trait FloatFormat {
    /// The weight type.
    const TYPE: WeightType;
    /// Columns of a step.
    const STEP: usize;
    /// Bytes of a panel step.
    const BYTES: usize;
    /// The step's columns; the second is unused where `STEP` is 1.
    fn load<S: Simd>(s: S, step: &[u8], half: usize) -> [S::F; 2];
}

/// F32.
pub struct F32;

impl FloatFormat for F32 {
    const TYPE: WeightType = WeightType::F32;
    const STEP: usize = 1;
    const BYTES: usize = 64;
    #[inline(always)]
    fn load<S: Simd>(s: S, step: &[u8], half: usize) -> [S::F; 2] {
        [s.as_f(s.load_bytes(&step[half * S::LANES * 4..])); 2]
    }
}

/// F16.
pub struct F16;

impl FloatFormat for F16 {
    const TYPE: WeightType = WeightType::F16;
    const STEP: usize = 1;
    const BYTES: usize = 32;
    #[inline(always)]
    fn load<S: Simd>(s: S, step: &[u8], half: usize) -> [S::F; 2] {
        [f16s(s, step, half); 2]
    }
}

/// BF16.
pub struct Bf16;

impl FloatFormat for Bf16 {
    const TYPE: WeightType = WeightType::BF16;
    const STEP: usize = 2;
    const BYTES: usize = 64;
    #[inline(always)]
    fn load<S: Simd>(s: S, step: &[u8], half: usize) -> [S::F; 2] {
        let (even, odd) = s.load_bf16_pairs(&step[half * S::LANES * 4..]);
        [even, odd]
    }
}
