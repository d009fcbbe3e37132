//! What a kernel needs of a CPU: the operations on one vector, implemented once per tier.
//!
//! Kernels are generic over [`Simd`] and are compiled once per tier inside functions that carry the tier's
//! `#[target_feature]` list (see `tier!` in the parent). Every method is `#[inline(always)]`, so nothing of this
//! trait is left in the binary.

use std::marker::PhantomData;

pub mod scalar;
#[cfg(target_arch = "x86_64")]
#[allow(clippy::multiple_unsafe_ops_per_block, reason = "each block is one expression of register intrinsics")]
pub mod x86_64;

/// How a vector unit multiplies bytes of weights by signed bytes of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dot {
    /// Unsigned weights, two products added up in an i16 (`vpmaddubsw`).
    PairsI16,
    /// Unsigned weights, four products added up in an i32 (`vpdpbusd`).
    UnsignedSigned,
    /// Signed weights, four products added up in an i32 (`sdot`): nothing need be added to weights of eight bits.
    SignedSigned,
}

impl Dot {
    /// Whether products add up in i32 lanes at once.
    pub const fn is_in_lanes(self) -> bool {
        !matches!(self, Dot::PairsI16)
    }

    /// Whether weights of eight bits are multiplied as unsigned bytes, 128 more than what they stand for.
    pub const fn is_unsigned(self) -> bool {
        matches!(self, Dot::UnsignedSigned)
    }
}

/// One vector unit. A value of the type is the proof that the CPU has it: only the tier entry points make one.
///
/// `F` holds `LANES` f32; `I` holds `LANES` i32, or `4 * LANES` bytes.
pub trait Simd: Copy {
    /// Vector registers: how large a block of sums may be.
    const REGISTERS: usize;
    /// f32 lanes. A panel is `16 / LANES` vectors wide.
    const LANES: usize;
    /// How it multiplies bytes.
    const DOT: Dot;
    /// Worth kernels that are there for speed alone, such as tiles for many tokens; else the binary has one plain kernel
    /// of each kind.
    const FAST: bool = true;
    /// [`Simd::byte_tables`] are there.
    const BYTE_TABLES: bool = false;
    /// Vector of f32.
    type F: Copy;
    /// Vector of i32, or of bytes.
    type I: Copy;
    /// What looks up bytes in large tables; [`NoByteTables`] where nothing does.
    type Tables: ByteTables<I = Self::I>;

    /// The operations of [`ByteTables`], where gathers are slower.
    #[inline(always)]
    fn byte_tables(self) -> Option<Self::Tables> {
        None
    }

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::F;
    /// The first `LANES` of `x`.
    fn load(self, x: &[f32]) -> Self::F;
    /// Into the first `LANES` of `out`.
    fn store(self, x: Self::F, out: &mut [f32]);
    /// `LANES` f16 from `2 * LANES` bytes.
    fn load_f16(self, x: &[u8]) -> Self::F;
    /// All lanes the f16 in the first two bytes.
    fn splat_f16(self, x: &[u8]) -> Self::F;
    /// Into `2 * LANES` bytes as f16, rounded to nearest even.
    fn store_f16(self, x: Self::F, out: &mut [u8]);
    /// `LANES` pairs of bf16: the first and the second of each pair.
    fn load_bf16_pairs(self, x: &[u8]) -> (Self::F, Self::F);
    /// a + b
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// a - b
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// a * b
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// a / b
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// a * b + c
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Larger of the two; NaN handling unspecified.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// |a|
    fn abs(self, a: Self::F) -> Self::F;
    /// Square root.
    fn sqrt(self, a: Self::F) -> Self::F;
    /// Sum of all lanes.
    fn sum(self, a: Self::F) -> f32;
    /// Largest lane.
    fn largest(self, a: Self::F) -> f32;
    /// Whether any lane of `a` is greater than that of `b`.
    fn any_above(self, a: Self::F, b: Self::F) -> bool;

    /// All lanes `x`.
    fn splat_i(self, x: i32) -> Self::I;
    /// All pairs of lanes `x`.
    fn splat_pair(self, x: i64) -> Self::I;
    /// The first `4 * LANES` bytes of `x`.
    fn load_bytes(self, x: &[u8]) -> Self::I;
    /// Into the first `4 * LANES` bytes of `out`.
    fn store_bytes(self, x: Self::I, out: &mut [u8]);
    /// Sixteen bytes of each of `LANES` rows that begin `stride` bytes apart in `x`, as four vectors: the first word of row
    /// after row, the second, and so on.
    fn words_of_rows(self, x: &[u8], stride: usize) -> [Self::I; 4];
    /// `LANES` bytes, sign-extended.
    fn load_i8(self, x: &[u8]) -> Self::I;
    /// Lanes (each within i8) into `LANES` bytes.
    fn store_i8(self, x: Self::I, out: &mut [u8]);
    /// The lanes (each within i8) of four vectors, one after the other, as bytes.
    fn pack_i8(self, x: [Self::I; 4]) -> Self::I;
    /// a & b
    fn and(self, a: Self::I, b: Self::I) -> Self::I;
    /// a | b
    fn or(self, a: Self::I, b: Self::I) -> Self::I;
    /// a + b per lane, wrapping.
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// a - b per lane, wrapping.
    fn sub_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// Larger of the two per lane, signed.
    fn max_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// Sums of neighbouring lanes, those of `a` and then those of `b`, wrapping.
    fn add_pairs(self, a: Self::I, b: Self::I) -> Self::I;
    /// The lower halves of the products of unsigned 16-bit halves.
    fn mul_low_u16(self, a: Self::I, b: Self::I) -> Self::I;
    /// The upper halves.
    fn mul_high_u16(self, a: Self::I, b: Self::I) -> Self::I;
    /// |a| of each signed byte.
    fn abs_i8(self, a: Self::I) -> Self::I;
    /// Sum of all lanes, wrapping.
    fn sum_i(self, a: Self::I) -> i32;
    /// Largest lane, signed.
    fn largest_i(self, a: Self::I) -> i32;
    /// Logical shift right of each 32-bit lane.
    fn shr<const N: u32>(self, a: Self::I) -> Self::I;
    /// Shift left of each 32-bit lane.
    fn shl<const N: u32>(self, a: Self::I) -> Self::I;
    /// Logical shift right of each 32-bit lane by a number known to the caller alone, below 32.
    fn shr_by(self, a: Self::I, bits: u32) -> Self::I;
    /// Shift left likewise.
    fn shl_by(self, a: Self::I, bits: u32) -> Self::I;
    /// Rotates each 32-bit lane to the right, by less than 32.
    #[inline(always)]
    fn rotate_right(self, a: Self::I, bits: u32) -> Self::I {
        // By 0 the second shift is by 32, which leaves zeros in the vectors that take this one.
        self.or(self.shr_by(a, bits), self.shl_by(a, 32 - bits))
    }
    /// `table[index]` for each byte; indices below 16.
    fn look_up(self, table: [u8; 16], indices: Self::I) -> Self::I;
    /// `table[index mod N]` for each lane; `N` is a power of two.
    fn gather<const N: usize>(self, table: &[u32; N], indices: Self::I) -> Self::I;
    /// `LANES` half words, zero-extended.
    fn load_u16(self, x: &[u8]) -> Self::I;
    /// Lanes to f32.
    fn to_f(self, a: Self::I) -> Self::F;
    /// Lanes to i32, round to nearest even.
    fn to_i(self, a: Self::F) -> Self::I;
    /// The lanes' bits as f32.
    fn as_f(self, a: Self::I) -> Self::F;
    /// a ^ b
    fn xor(self, a: Self::I, b: Self::I) -> Self::I;
    /// The lanes' f32 bits.
    fn as_i(self, a: Self::F) -> Self::I;
    /// The lower halves of the lanes into `2 * LANES` bytes.
    fn store_u16(self, x: Self::I, out: &mut [u8]);
    /// c - a * b
    fn fnma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;

    /// Adds products of weight bytes 0..=127 and signed activation bytes to `sum`: four to a lane where
    /// [`Dot::is_in_lanes`], else two to each i16 half.
    fn dot(self, sum: Self::I, weights: Self::I, acts: Self::I) -> Self::I;
    /// The same for 8-bit weights, always four to a lane: bytes 0..=255 where [`Dot::is_unsigned`], else signed bytes;
    /// activations within -127..=127.
    fn dot_wide(self, sum: Self::I, weights: Self::I, acts: Self::I) -> Self::I;
    /// The sum of some [`Simd::dot`]s as i32 lanes.
    fn dot_lanes(self, sum: Self::I) -> Self::I;
    /// `total` and [`Simd::dot_lanes`] of `sum`, added up before what comes next where registers are few.
    #[inline(always)]
    fn add_lanes(self, total: Self::I, sum: Self::I) -> Self::I {
        self.add_i(total, self.dot_lanes(sum))
    }
    /// `sum + a.low * b.low + a.high * b.high` per lane of two i16; the sum fits i32.
    fn dot_pairs(self, sum: Self::I, a: Self::I, b: Self::I) -> Self::I;
    /// [`Simd::dot_pairs`], before what comes next where registers are few.
    #[inline(always)]
    fn add_scaled(self, total: Self::I, a: Self::I, b: Self::I) -> Self::I {
        self.dot_pairs(total, a, b)
    }
    /// The lower halves of the lanes of `low` and of `high`, as pairs of i16.
    #[inline(always)]
    fn pairs(self, low: Self::I, high: Self::I) -> Self::I {
        self.or(self.and(low, self.splat_i(0xffff)), self.shl::<16>(high))
    }
    /// The lanes of two vectors alternating, in an order that [`Simd::zipped_pairs`] undoes.
    fn zip(self, a: Self::I, b: Self::I) -> [Self::I; 2];
    /// Consecutive lanes, groups of `PER_GROUP` (8, 4 or 2), of which every two alternate then.
    fn alternate<const PER_GROUP: usize>(self, x: [Self::I; 2]) -> [Self::I; 2];
    /// The sums of some [`Simd::dot`]s with zipped weights, as pairs of i16 that they must fit.
    fn zipped_pairs(self, sums: [Self::I; 2]) -> Self::I;
    /// Byte `j` of every lane, as the factor that [`Simd::dot_pairs`] multiplies a [`Simd::dot`] sum with.
    fn scales_u8(self, a: Self::I) -> [Self::I; 4];
    /// The same for signed bytes.
    fn scales_i8(self, a: Self::I) -> [Self::I; 4];
    /// Adds 16-bit halves, wrapping.
    fn add_16(self, a: Self::I, b: Self::I) -> Self::I;
    /// Asks for the cache line at `address`, which need not exist, to come into L1, or only into L2.
    fn prefetch<const NEAR: bool>(self, address: *const u8);
}

/// CPUs that look up bytes in tables of hundreds of bytes.
pub trait ByteTables: Copy {
    /// Vector of bytes.
    type I: Copy;

    /// `table[index]` for each byte. The lower eight bits of an index are those of `low`, bit `8 + i` is whether `upper` has a
    /// bit in common with `tests[i]` in this byte. `N` is 256, 512 or 1024.
    fn look_up_bytes<const N: usize>(self, table: &[u8; N], low: Self::I, upper: Self::I, tests: [u32; 2]) -> Self::I;
    /// The lowest byte of every lane as all four.
    fn four_times(self, a: Self::I) -> Self::I;
    /// Byte `i` of a lane: the eight bits of `a`'s lane, or `b`'s for bytes 2 and 3, from bit `first + shifts[i]` on; what lies
    /// beyond the lane is undefined.
    fn windows(self, a: Self::I, b: Self::I, first: usize, shifts: [u8; 4]) -> Self::I;
    /// 128 more than `table[index]`, less than 128, for the lower three bits of each byte, or 128 less that where `planes` has
    /// bit `plane` of the byte set.
    fn levels(self, table: [u8; 8], indices: Self::I, planes: Self::I, plane: usize) -> Self::I;
}

/// No such look-ups: there is no value of this type.
#[derive(Clone, Copy)]
pub struct NoByteTables<I>(std::convert::Infallible, PhantomData<I>);

impl<I: Copy> ByteTables for NoByteTables<I> {
    type I = I;

    fn look_up_bytes<const N: usize>(self, _table: &[u8; N], _low: I, _upper: I, _tests: [u32; 2]) -> I {
        match self.0 {}
    }
    fn four_times(self, _a: I) -> I {
        match self.0 {}
    }
    fn windows(self, _a: I, _b: I, _first: usize, _shifts: [u8; 4]) -> I {
        match self.0 {}
    }
    fn levels(self, _table: [u8; 8], _indices: I, _planes: I, _plane: usize) -> I {
        match self.0 {}
    }
}

/// CPUs that multiply pairs of bf16.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only x86-64 has it so far"))]
#[cfg(feature = "bench")]
pub trait Bf16Dot: Simd {
    /// `sum + a.low * b.low + a.high * b.high` per lane of two bf16.
    fn dot_bf16(self, sum: Self::F, a: Self::I, b: Self::I) -> Self::F;
}

/// e^x for x <= 88, relative error below 3e-7; results below e^-87 are flushed to e^-87.
///
/// Range reduction by ln 2 in two parts and a polynomial of degree 5 in the remainder (coefficients of the Cephes
/// library's `expf`).
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    if S::FAST { exp_here(s, x) } else { called(s, x, exp_here) }
}

/// `f(s, x)` as a call: a tier that is not [`Simd::FAST`] is to be small, and it has no features that a call would lose.
#[inline(never)]
pub(super) fn called<S: Simd>(s: S, x: S::F, f: impl FnOnce(S, S::F) -> S::F) -> S::F {
    f(s, x)
}

#[inline(always)]
fn exp_here<S: Simd>(s: S, x: S::F) -> S::F {
    let x = s.max(x, s.splat(-87.0));
    let n = s.to_i(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    let nf = s.to_f(n);
    let r = s.fma(nf, s.splat(-0.693_359_4), x);
    let r = s.fma(nf, s.splat(2.121_944_4e-4), r);
    let mut p = s.splat(1.987_569_2e-4);
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_66, 0.5] {
        p = s.fma(p, r, s.splat(c));
    }
    let p = s.fma(p, s.mul(r, r), s.add(r, s.splat(1.0)));
    let scale = s.as_f(s.shl::<23>(s.add_i(n, s.splat_i(127))));
    s.mul(p, scale)
}
