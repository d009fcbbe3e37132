//! Integer weights times int8 activations.
//!
//! With integer scales (the k-quants) a block of 256 columns is summed in integers: the dot product of a group is
//! multiplied by its scale as an i16 pair, one instruction instead of a conversion and a multiply-add, and minima meet
//! the sums of the activations the same way. Nothing is rounded but the two products per block that make it a float.

use std::ops::Range;

use super::super::Ahead;
use super::super::acts::{Acts, Rows, paired};
use super::super::formats::IntFormat;
use super::super::grid::Block;
use super::super::simd::Simd;
use super::{Matrix, floats, in_blocks, in_order, prefetch, prefetch_block, vectors, write, write_block};
use crate::bytes;
use crate::quant::{GROUP, PANEL_ROWS, SUPER};

/// Adds four products (two where [`Simd::VNNI`] is false) to the lanes of a group's sum.
#[inline(always)]
fn dot<S: Simd, F: IntFormat>(s: S, sum: S::I, w: S::I, a: S::I) -> S::I {
    if F::QUANT_MAX > 127 { s.dot_wide(sum, w, a) } else { s.dot(sum, w, a) }
}

/// A group's sum as i32 lanes.
#[inline(always)]
fn lanes<S: Simd, F: IntFormat>(s: S, sum: S::I) -> S::I {
    if F::QUANT_MAX > 127 { sum } else { s.dot_lanes(sum) }
}

/// Whether sums must be folded in smaller portions than a group to fit i16: with any activations where a sum is a pair of
/// i16 to begin with, else with dense ones.
#[inline(always)]
const fn portions<S: Simd, const DENSE: bool>() -> bool {
    !S::VNNI || DENSE
}

/// Dot products that then fit.
#[inline(always)]
const fn dots_max<S: Simd, F: IntFormat>() -> usize {
    if S::VNNI { dense_units::<F>() } else { 32767 / (2 * 127 * F::QUANT_MAX) }
}

/// Units of four columns that fit i16 in a dense block: 8 columns around zero, or what the unsigned quants allow.
#[inline(always)]
const fn dense_units<F: IntFormat>() -> usize {
    if F::OFFSET { 2 } else { 32767 / (4 * 127 * F::QUANT_MAX) }
}

/// Whether sums begin with the record's starting values; else these meet the total ([`offset`]).
#[inline(always)]
const fn starts<S: Simd, F: IntFormat>() -> bool {
    F::OFFSET && (S::VNNI || !F::INT_SCALES && F::QUANT_MAX <= 127)
}

/// What a sum from column `k` of block `b` (of 256 columns) on begins with.
#[inline(always)]
fn start<S: Simd, F: IntFormat, const DENSE: bool>(s: S, rows: &Rows<'_>, n: usize, (b, k): (usize, usize)) -> S::I {
    match (starts::<S, F>(), DENSE) {
        (false, _) => s.splat_i(0),
        (true, false) => s.splat_i(rows.start(n, b, place::<F>(k, F::GROUP))),
        (true, true) => s.splat_i(rows.start8(n, b, place::<F>(k, 8))),
    }
}

/// Where a record has what belongs to the `per` columns from `k` on.
#[inline(always)]
const fn place<F: IntFormat>(k: usize, per: usize) -> usize {
    if F::INT_SCALES { paired(k / per, GROUP / per) } else { k / per }
}

/// Takes the offset out of the total of a group whose sums did not begin with it.
#[inline(always)]
fn offset<S: Simd, F: IntFormat>(
    s: S,
    total: S::I,
    scale: S::I,
    (rows, n): (&Rows<'_>, usize),
    (b, group): (usize, usize),
) -> S::I {
    match F::OFFSET && !starts::<S, F>() {
        true => s.dot_pairs(total, s.splat_i(rows.start(n, b, place::<F>(group * F::GROUP, F::GROUP))), scale),
        false => total,
    }
}

/// Few tokens: the panels of `out`'s columns times all tokens.
#[inline(always)]
pub fn stream<S: Simd, F: IntFormat>(
    s: S,
    w: &Matrix<'_>,
    acts: &Acts<'_>,
    out: &mut Block<'_, f32>,
    accumulate: bool,
    ahead: Ahead,
) {
    let (first, count) = (out.col0 / PANEL_ROWS, out.cols.div_ceil(PANEL_ROWS));
    for p in 0..count {
        let panel = w.panel(first + p);
        macro_rules! run {
            ($token:expr, $n:tt) => {
                let rows = acts.rows($token, $n);
                for half in 0..PANEL_ROWS / S::LANES {
                    let sums = panel_sums::<S, F, $n>(s, (panel, ahead), &rows, half);
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
fn panel_sums<S: Simd, F: IntFormat, const N: usize>(
    s: S,
    (panel, ahead): (&[u8], Ahead),
    rows: &Rows<'_>,
    half: usize,
) -> [S::F; N] {
    let mut sums = [s.splat(0.0); N];
    for (b, block) in panel.chunks_exact(F::BODY + F::TAIL).enumerate() {
        let (body, tail) = block.split_at(F::BODY);
        // Where the block begins: the 256 columns it lies in, and the column in there.
        let at = (b * F::COLS / SUPER, b * F::COLS % SUPER);
        let totals = match F::INT_SCALES && S::VNNI && rows.any_dense::<N>(b) {
            false => stream_totals::<S, F, N, false>(s, (body, ahead), rows, at, half),
            true => stream_totals::<S, F, N, true>(s, (body, ahead), rows, at, half),
        };
        let d = F::d(s, tail, half);
        let mut values = [d; N];
        for n in 0..N {
            values[n] = s.mul(s.to_f(totals[n]), d);
        }
        if F::MINS {
            let (mins, dmin) = (F::mins(s, body, half), F::dmin(s, tail, half));
            for n in 0..N {
                let mut total = s.splat_i(0);
                for (i, min) in mins.into_iter().enumerate() {
                    total = s.dot_pairs(total, min, s.splat_i(rows.sums(n, b, i)));
                }
                values[n] = s.fnma(s.to_f(total), dmin, values[n]);
            }
        }
        for n in 0..N {
            let scale = rows.scale(n, at.0, if F::INT_SCALES { 0 } else { at.1 / GROUP });
            sums[n] = s.fma(values[n], s.splat(scale), sums[n]);
        }
    }
    sums
}

/// The sums of the block at column `k0` of 256-block `b` for one vector of rows and `N` tokens. The lines as far `ahead`
/// are asked for meanwhile.
#[inline(always)]
fn stream_totals<S: Simd, F: IntFormat, const N: usize, const DENSE: bool>(
    s: S,
    (body, ahead): (&[u8], Ahead),
    rows: &Rows<'_>,
    (b, k0): (usize, usize),
    half: usize,
) -> [S::I; N] {
    let slices = F::COLS / (F::WIDTH * F::STEPS * 4);
    // Parts of a slice that lie under different scales.
    let parts = (F::STEPS * 4).div_ceil(F::GROUP);
    let steps = F::STEPS / parts;
    // Cache lines to ask for with every step, so that they arrive in an even flow, and what is left over.
    let lines = (F::BODY + F::TAIL).div_ceil(64);
    let per_step = lines / (slices * F::STEPS);
    let rest = lines - per_step * slices * F::STEPS;
    if half == 0 {
        (0..rest).for_each(|line| prefetch(s, ahead, body.as_ptr(), line));
    }
    // A block of one float scale is one group, whichever vectors it is spread over.
    let sums_apart = if F::INT_SCALES { F::WIDTH } else { 1 };
    let scales = F::scales(s, body, half);
    let mut totals = [s.splat_i(0); N];
    for slice in 0..slices {
        for part in 0..parts {
            let unit = |w: usize| (slice * F::WIDTH + w) * F::STEPS + part * steps;
            let group = |w: usize| unit(w) * 4 / F::GROUP;
            let mut acc = [[s.splat_i(0); N]; 4];
            for (w, acc) in acc.iter_mut().enumerate().take(sums_apart) {
                for (n, acc) in acc.iter_mut().enumerate() {
                    *acc = start::<S, F, DENSE>(s, rows, n, (b, k0 + unit(w) * 4));
                }
            }
            for l in 0..steps {
                if half == 0 {
                    let step = slice * F::STEPS + part * steps + l;
                    (0..per_step).for_each(|line| prefetch(s, ahead, body.as_ptr(), rest + step * per_step + line));
                }
                let quants = F::step(s, body, slice, part * steps + l, half);
                for w in 0..F::WIDTH {
                    for n in 0..N {
                        let a = s.splat_i(rows.quants(n, b, place::<F>(k0 + (unit(w) + l) * 4, 4)));
                        let sum = &mut acc[w.min(sums_apart - 1)][n];
                        *sum = dot::<S, F>(s, *sum, quants[w], a);
                    }
                }
                in_order();
                let last = l + 1 == steps;
                let full = portions::<S, DENSE>() && (l + 1).is_multiple_of(dots_max::<S, F>());
                if F::INT_SCALES && (last || full) {
                    for w in 0..F::WIDTH {
                        for n in 0..N {
                            let scale = scales[group(w)];
                            totals[n] = s.dot_pairs(totals[n], acc[w][n], scale);
                            if last {
                                totals[n] = offset::<S, F>(s, totals[n], scale, (rows, n), (b, group(w)));
                            } else {
                                acc[w][n] = start::<S, F, DENSE>(s, rows, n, (b, (unit(w) + l + 1) * 4));
                            }
                        }
                    }
                }
            }
            if !F::INT_SCALES {
                for n in 0..N {
                    totals[n] = lanes::<S, F>(s, acc[0][n]);
                }
            }
        }
    }
    totals
}

/// Unpacked weights of `V` vectors, `width = V * LANES` rows: quants `[k / 4][width][4]`, minima `[k / 64][width]`,
/// float scales `d` and `dmin` `[k / COLS][width]`.
///
/// With integer scales, of each 64 columns, the quants of the first and the last 32 are zipped ([`Simd::zip`]): `[k / 8]
/// [V][2 * LANES][4]`; their scales are pairs of i16 `[k / (2 * GROUP)][width]`. So is what a vector of sums adds up, and
/// two groups meet their scales in one instruction.
struct Tile<'t> {
    quants: &'t mut [u8],
    scales: &'t mut [u8],
    mins: &'t mut [u8],
    d: &'t mut [f32],
    dmin: &'t mut [f32],
}

impl<'t> Tile<'t> {
    fn carve(tile: &'t mut [u8], k_cols: usize, width: usize) -> Self {
        let (quants, rest) = tile.split_at_mut(width * k_cols);
        let (scales, rest) = rest.split_at_mut(width * k_cols / 16 * 4);
        let (mins, rest) = rest.split_at_mut(width * k_cols / 64 * 4);
        let (d, rest) = rest.split_at_mut(width * k_cols / GROUP * 4);
        let dmin = &mut rest[..width * k_cols / GROUP * 4];
        Tile { quants, scales, mins, d: bytes::cast_mut(d), dmin: bytes::cast_mut(dmin) }
    }

    /// Unpacks some blocks of one panel's vector `half` into vector `v` of the tile.
    #[inline(always)]
    fn fill<S: Simd, F: IntFormat>(&mut self, s: S, blocks: &[u8], half: usize, (v, width): (usize, usize)) {
        let lane = v * S::LANES;
        let slices = F::COLS / (F::WIDTH * F::STEPS * 4);
        for (b, block) in blocks.chunks_exact(F::BODY + F::TAIL).enumerate() {
            let (body, tail) = block.split_at(F::BODY);
            let quants = &mut self.quants[b * F::COLS * width..][..F::COLS * width];
            for slice in 0..slices {
                for l in 0..F::STEPS {
                    let mut vectors = F::step(s, body, slice, l, half);
                    for w in 0..F::WIDTH {
                        let unit = (slice * F::WIDTH + w) * F::STEPS + l;
                        let mut place = unit * width + lane;
                        if F::INT_SCALES {
                            const { assert!(!F::INT_SCALES || F::STEPS * 4 == GROUP && F::WIDTH.is_multiple_of(2)) };
                            if w.is_multiple_of(2) {
                                [vectors[w], vectors[w + 1]] = s.zip(vectors[w], vectors[w + 1]);
                            }
                            place = paired(unit, F::STEPS) / 2 * 2 * width + 2 * lane + w % 2 * S::LANES;
                        }
                        s.store_bytes(vectors[w], &mut quants[place * 4..]);
                    }
                }
            }
            if F::INT_SCALES {
                let (scales, per_group) = (F::scales(s, body, half), GROUP / F::GROUP);
                for i in 0..F::COLS / F::GROUP / 2 {
                    let first = i / per_group * 2 * per_group + i % per_group;
                    let low = s.and(scales[first], s.splat_i(0xffff));
                    let pair = s.or(low, s.shl::<16>(scales[first + per_group]));
                    let at = (b * (F::COLS / F::GROUP / 2) + i) * width + lane;
                    s.store_bytes(pair, &mut self.scales[at * 4..]);
                }
            }
            if F::MINS {
                for (i, min) in F::mins(s, body, half).into_iter().enumerate() {
                    s.store_bytes(min, &mut self.mins[((b * 4 + i) * width + lane) * 4..]);
                }
                s.store(F::dmin(s, tail, half), &mut self.dmin[b * width + lane..]);
            }
            s.store(F::d(s, tail, half), &mut self.d[b * width + lane..]);
        }
    }

    /// Sums of a block with integer scales for `N` tokens, offsets taken out.
    #[inline(always)]
    fn block_totals<S: Simd, F: IntFormat, const V: usize, const N: usize, const DENSE: bool>(
        &self,
        s: S,
        rows: &Rows<'_>,
        block: usize,
        k0: usize,
    ) -> [[S::I; N]; V] {
        let width = V * S::LANES;
        let quants = &self.quants[block * F::COLS * width..][..F::COLS * width];
        let scales = F::COLS / F::GROUP / 2 * width * 4;
        let scales = &self.scales[block * scales..][..scales];
        let b = k0 / F::COLS + block;
        // Units of each of the two groups that may be summed before they meet the scale.
        let units = if DENSE { dense_units::<F>() } else { F::GROUP / 4 };
        let portions = F::GROUP / 4 / units;
        let mut totals = [[s.splat_i(0); N]; V];
        for (portion, quants) in quants.chunks_exact(units * 8 * width).enumerate() {
            let mut acc = [[[s.splat_i(0); 2]; N]; V];
            if F::OFFSET {
                for n in 0..N {
                    let start = match DENSE {
                        false => rows.start_pair(n, b, portion),
                        true => rows.start8_pair(n, b, portion),
                    };
                    for v in 0..V {
                        acc[v][n] = [s.splat_pair(start); 2];
                    }
                }
            }
            for (u, unit) in quants.chunks_exact(8 * width).enumerate() {
                let mut w = [[s.splat_i(0); 2]; V];
                for v in 0..V {
                    w[v] = vectors::<S, 2>(s, &unit[v * S::LANES * 8..]);
                }
                for n in 0..N {
                    let a = s.splat_pair(rows.quants_pair(n, b, portion * units + u));
                    for v in 0..V {
                        for i in 0..2 {
                            acc[v][n][i] = s.dot(acc[v][n][i], w[v][i], a);
                        }
                    }
                }
                in_order();
            }
            for v in 0..V {
                let scale = s.load_bytes(&scales[(portion / portions * width + v * S::LANES) * 4..]);
                for n in 0..N {
                    totals[v][n] = s.dot_pairs(totals[v][n], s.zipped_pairs(acc[v][n]), scale);
                }
            }
        }
        totals
    }

    /// `N` tokens over the tile's columns `k0 .. k0 + k_len`, with integer scales.
    #[inline(always)]
    fn multiply_super<S: Simd, F: IntFormat, const V: usize, const N: usize>(
        &self,
        s: S,
        rows: &Rows<'_>,
        (k0, k_len): (usize, usize),
    ) -> [[S::F; N]; V] {
        let width = V * S::LANES;
        let mut sums = [[s.splat(0.0); N]; V];
        for block in 0..k_len / F::COLS {
            let totals = match rows.any_dense::<N>(k0 / F::COLS + block) {
                false => self.block_totals::<S, F, V, N, false>(s, rows, block, k0),
                true => self.block_totals::<S, F, V, N, true>(s, rows, block, k0),
            };
            let minima = self.block_minima::<S, F, V, N>(s, rows, block, k0);
            for n in 0..N {
                let scale = s.splat(rows.scale(n, k0 / F::COLS + block, 0));
                for v in 0..V {
                    let lane = block * width + v * S::LANES;
                    let mut value = s.mul(s.to_f(totals[v][n]), s.load(&self.d[lane..]));
                    if F::MINS {
                        value = s.fnma(s.to_f(minima[v][n]), s.load(&self.dmin[lane..]), value);
                    }
                    sums[v][n] = s.fma(value, scale, sums[v][n]);
                }
            }
        }
        sums
    }

    /// Minima of a block times the sums of the activations.
    #[inline(always)]
    fn block_minima<S: Simd, F: IntFormat, const V: usize, const N: usize>(
        &self,
        s: S,
        rows: &Rows<'_>,
        block: usize,
        k0: usize,
    ) -> [[S::I; N]; V] {
        let width = V * S::LANES;
        let mut minima = [[s.splat_i(0); N]; V];
        if F::MINS {
            let n_pairs = F::COLS / (2 * GROUP);
            let mins = &self.mins[block * n_pairs * width * 4..];
            for (i, mins) in mins.chunks_exact(width * 4).take(n_pairs).enumerate() {
                let min = vectors::<S, V>(s, mins);
                for n in 0..N {
                    let a = s.splat_i(rows.sums(n, k0 / F::COLS + block, i));
                    for v in 0..V {
                        minima[v][n] = s.dot_pairs(minima[v][n], min[v], a);
                    }
                }
            }
        }
        minima
    }

    /// The same with a float scale per block of 32.
    #[inline(always)]
    fn multiply_blocks<S: Simd, F: IntFormat, const V: usize, const N: usize>(
        &self,
        s: S,
        rows: &Rows<'_>,
        (k0, k_len): (usize, usize),
    ) -> [[S::F; N]; V] {
        let width = V * S::LANES;
        let mut sums = [[s.splat(0.0); N]; V];
        for (block, quants) in self.quants[..k_len * width].chunks_exact(F::COLS * width).enumerate() {
            let (b, group) = ((k0 / F::COLS + block) / (SUPER / F::COLS), (k0 / F::COLS + block) % (SUPER / F::COLS));
            let mut acc = [[s.splat_i(0); N]; V];
            for n in 0..N {
                let start = start::<S, F, false>(s, rows, n, (b, group * F::GROUP));
                for v in 0..V {
                    acc[v][n] = start;
                }
            }
            for (u, unit) in quants.chunks_exact(4 * width).enumerate() {
                let w = vectors::<S, V>(s, unit);
                for n in 0..N {
                    let a = s.splat_i(rows.quants(n, b, group * (F::COLS / 4) + u));
                    for v in 0..V {
                        acc[v][n] = dot::<S, F>(s, acc[v][n], w[v], a);
                    }
                }
                in_order();
            }
            let d = floats::<S, V>(s, &self.d[block * width..]);
            for n in 0..N {
                let scale = s.splat(rows.scale(n, b, group));
                for v in 0..V {
                    let sum = s.to_f(lanes::<S, F>(s, acc[v][n]));
                    sums[v][n] = s.fma(sum, s.mul(d[v], scale), sums[v][n]);
                }
            }
        }
        sums
    }
}

/// Many tokens: columns `cols` of `out`, whole stripes of `V` vectors. One stretch of activations, `k_cols` of every
/// token, meets all stripes before the next is begun: it stays in L2.
#[inline(always)]
pub fn tiled<S: Simd, F: IntFormat, const V: usize, const N: usize>(
    s: S,
    w: &Matrix<'_>,
    acts: &Acts<'_>,
    (out, cols): (&mut Block<'_, f32>, Range<usize>),
    accumulate: bool,
    (tile, k_cols): (&mut [u8], usize),
) {
    let width = V * S::LANES;
    assert!(cols.len().is_multiple_of(width) && k_cols.is_multiple_of(SUPER) && w.cols == acts.layout.cols());
    let mut tile = Tile::carve(tile, k_cols, width);
    for k0 in (0..w.cols).step_by(k_cols) {
        let k_len = k_cols.min(w.cols - k0);
        let block_bytes = F::BODY + F::TAIL;
        let lines = (k_len / F::COLS * block_bytes).div_ceil(64);
        let lines_per_token = lines.div_ceil(acts.n_tokens.max(1));
        for col in cols.clone().step_by(width) {
            // Where the next stripe begins; after the last one, where that of the worker's next block most likely does.
            let (next_col, next_k) = match (col + width < cols.end, k0 + k_cols < w.cols) {
                (true, _) => (col + width, k0),
                (false, true) => (cols.start, k0 + k_cols),
                (false, false) => (cols.end, 0),
            };
            let next = (out.col0 + next_col) / PANEL_ROWS * w.panel_bytes + next_k / F::COLS * block_bytes;
            let next = w.panels.as_ptr().wrapping_add(next);
            for v in 0..V {
                let lane = out.col0 + col + v * S::LANES;
                let blocks = &w.panel(lane / PANEL_ROWS)[k0 / F::COLS * block_bytes..][..k_len / F::COLS * block_bytes];
                tile.fill::<S, F>(s, blocks, lane % PANEL_ROWS / S::LANES, (v, width));
            }
            macro_rules! run {
                ($token:expr, $n:tt) => {
                    prefetch_block::<S, V, $n>(s, out, ($token, col));
                    for line in $token * lines_per_token..(($token + $n) * lines_per_token).min(lines) {
                        for panel in 0..width / PANEL_ROWS {
                            s.prefetch::<false>(next.wrapping_add(panel * w.panel_bytes + line * 64));
                        }
                    }
                    let rows = acts.rows($token, $n);
                    let sums = match F::INT_SCALES {
                        true => tile.multiply_super::<S, F, V, $n>(s, &rows, (k0, k_len)),
                        false => tile.multiply_blocks::<S, F, V, $n>(s, &rows, (k0, k_len)),
                    };
                    write_block(s, sums, out, ($token, col), accumulate || k0 > 0);
                };
            }
            in_blocks!(acts, [N, 2, 1], run);
        }
    }
}
