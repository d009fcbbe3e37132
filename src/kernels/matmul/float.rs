//! Float weights times f32 activations. Of 16 bits, these are for few tokens ([`super::pairs16`]).

use super::{Matrix, NextStripe, floats, in_blocks, prefetch, prefetch_block, stripe_rows, write, write_block};
use crate::bytes;
use crate::kernels::activations::{ActivationRows, Activations};
use crate::kernels::formats::dedicated::FloatFormat;
use crate::kernels::partition::OutTile;
use crate::kernels::simd::Simd;
use crate::kernels::tiling::PrefetchDistance;
use crate::quant::{PANEL_ROWS, SUPER};

/// Few tokens: the panels of `out`'s columns times all tokens.
#[inline(always)]
pub fn stream<S: Simd, F: FloatFormat>(
    s: S,
    w: &Matrix<'_>,
    acts: &Activations<'_>,
    out: &mut OutTile<'_, f32>,
    accumulate: bool,
    ahead: PrefetchDistance,
) {
    let (first, count) = (out.col0 / PANEL_ROWS, out.cols.div_ceil(PANEL_ROWS));
    for p in 0..count {
        let panel = w.panel(first + p);
        macro_rules! run {
            ($token:expr, $n:tt) => {
                let rows = acts.rows($token, $n);
                for half in 0..PANEL_ROWS / S::LANES {
                    let sums = panel_sums::<S, F, $n>(s, (panel, ahead), w.cols, &rows, half);
                    for (n, sum) in sums.into_iter().enumerate() {
                        write(s, sum, &mut out.row($token + n)[p * PANEL_ROWS + half * S::LANES..], accumulate);
                    }
                }
            };
        }
        match S::FAST {
            true => in_blocks!(acts, [4, 2, 1], run),
            false => in_blocks!(acts, [1], run),
        }
    }
}

/// One vector of rows times `N` tokens.
#[inline(always)]
fn panel_sums<S: Simd, F: FloatFormat, const N: usize>(
    s: S,
    (panel, ahead): (&[u8], PrefetchDistance),
    cols: usize,
    rows: &ActivationRows<'_>,
    half: usize,
) -> [S::F; N] {
    // Four chains a token hide the latency of the fused multiply-add.
    let mut sums = [[s.splat(0.0); 4]; N];
    let whole = cols / (4 * F::STEP) * (4 * F::STEP);
    let (body, tail) = panel.split_at(whole / F::STEP * F::BYTES);
    for (g, steps) in body.chunks_exact(4 * F::BYTES).enumerate() {
        if half == 0 {
            (0..F::BYTES / 16).for_each(|line| prefetch(s, ahead, steps.as_ptr(), line));
        }
        for i in 0..4 {
            let values = F::load(s, &steps[i * F::BYTES..], half);
            for (j, &value) in values.iter().enumerate().take(F::STEP) {
                for n in 0..N {
                    let a = s.splat(rows.value(n, (g * 4 + i) * F::STEP + j));
                    sums[n][i] = s.fma(value, a, sums[n][i]);
                }
            }
        }
    }
    for (i, step) in tail.chunks_exact(F::BYTES).enumerate() {
        let values = F::load(s, step, half);
        for (j, &value) in values.iter().enumerate().take(F::STEP) {
            let k = whole + i * F::STEP + j;
            for sums in sums.iter_mut().enumerate().filter(|_| k < cols) {
                sums.1[0] = s.fma(value, s.splat(rows.value(sums.0, k)), sums.1[0]);
            }
        }
    }
    let mut totals = [s.splat(0.0); N];
    for (total, [a, b, c, d]) in totals.iter_mut().zip(sums) {
        *total = s.add(s.add(a, b), s.add(c, d));
    }
    totals
}

/// Many tokens: columns `cols` of `out`, whole stripes of `V` vectors; order as in [`super::int::tiled`]. The tile holds
/// f32, `[k][V * LANES]`.
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
    let k_cols = k_cols / 4;
    let tile: &mut [f32] = bytes::cast_mut(&mut tile[..k_cols * width * 4]);
    for k0 in (0..w.cols).step_by(k_cols) {
        let k_len = k_cols.min(w.cols - k0);
        for col in (0..out.cols).step_by(width) {
            let stripe = stripe_rows::<S, V>(out, col);
            let stretch = (k0, k_cols, k_cols / F::STEP * F::BYTES);
            let next = NextStripe::after(w, (out, col, width), stretch, acts.n_tokens);
            for v in 0..stripe / S::LANES {
                let lane = out.col0 + col + v * S::LANES;
                let panel = &w.panel(lane / PANEL_ROWS)[k0 / F::STEP * F::BYTES..];
                fill::<S, F>(s, panel, &mut tile[v * S::LANES..], (width, k_len), lane % PANEL_ROWS / S::LANES);
            }
            macro_rules! run {
                ($token:expr, $n:tt) => {
                    prefetch_block::<S, V, $n>(s, out, ($token, col));
                    next.ask(s, $token, $n);
                    let sums = multiply::<S, V, $n>(s, &tile[..k_len * width], &acts.rows($token, $n), k0);
                    write_block(s, sums, out, ($token, col), stripe, accumulate || k0 > 0);
                };
            }
            in_blocks!(acts, [N, 4, 1], run);
        }
    }
}

/// Unpacks `k_len` columns of one vector of a panel into every `width`-th place of the tile.
#[inline(always)]
fn fill<S: Simd, F: FloatFormat>(s: S, panel: &[u8], tile: &mut [f32], (width, k_len): (usize, usize), half: usize) {
    let whole = k_len / F::STEP;
    for (i, step) in panel.chunks_exact(F::BYTES).take(whole).enumerate() {
        let values = F::load(s, step, half);
        for j in 0..F::STEP {
            s.store(values[j], &mut tile[(i * F::STEP + j) * width..]);
        }
    }
    if whole * F::STEP < k_len {
        s.store(F::load(s, &panel[whole * F::BYTES..], half)[0], &mut tile[whole * F::STEP * width..]);
    }
}

#[inline(always)]
fn multiply<S: Simd, const V: usize, const N: usize>(
    s: S,
    tile: &[f32],
    rows: &ActivationRows<'_>,
    k0: usize,
) -> [[S::F; N]; V] {
    let mut sums = [[s.splat(0.0); N]; V];
    for (k, step) in tile.chunks_exact(V * S::LANES).enumerate() {
        let w = floats::<S, V>(s, step);
        for n in 0..N {
            let a = s.splat(rows.value(n, k0 + k));
            for v in 0..V {
                sums[v][n] = s.fma(w[v], a, sums[v][n]);
            }
        }
    }
    sums
}
