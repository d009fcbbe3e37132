//! What a kernel needs of a CPU: the operations on one vector, implemented once per tier.
//!
//! Kernels are generic over [`Simd`] and are compiled once per tier inside functions that carry the tier's
//! `#[target_feature]` list (see `tier!` in the parent). Every method is `#[inline(always)]`, so nothing of this
//! trait is left in the binary.

/// One vector unit. A value of the type is the proof that the CPU has it: only the tier entry points make one.
///
/// `F` holds `LANES` f32; `I` holds `LANES` i32, or `4 * LANES` bytes.
pub trait Simd: Copy {
    /// f32 lanes. A panel is `16 / LANES` vectors wide.
    const LANES: usize;
    /// What [`Simd::bias`] adds to signed bytes: 128 where the wide dot product wants them unsigned, else 0.
    /// A power of two or zero.
    const BIAS: i32;
    /// Vector of f32.
    type F: Copy;
    /// Vector of i32, or of bytes.
    type I: Copy;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::F;
    /// The first `LANES` of `x`.
    fn load(self, x: &[f32]) -> Self::F;
    /// Into the first `LANES` of `out`.
    fn store(self, x: Self::F, out: &mut [f32]);
    /// `LANES` f16 from `2 * LANES` bytes.
    fn load_f16(self, x: &[u8]) -> Self::F;
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
    /// Sum of all lanes.
    fn sum(self, a: Self::F) -> f32;
    /// Largest lane.
    fn largest(self, a: Self::F) -> f32;

    /// All lanes `x`.
    fn splat_i(self, x: i32) -> Self::I;
    /// The first `4 * LANES` bytes of `x`.
    fn load_bytes(self, x: &[u8]) -> Self::I;
    /// Into the first `4 * LANES` bytes of `out`.
    fn store_bytes(self, x: Self::I, out: &mut [u8]);
    /// `LANES` bytes, zero-extended.
    fn load_u8(self, x: &[u8]) -> Self::I;
    /// `LANES` bytes, sign-extended.
    fn load_i8(self, x: &[u8]) -> Self::I;
    /// Lanes (each within i8) into `LANES` bytes.
    fn store_i8(self, x: Self::I, out: &mut [u8]);
    /// a & b
    fn and(self, a: Self::I, b: Self::I) -> Self::I;
    /// a | b
    fn or(self, a: Self::I, b: Self::I) -> Self::I;
    /// a + b per lane, wrapping.
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// Sum of all lanes, wrapping.
    fn sum_i(self, a: Self::I) -> i32;
    /// Logical shift right of each 32-bit lane.
    fn shr<const N: u32>(self, a: Self::I) -> Self::I;
    /// Shift left of each 32-bit lane.
    fn shl<const N: u32>(self, a: Self::I) -> Self::I;
    /// Lanes to f32.
    fn to_f(self, a: Self::I) -> Self::F;
    /// Lanes to i32, round to nearest even.
    fn to_i(self, a: Self::F) -> Self::I;
    /// The lanes' bits as f32.
    fn as_f(self, a: Self::I) -> Self::F;
    /// Signed bytes as [`Simd::dot_wide`] wants its weights: plus `BIAS`.
    fn bias(self, a: Self::I) -> Self::I;
    /// `acc + sum of 4 (weight byte 0..=127) * (signed activation byte)` per lane.
    fn dot(self, acc: Self::I, weights: Self::I, acts: Self::I) -> Self::I;
    /// The same for weights prepared by [`Simd::bias`]; activations within -127..=127. The result still
    /// contains `BIAS * sum(activations)`.
    fn dot_wide(self, acc: Self::I, weights: Self::I, acts: Self::I) -> Self::I;
}

/// e^x for x <= 88, relative error below 3e-7; results below e^-87 are flushed to e^-87.
///
/// Range reduction by ln 2 in two parts and a polynomial of degree 5 in the remainder (coefficients of the Cephes
/// library's `expf`).
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::F) -> S::F {
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
