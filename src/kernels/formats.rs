//! How each weight type's panel turns into vectors. Layouts are described in [`crate::quant`].

use super::simd::Simd;

/// An integer weight type: 4-byte units of quants, scales per group, all as vectors over the panel's rows.
///
/// `half` picks the vector within the panel's 16 rows: rows `half * S::LANES ..`.
pub trait IntFormat {
    /// Columns of a panel block.
    const COLS: usize;
    /// Bytes of a panel block.
    const BYTES: usize;
    /// Columns under one scale: 16 or 32.
    const GROUP: usize;
    /// What was added to the true quant, a power of two; `None` where [`Simd::bias`] decides.
    const OFFSET: Option<i32>;
    /// Weights use all 8 bits: [`Simd::dot_wide`].
    const WIDE: bool;
    /// Values have a minimum per 32 columns.
    const MIN: bool;
    /// Activations carry one scale per 256 columns, else per 32.
    const ACT256: bool;

    /// Quants of columns `4 * unit ..` of the block.
    fn quants<S: Simd>(s: S, block: &[u8], unit: usize, half: usize) -> S::I;
    /// Scale of group `group`.
    fn scale<S: Simd>(s: S, block: &[u8], group: usize, half: usize) -> S::F;
    /// Minimum of sub-block `sub` of 32 columns (subtracted).
    fn min<S: Simd>(s: S, _block: &[u8], _sub: usize, _half: usize) -> S::F {
        s.splat(0.0)
    }
}

/// The offset that the kernel has to take out again: the format's own, or the vector unit's bias.
pub const fn offset<S: Simd, F: IntFormat>() -> i32 {
    match F::OFFSET {
        Some(offset) => offset,
        None => S::BIAS,
    }
}

#[inline(always)]
fn unit<S: Simd>(s: S, quants: &[u8], unit: usize, half: usize) -> S::I {
    s.load_bytes(&quants[unit * 64 + half * S::LANES * 4..])
}

#[inline(always)]
fn f16s<S: Simd>(s: S, halves: &[u8], half: usize) -> S::F {
    s.load_f16(&halves[half * S::LANES * 2..])
}

#[inline(always)]
fn nibbles<S: Simd>(s: S, bytes: S::I, high: bool) -> S::I {
    let bytes = if high { s.shr::<4>(bytes) } else { bytes };
    s.and(bytes, s.splat_i(0x0f0f_0f0f))
}

/// Q8_0.
pub struct Q8_0;

impl IntFormat for Q8_0 {
    const COLS: usize = 32;
    const BYTES: usize = 544;
    const GROUP: usize = 32;
    const OFFSET: Option<i32> = None;
    const WIDE: bool = true;
    const MIN: bool = false;
    const ACT256: bool = false;

    #[inline(always)]
    fn quants<S: Simd>(s: S, block: &[u8], u: usize, half: usize) -> S::I {
        s.bias(unit(s, &block[32..], u, half))
    }
    #[inline(always)]
    fn scale<S: Simd>(s: S, block: &[u8], _group: usize, half: usize) -> S::F {
        f16s(s, block, half)
    }
}

/// Q4_0.
pub struct Q4_0;

impl IntFormat for Q4_0 {
    const COLS: usize = 32;
    const BYTES: usize = 288;
    const GROUP: usize = 32;
    const OFFSET: Option<i32> = Some(8);
    const WIDE: bool = false;
    const MIN: bool = false;
    const ACT256: bool = false;

    #[inline(always)]
    fn quants<S: Simd>(s: S, block: &[u8], u: usize, half: usize) -> S::I {
        nibbles(s, unit(s, &block[32..], u % 4, half), u >= 4)
    }
    #[inline(always)]
    fn scale<S: Simd>(s: S, block: &[u8], _group: usize, half: usize) -> S::F {
        f16s(s, block, half)
    }
}

/// Q4_K.
pub struct Q4K;

impl Q4K {
    const LOW: usize = 64;
    const HIGH: usize = Self::LOW + 128;
    const QUANTS: usize = Self::HIGH + 64;

    /// Six bits of every row: the low four at `shift` of the sub-block's byte, the upper two from the pair's.
    #[inline(always)]
    fn six_bits<S: Simd>(s: S, block: &[u8], sub: usize, half: usize, min: bool) -> S::F {
        let low = s.load_u8(&block[Self::LOW + sub * 16 + half * S::LANES..]);
        let high = s.load_u8(&block[Self::HIGH + sub / 2 * 16 + half * S::LANES..]);
        let low = if min { s.shr::<4>(low) } else { s.and(low, s.splat_i(15)) };
        let high = match (sub % 2, min) {
            (0, false) => s.shl::<4>(high),
            (0, true) => s.shl::<2>(high),
            (_, false) => high,
            (_, true) => s.shr::<2>(high),
        };
        s.to_f(s.or(low, s.and(high, s.splat_i(0x30))))
    }
}

impl IntFormat for Q4K {
    const COLS: usize = 256;
    const BYTES: usize = 2304;
    const GROUP: usize = 32;
    const OFFSET: Option<i32> = Some(0);
    const WIDE: bool = false;
    const MIN: bool = true;
    const ACT256: bool = true;

    #[inline(always)]
    fn quants<S: Simd>(s: S, block: &[u8], u: usize, half: usize) -> S::I {
        nibbles(s, unit(s, &block[Self::QUANTS..], u / 16 * 8 + u % 8, half), u % 16 >= 8)
    }
    #[inline(always)]
    fn scale<S: Simd>(s: S, block: &[u8], group: usize, half: usize) -> S::F {
        s.mul(f16s(s, block, half), Self::six_bits(s, block, group, half, false))
    }
    #[inline(always)]
    fn min<S: Simd>(s: S, block: &[u8], sub: usize, half: usize) -> S::F {
        s.mul(f16s(s, &block[32..], half), Self::six_bits(s, block, sub, half, true))
    }
}

/// Q6_K.
pub struct Q6K;

impl Q6K {
    const SCALES: usize = 32;
    const LOW: usize = Self::SCALES + 256;
    const HIGH: usize = Self::LOW + 2048;
}

impl IntFormat for Q6K {
    const COLS: usize = 256;
    const BYTES: usize = 3360;
    const GROUP: usize = 16;
    const OFFSET: Option<i32> = Some(32);
    const WIDE: bool = false;
    const MIN: bool = false;
    const ACT256: bool = true;

    #[inline(always)]
    fn quants<S: Simd>(s: S, block: &[u8], u: usize, half: usize) -> S::I {
        // Columns run as 2 halves of 4 quarters of 32: quarters 0 and 2 share the first 32 nibble bytes, 1 and 3
        // the second; the bit pairs of all four quarters share 32 bytes.
        let (part, quarter, l) = (u / 32, u / 8 % 4, u % 8);
        let low = nibbles(s, unit(s, &block[Self::LOW..], part * 16 + quarter % 2 * 8 + l, half), quarter >= 2);
        let pairs = unit(s, &block[Self::HIGH..], part * 8 + l, half);
        let pairs = match quarter {
            0 => s.shl::<4>(pairs),
            1 => s.shl::<2>(pairs),
            2 => pairs,
            _ => s.shr::<2>(pairs),
        };
        s.or(low, s.and(pairs, s.splat_i(0x3030_3030)))
    }
    #[inline(always)]
    fn scale<S: Simd>(s: S, block: &[u8], group: usize, half: usize) -> S::F {
        let scales = s.load_i8(&block[Self::SCALES + group * 16 + half * S::LANES..]);
        s.mul(f16s(s, block, half), s.to_f(scales))
    }
}

/// A float weight type: steps of one or two columns.
pub trait FloatFormat {
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
    const STEP: usize = 1;
    const BYTES: usize = 64;
    #[inline(always)]
    fn load<S: Simd>(s: S, step: &[u8], half: usize) -> [S::F; 2] {
        let x = s.as_f(s.load_bytes(&step[half * S::LANES * 4..]));
        [x, x]
    }
}

/// F16.
pub struct F16;

impl FloatFormat for F16 {
    const STEP: usize = 1;
    const BYTES: usize = 32;
    #[inline(always)]
    fn load<S: Simd>(s: S, step: &[u8], half: usize) -> [S::F; 2] {
        let x = f16s(s, step, half);
        [x, x]
    }
}

/// BF16.
pub struct Bf16;

impl FloatFormat for Bf16 {
    const STEP: usize = 2;
    const BYTES: usize = 64;
    #[inline(always)]
    fn load<S: Simd>(s: S, step: &[u8], half: usize) -> [S::F; 2] {
        let (even, odd) = s.load_bf16_pairs(&step[half * S::LANES * 4..]);
        [even, odd]
    }
}
