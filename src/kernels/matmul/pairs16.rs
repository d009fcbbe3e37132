//! Float weights of 16 bits times activations, many tokens: both become 16-bit integers with a scale per [`COLS16`] columns,
//! of which the CPU multiplies twice as many at once as of f32, or more.
//!
//! A row's weights are scaled as [`row_scaling`] does, a token's activations as its neighbour `scaling`, so sums fit i32.
//! Rounding moves a product of a weight and an activation by up to half a step of either: with elements of like sizes by 1e-4
//! and 5e-5 of itself in standard deviation. An f16 weight has been rounded by 2.1e-4 of itself before, a bf16 weight by
//! 1.7e-3. Dot products of bf16, where a CPU has them, are as fast on Zen 4 and round activations by 1.7e-3 of themselves:
//! a hundred times further from the exact answer (mean KL of a small model: 1.6e-4 and 1.2e-6). Weights above 1e18 make a row NaN, those below 1e-20 are zeros.

use super::{Matrix, NextStripe, floats, in_blocks, in_order, prefetch_block, stripe_rows, vectors, write_block};
use crate::bytes;
use crate::kernels::activations::{ActivationRows, Activations};
use crate::kernels::activations16::{COLS16, MAGIC, row_scaling};
use crate::kernels::formats::dedicated::FloatFormat;
use crate::kernels::partition::OutTile;
use crate::kernels::simd::Simd;
use crate::quant::{PANEL_ROWS, SUPER};

/// Columns `cols` of `out`, whole stripes of `V` vectors; order as in [`super::int::tiled`]. The tile holds pairs of i16,
/// `[k / 2][V * LANES][2]`, and scales `[k / COLS16][V * LANES]`.
#[inline(always)]
pub fn tiled<S: Simd, F: FloatFormat, const V: usize, const N: usize>(
    s: S,
    w: &Matrix<'_>,
    acts: &Activations<'_>,
    out: &mut OutTile<'_, f32>,
    accumulate: bool,
    (tile, k_cols): (&mut [u8], usize),
) {
    let width = V * S::LANES;
    assert!(out.cols.is_multiple_of(PANEL_ROWS) && k_cols.is_multiple_of(SUPER) && w.cols == acts.layout.cols());
    // As many bytes as the int8 tile.
    let k_cols = k_cols / 2;
    let (pairs, scales) = tile.split_at_mut(k_cols / 2 * width * 4);
    let scales: &mut [f32] = bytes::cast_mut(&mut scales[..k_cols / COLS16 * width * 4]);
    for k0 in (0..w.cols).step_by(k_cols) {
        let k_len = k_cols.min(w.cols - k0);
        for col in (0..out.cols).step_by(width) {
            let stripe = stripe_rows::<S, V>(out, col);
            let stretch = (k0, k_cols, k_cols / F::STEP * F::BYTES);
            let next = NextStripe::after(w, (out, col, width), stretch, acts.n_tokens);
            for v in 0..stripe / S::LANES {
                let lane = out.col0 + col + v * S::LANES;
                let panel = &w.panel(lane / PANEL_ROWS)[k0 / F::STEP * F::BYTES..];
                let place = (&mut pairs[v * S::LANES * 4..], &mut scales[v * S::LANES..]);
                fill::<S, F>(s, (panel, lane % PANEL_ROWS / S::LANES), place, (width, k_len));
            }
            macro_rules! run {
                ($token:expr, $n:tt) => {
                    prefetch_block::<S, V, $n>(s, out, ($token, col));
                    next.ask(s, $token, $n);
                    let sums = multiply::<S, V, $n>(s, (&*pairs, &*scales), &acts.rows($token, $n), (k0, k_len));
                    write_block(s, sums, out, ($token, col), stripe, accumulate || k0 > 0);
                };
            }
            in_blocks!(acts, [N, 2, 1], run);
        }
    }
}

/// Columns `k` and `k + 1` of one vector of a panel that has `k_len`.
#[inline(always)]
fn two<S: Simd, F: FloatFormat>(s: S, panel: &[u8], (k, k_len): (usize, usize), half: usize) -> [S::F; 2] {
    let [first, mut second] = F::load(s, &panel[k / F::STEP * F::BYTES..], half);
    if k + 1 >= k_len {
        second = s.splat(0.0);
    } else if F::STEP == 1 {
        [second, _] = F::load(s, &panel[(k + 1) * F::BYTES..], half);
    }
    [first, second]
}

/// Unpacks `k_len` columns of one vector of a panel into every `width`-th place of the tile.
#[inline(always)]
fn fill<S: Simd, F: FloatFormat>(
    s: S,
    (panel, half): (&[u8], usize),
    (pairs, scales): (&mut [u8], &mut [f32]),
    (width, k_len): (usize, usize),
) {
    for (block, k0) in (0..k_len).step_by(COLS16).enumerate() {
        let cols = || (k0..k_len.min(k0 + COLS16)).step_by(2);
        let mut squares = [s.splat(0.0); 2];
        for k in cols() {
            let x = two::<S, F>(s, panel, (k, k_len), half);
            for i in 0..2 {
                squares[i] = s.fma(x[i], x[i], squares[i]);
            }
        }
        let (factor, scale) = row_scaling(s, s.add(squares[0], squares[1]));
        s.store(scale, &mut scales[block * width..]);
        for k in cols() {
            let [low, high] = two::<S, F>(s, panel, (k, k_len), half);
            let (low, high) = (s.fma(low, factor, s.splat(MAGIC)), s.fma(high, factor, s.splat(MAGIC)));
            s.store_bytes(s.pairs(s.as_i(low), s.as_i(high)), &mut pairs[k / 2 * width * 4..]);
        }
    }
}

/// `N` tokens over the tile's columns, `k0 .. k0 + k_len` of the matrix.
#[inline(always)]
fn multiply<S: Simd, const V: usize, const N: usize>(
    s: S,
    (pairs, scales): (&[u8], &[f32]),
    rows: &ActivationRows<'_>,
    (k0, k_len): (usize, usize),
) -> [[S::F; N]; V] {
    let width = V * S::LANES;
    let mut sums = [[s.splat(0.0); N]; V];
    for block in 0..k_len.div_ceil(COLS16) {
        let n_pairs = (k_len - block * COLS16).min(COLS16).div_ceil(2);
        let first = block * COLS16 / 2;
        let mut acc = [[s.splat_i(0); N]; V];
        for (pair, w) in pairs[first * width * 4..][..n_pairs * width * 4].chunks_exact(width * 4).enumerate() {
            let w = vectors::<S, V>(s, w);
            for n in 0..N {
                let a = s.splat_i(rows.int16s(n, k0 / 2 + first + pair));
                for v in 0..V {
                    acc[v][n] = s.dot_pairs(acc[v][n], w[v], a);
                }
            }
            in_order();
        }
        let d = floats::<S, V>(s, &scales[block * width..]);
        for n in 0..N {
            let scale = s.splat(rows.scale16(n, k0 / COLS16 + block));
            for v in 0..V {
                sums[v][n] = s.fma(s.mul(s.to_f(acc[v][n]), d[v]), scale, sums[v][n]);
            }
        }
    }
    sums
}
