//! The loop nests of matrix products, `out[t, r] (+)= sum_k w[r, k] * x[t, k]`: [`int`] and [`float`] weights, each
//! once for few tokens and once for many ([`pairs16`] those of 16 bits), and [`unpacked`] ones, which are unpacked for both.
//!
//! **Few tokens** (decode): a panel is walked front to back and unpacked in registers; bound by memory.
//!
//! **Many tokens** (prefill): panels x `k_cols` columns are unpacked into a tile that stays in L1 and one register
//! kernel of `V` vectors x `N` tokens runs over all tokens. Unpacking is divided by the number of tokens, so every
//! weight type runs at about the same speed.

#![allow(clippy::needless_range_loop, reason = "arrays of registers are indexed side by side")]

pub mod float;
pub mod int;
pub mod kind;
pub mod pairs16;
pub mod unpacked;

use std::sync::atomic::{Ordering, compiler_fence};

use super::partition::OutTile;
use super::simd::Simd;
use super::tiling::PrefetchDistance;
use crate::quant::PANEL_ROWS;

/// A weight matrix in panels (see [`crate::quant`]).
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// The panels, back to back.
    pub panels: &'a [u8],
    /// Bytes of one panel.
    pub panel_bytes: usize,
    /// Columns: the length of a row.
    pub cols: usize,
}

impl<'a> Matrix<'a> {
    #[inline(always)]
    fn panel(&self, index: usize) -> &'a [u8] {
        &self.panels[index * self.panel_bytes..][..self.panel_bytes]
    }
}

/// Asks for the cache lines that lie as far as `ahead` says after line `line` of `data`; they may lie beyond the matrix.
/// Without a branch: in front of one the compiler keeps a block's loads on the stack until the block is over. A distance of
/// 0 asks for what is loaded next anyway.
#[inline(always)]
fn prefetch<S: Simd>(s: S, ahead: PrefetchDistance, data: *const u8, line: usize) {
    let address = data.wrapping_add(line * 64);
    s.prefetch::<true>(address.wrapping_add(ahead.l1_bytes));
    s.prefetch::<false>(address.wrapping_add(ahead.l2_bytes));
}

/// The weights of the stripe that comes next. They are asked for into L2 while this one is multiplied, a share with each of
/// its tokens: unpacking is as fast as they come.
#[derive(Clone, Copy)]
struct NextStripe {
    weights: *const u8,
    panel_bytes: usize,
    panels: usize,
    lines: usize,
    lines_per_token: usize,
}

impl NextStripe {
    /// Behind the stripe of `width` rows at column `col` of `out`, and columns `k0` of the matrix, whose stretches of `k_cols` have
    /// `bytes`. After the last of the block's stripes it is where that of the worker's next block most likely begins.
    #[inline(always)]
    fn after(
        w: &Matrix<'_>,
        (out, col, width): (&OutTile<'_, f32>, usize, usize),
        (k0, k_cols, bytes): (usize, usize, usize),
        n_tokens: usize,
    ) -> NextStripe {
        let (next_col, next_k) = match (col + width < out.cols, k0 + k_cols < w.cols) {
            (true, _) => (col + width, k0),
            (false, true) => (0, k0 + k_cols),
            (false, false) => (out.cols, 0),
        };
        let skipped = (out.col0 + next_col) / PANEL_ROWS * w.panel_bytes + next_k / k_cols * bytes;
        let lines = (bytes * k_cols.min(w.cols - next_k) / k_cols).div_ceil(64);
        NextStripe {
            weights: w.panels.as_ptr().wrapping_add(skipped),
            panel_bytes: w.panel_bytes,
            panels: width / PANEL_ROWS,
            lines,
            lines_per_token: lines.div_ceil(n_tokens.max(1)),
        }
    }

    /// Asks for the share of `n` tokens from `token` on.
    #[inline(always)]
    fn ask<S: Simd>(&self, s: S, token: usize, n: usize) {
        for line in token * self.lines_per_token..((token + n) * self.lines_per_token).min(self.lines) {
            for panel in 0..self.panels {
                s.prefetch::<false>(self.weights.wrapping_add(panel * self.panel_bytes + line * 64));
            }
        }
    }
}

/// Loads of what comes behind stay behind. The compiler unrolls a loop over the units of a group and would begin with
/// all loads of all units, more than there are registers, and keep them on the stack.
#[inline(always)]
fn in_order() {
    compiler_fence(Ordering::SeqCst);
}

// Loops, not closures, fill the arrays of registers: a closure that the compiler chooses not to inline is compiled
// without the tier's features, and passes vectors through memory.

/// `V` vectors of bytes, side by side.
#[inline(always)]
fn vectors<S: Simd, const V: usize>(s: S, bytes: &[u8]) -> [S::I; V] {
    let mut vectors = [s.splat_i(0); V];
    for (v, vector) in vectors.iter_mut().enumerate() {
        *vector = s.load_bytes(&bytes[v * S::LANES * 4..]);
    }
    vectors
}

/// `V` vectors of f32, side by side.
#[inline(always)]
fn floats<S: Simd, const V: usize>(s: S, values: &[f32]) -> [S::F; V] {
    let mut vectors = [s.splat(0.0); V];
    for (v, vector) in vectors.iter_mut().enumerate() {
        *vector = s.load(&values[v * S::LANES..]);
    }
    vectors
}

#[inline(always)]
fn write<S: Simd>(s: S, value: S::F, out: &mut [f32], accumulate: bool) {
    let value = if accumulate { s.add(s.load(out), value) } else { value };
    s.store(value, out);
}

/// Asks for the part of `out` that [`write_block`] will write once the sums are there.
#[inline(always)]
fn prefetch_block<S: Simd, const V: usize, const N: usize>(
    s: S,
    out: &mut OutTile<'_, f32>,
    (token, col): (usize, usize),
) {
    for n in 0..N {
        let row = out.row(token + n).as_ptr().wrapping_add(col);
        for line in (0..V * S::LANES).step_by(16) {
            s.prefetch::<true>(row.wrapping_add(line).cast());
        }
    }
}

/// Rows of the stripe of `V` vectors at column `col` of `out`: the last may be one panel where others are two. What its tile
/// has in the place of the second are numbers of no meaning, whose sums are not written.
#[inline(always)]
fn stripe_rows<S: Simd, const V: usize>(out: &OutTile<'_, f32>, col: usize) -> usize {
    let width = V * S::LANES;
    if width > PANEL_ROWS { width.min(out.cols - col) } else { width }
}

/// Writes, or adds, the sums of `N` tokens and of `V` vectors, or of those of them that `rows` of the matrix fill.
#[inline(always)]
fn write_block<S: Simd, const V: usize, const N: usize>(
    s: S,
    sums: [[S::F; N]; V],
    out: &mut OutTile<'_, f32>,
    (token, col): (usize, usize),
    rows: usize,
    accumulate: bool,
) {
    for n in 0..N {
        let row = &mut out.row(token + n)[col..][..rows];
        for (v, sums) in sums.iter().enumerate() {
            if v * S::LANES < rows {
                write(s, sums[n], &mut row[v * S::LANES..], accumulate);
            }
        }
    }
}

/// Takes the tokens of `$acts` from `$first` on in blocks of the given sizes, largest first: `$run` sees the first token and
/// the size.
macro_rules! in_blocks {
    ($acts:expr, [$($size:tt),+], $run:ident) => {
        in_blocks!($acts, 0, [$($size),+], $run)
    };
    ($acts:expr, $first:expr, [$($size:tt),+], $run:ident) => {{
        let mut token = $first;
        $(
            while $acts.n_tokens - token >= $size {
                $run!(token, $size);
                token += $size;
            }
        )+
    }};
}
use in_blocks;
