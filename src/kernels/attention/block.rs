//! Blocks of `N` rows x `V` vectors in registers. Plain loops: closures that are not inlined would lose the tier.

use crate::kernels::simd::Simd;

/// `V` vectors from the start of `x`.
#[inline(always)]
fn load_row<S: Simd, const V: usize>(s: S, x: &[f32]) -> [S::F; V] {
    let x = &x[..V * S::LANES];
    let mut row = [s.splat(0.0); V];
    for v in 0..V {
        row[v] = s.load(&x[v * S::LANES..]);
    }
    row
}

/// `V` vectors of each row of `x` from column `at` on.
#[inline(always)]
pub(super) fn load_block<S: Simd, const N: usize, const V: usize>(
    s: S,
    x: &[f32],
    stride: usize,
    at: usize,
) -> [[S::F; V]; N] {
    let mut block = [[s.splat(0.0); V]; N];
    for n in 0..N {
        block[n] = load_row(s, &x[n * stride + at..]);
    }
    block
}

/// The inverse of [`load_block`].
#[inline(always)]
pub(super) fn store_block<S: Simd, const N: usize, const V: usize>(
    s: S,
    block: [[S::F; V]; N],
    x: &mut [f32],
    stride: usize,
    at: usize,
) {
    for n in 0..N {
        let x = &mut x[n * stride + at..][..V * S::LANES];
        for v in 0..V {
            s.store(block[n][v], &mut x[v * S::LANES..]);
        }
    }
}

/// `block[n][v] += x[v] * factor(n)`; the factors are broadcast straight from memory.
#[inline(always)]
pub(super) fn add_products<'a, S: Simd, const N: usize, const V: usize>(
    s: S,
    x: [S::F; V],
    factor: impl Fn(usize) -> &'a f32,
    block: &mut [[S::F; V]; N],
) {
    for (n, row) in block.iter_mut().enumerate() {
        let factor = s.splat(*factor(n));
        for (sum, &x) in row.iter_mut().zip(&x) {
            *sum = s.fma(x, factor, *sum);
        }
    }
}
