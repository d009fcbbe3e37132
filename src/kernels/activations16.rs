//! Rows of floats as 16-bit integers and a scale, so that sums of products fit i32.
//!
//! One factor has a Euclidean norm of [`LONG_NORM`] or, where that is less, elements of up to [`ROW_NORM`]; the other a norm
//! of [`ROW_NORM`]. Rounding adds up to `sqrt(n) / 2` to the norm of `n` elements, and by Cauchy-Schwarz no sum over any of
//! them exceeds the product of the norms.
//!
//! A NaN or an infinity makes the scale NaN, and with it all that it is multiplied with.

use super::simd::Simd;

/// Columns of a matrix that share a scale.
pub const COLS16: usize = 128;

/// Euclidean norm of a row without large elements.
pub const LONG_NORM: f32 = 65000.0;

/// Euclidean norm of the other factor, largest element of either.
pub const ROW_NORM: f32 = 32700.0;

/// Most elements of a row.
pub const ELEMENTS_MAX: usize = 16384;

const _: () = {
    // Half of the square root of `ELEMENTS_MAX`.
    let rounding = 64;
    assert!(4 * rounding * rounding == ELEMENTS_MAX && COLS16 <= ELEMENTS_MAX);
    assert!((LONG_NORM as usize + 1 + rounding) * (ROW_NORM as usize + 1 + rounding) <= i32::MAX as usize);
};

/// Adding it leaves a number rounded to an integer in the lower 16 bits.
pub const MAGIC: f32 = 12_582_912.0;

/// What the elements of a row are multiplied with, and the scale of the integers that they round to.
#[inline(always)]
pub fn scaling<S: Simd>(s: S, row: &[f32]) -> (f32, f32) {
    let mut largest = s.splat(0.0);
    for x in row.chunks_exact(S::LANES) {
        largest = s.max(largest, s.abs(s.load(x)));
    }
    // Below 1e-30 all are zeros; above 1e18 squares would be infinite.
    let largest = s.largest(largest);
    let inverse = if largest > 1e-30 { 1.0 / largest } else { 0.0 };
    let mut squares = s.splat(0.0);
    for x in row.chunks_exact(S::LANES) {
        let x = s.mul(s.load(x), s.splat(inverse));
        squares = s.fma(x, x, squares);
    }
    // The smaller of two; NaN if there is one among the squares.
    let within = LONG_NORM / s.sum(squares).sqrt();
    let factor = if within > ROW_NORM { ROW_NORM } else { within } * inverse;
    (factor, if factor == 0.0 { 0.0 } else { 1.0 / factor })
}

/// The same for rows that lie in the lanes and get a norm of [`ROW_NORM`], given the sums of their squares.
#[inline(always)]
pub fn row_scaling<S: Simd>(s: S, squares: S::F) -> (S::F, S::F) {
    let found = s.sqrt(squares);
    // In this order a NaN is what `max` returns.
    let factor = s.div(s.splat(ROW_NORM), s.max(s.splat(1e-20), found));
    // Infinity less infinity is NaN.
    (factor, s.fma(found, s.splat(1.0 / ROW_NORM), s.sub(found, found)))
}

/// Rounds a row times `factor` to 16-bit integers.
#[inline(always)]
pub fn round<S: Simd>(s: S, row: &[f32], factor: f32, out: &mut [u8]) {
    for (x, out) in row.chunks_exact(S::LANES).zip(out.chunks_exact_mut(2 * S::LANES)) {
        let rounded = s.fma(s.load(x), s.splat(factor), s.splat(MAGIC));
        s.store_u16(s.as_i(rounded), out);
    }
}
