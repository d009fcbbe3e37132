//! Integer weights times int8 activations.
//!
//! With integer scales (the k-quants) a block of 256 columns is summed in integers: the dot product of a group is
//! multiplied by its scale as an i16 pair, one instruction instead of a conversion and a multiply-add, and minima meet
//! the sums of the activations the same way. Nothing is rounded but the two products per block that make it a float.

use super::{
    Matrix, NextStripe, in_blocks, in_order, prefetch, prefetch_block, stripe_rows, vectors, write, write_block,
};
use crate::kernels::activations::{ActivationRows, Activations, paired};
use crate::kernels::formats::dedicated::IntFormat;
use crate::kernels::partition::OutTile;
use crate::kernels::simd::{Dot, Simd};
use crate::kernels::tiling::PrefetchDistance;
use crate::quant::{GROUP, PANEL_ROWS, SUPER};

/// Adds four products (two where products add up in i16) to the lanes of a group's sum.
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
    !S::DOT.is_in_lanes() || DENSE
}

/// Dot products that then fit.
#[inline(always)]
const fn dots_max<S: Simd, F: IntFormat>() -> usize {
    if S::DOT.is_in_lanes() { dense_units::<F>() } else { 32767 / (2 * 127 * F::QUANT_MAX) }
}

/// Units of four columns that fit i16 in a dense block: 8 columns around zero, or what the unsigned quants allow.
#[inline(always)]
const fn dense_units<F: IntFormat>() -> usize {
    if F::OFFSET { 2 } else { 32767 / (4 * 127 * F::QUANT_MAX) }
}

/// Whether sums begin with the record's starting values; else these meet the total ([`offset`]).
#[inline(always)]
const fn starts<S: Simd, F: IntFormat>() -> bool {
    F::OFFSET
        && match S::DOT {
            Dot::UnsignedSigned => true,
            Dot::SignedSigned => F::QUANT_MAX <= 127,
            Dot::PairsI16 => !F::INT_SCALES && F::QUANT_MAX <= 127,
        }
}

/// What a sum from column `k` of block `b` (of 256 columns) on begins with.
#[inline(always)]
fn start<S: Simd, F: IntFormat, const DENSE: bool>(
    s: S,
    rows: &ActivationRows<'_>,
    n: usize,
    (b, k): (usize, usize),
) -> S::I {
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
    (rows, n): (&ActivationRows<'_>, usize),
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
    (panel, ahead): (&[u8], PrefetchDistance),
    rows: &ActivationRows<'_>,
    half: usize,
) -> [S::F; N] {
    let mut sums = [s.splat(0.0); N];
    for (b, block) in panel.chunks_exact(F::BODY + F::TAIL).enumerate() {
        let (body, tail) = block.split_at(F::BODY);
        // Where the block begins: the 256 columns it lies in, and the column in there.
        let at = (b * F::COLS / SUPER, b * F::COLS % SUPER);
        let totals = match F::INT_SCALES && S::DOT.is_in_lanes() && (!S::FAST || rows.any_dense::<N>(b)) {
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
    (body, ahead): (&[u8], PrefetchDistance),
    rows: &ActivationRows<'_>,
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

/// Where the parts of a block of a tile lie, `width` rows wide: quants, scales, minima, float scales. A block is as many
/// columns as a panel's, and its parts lie side by side, so that a kernel has one address for all of them.
///
/// Quants are `[k / 4][width][4]`, minima `[k / 64][width]`, float scales `d` and `dmin` `[width]`. With integer scales, of
/// each 64 columns, the quants of the first and the last 32 are zipped ([`Simd::zip`]): `[k / 8][V][2 * LANES][4]`; their
/// scales are pairs of i16 `[k / (2 * GROUP)][width]`. So is what a vector of sums adds up, and two groups meet their scales
/// in one instruction.
struct Parts {
    scales: usize,
    mins: usize,
    d: usize,
    dmin: usize,
    bytes: usize,
}

impl Parts {
    const fn of<F: IntFormat>(width: usize) -> Parts {
        let scales = F::COLS * width;
        let mins = scales + if F::INT_SCALES { F::COLS / F::GROUP / 2 * 4 * width } else { 0 };
        let d = mins + if F::MINS { F::COLS / (2 * GROUP) * 4 * width } else { 0 };
        let dmin = d + 4 * width;
        Parts { scales, mins, d, dmin, bytes: dmin + if F::MINS { 4 * width } else { 0 } }
    }
}

/// Vector `at` of `V` side by side that begin at `first`.
#[inline(always)]
fn part<S: Simd>(s: S, block: &[u8], first: usize, at: usize) -> S::I {
    s.load_bytes(&block[first + at * S::LANES * 4..])
}

/// Unpacks some blocks of one panel's vector `half` into vector `v` of a tile.
#[inline(always)]
fn fill<S: Simd, F: IntFormat>(s: S, tile: &mut [u8], blocks: &[u8], half: usize, (v, width): (usize, usize)) {
    let (parts, lane) = (Parts::of::<F>(width), v * S::LANES);
    let slices = F::COLS / (F::WIDTH * F::STEPS * 4);
    for (block, out) in blocks.chunks_exact(F::BODY + F::TAIL).zip(tile.chunks_exact_mut(parts.bytes)) {
        let (body, tail) = block.split_at(F::BODY);
        let at = |first: usize, row: usize| first + (row * width + lane) * 4;
        for slice in 0..slices {
            for l in 0..F::STEPS {
                let mut vectors = F::step(s, body, slice, l, half);
                for w in 0..F::WIDTH {
                    let unit = (slice * F::WIDTH + w) * F::STEPS + l;
                    if F::INT_SCALES {
                        const { assert!(!F::INT_SCALES || F::STEPS * 4 == GROUP && F::WIDTH.is_multiple_of(2)) };
                        if w.is_multiple_of(2) {
                            [vectors[w], vectors[w + 1]] = s.zip(vectors[w], vectors[w + 1]);
                        }
                        let first = (paired(unit, F::STEPS) / 2 * 2 * width + 2 * lane + w % 2 * S::LANES) * 4;
                        s.store_bytes(vectors[w], &mut out[first..]);
                    } else {
                        s.store_bytes(vectors[w], &mut out[at(0, unit)..]);
                    }
                }
            }
        }
        if F::INT_SCALES {
            let (scales, per_group) = (F::scales(s, body, half), GROUP / F::GROUP);
            for i in 0..F::COLS / F::GROUP / 2 {
                let first = i / per_group * 2 * per_group + i % per_group;
                let low = s.and(scales[first], s.splat_i(0xffff));
                let pair = s.or(low, s.shl::<16>(scales[first + per_group]));
                s.store_bytes(pair, &mut out[at(parts.scales, i)..]);
            }
        }
        if F::MINS {
            for (i, min) in F::mins(s, body, half).into_iter().enumerate() {
                s.store_bytes(min, &mut out[at(parts.mins, i)..]);
            }
            s.store_bytes(s.as_i(F::dmin(s, tail, half)), &mut out[at(parts.dmin, 0)..]);
        }
        s.store_bytes(s.as_i(F::d(s, tail, half)), &mut out[at(parts.d, 0)..]);
    }
}

/// Sums of a block with integer scales for `N` tokens, offsets taken out.
#[inline(always)]
fn block_totals<S: Simd, F: IntFormat, const V: usize, const N: usize, const DENSE: bool>(
    s: S,
    block: &[u8],
    rows: &ActivationRows<'_>,
    b: usize,
) -> [[S::I; N]; V] {
    let width = V * S::LANES;
    let parts = Parts::of::<F>(width);
    // Units of each of the two groups that may be summed before they meet the scale.
    let units = if DENSE { dense_units::<F>() } else { F::GROUP / 4 };
    let portions = F::GROUP / 4 / units;
    let mut totals = [[s.splat_i(0); N]; V];
    for (portion, quants) in block[..parts.scales].chunks_exact(units * 8 * width).enumerate() {
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
            let scale = part(s, block, parts.scales, portion / portions * V + v);
            for n in 0..N {
                totals[v][n] = s.dot_pairs(totals[v][n], s.zipped_pairs(acc[v][n]), scale);
            }
        }
    }
    totals
}

/// Minima of a block times the sums of the activations.
#[inline(always)]
fn block_minima<S: Simd, F: IntFormat, const V: usize, const N: usize>(
    s: S,
    block: &[u8],
    rows: &ActivationRows<'_>,
    b: usize,
) -> [[S::I; N]; V] {
    let mut minima = [[s.splat_i(0); N]; V];
    for i in 0..F::COLS / (2 * GROUP) {
        for v in 0..V {
            let min = part(s, block, Parts::of::<F>(V * S::LANES).mins, i * V + v);
            for n in 0..N {
                minima[v][n] = s.dot_pairs(minima[v][n], min, s.splat_i(rows.sums(n, b, i)));
            }
        }
    }
    minima
}

/// `N` tokens over a tile from column `k0` on, with integer scales.
#[inline(always)]
fn multiply_super<S: Simd, F: IntFormat, const V: usize, const N: usize>(
    s: S,
    tile: &[u8],
    rows: &ActivationRows<'_>,
    k0: usize,
) -> [[S::F; N]; V] {
    let parts = Parts::of::<F>(V * S::LANES);
    let mut sums = [[s.splat(0.0); N]; V];
    for (block, b) in tile.chunks_exact(parts.bytes).zip(k0 / F::COLS..) {
        let totals = match rows.any_dense::<N>(b) {
            false => block_totals::<S, F, V, N, false>(s, block, rows, b),
            true => block_totals::<S, F, V, N, true>(s, block, rows, b),
        };
        let minima = if F::MINS { block_minima::<S, F, V, N>(s, block, rows, b) } else { totals };
        for n in 0..N {
            let scale = s.splat(rows.scale(n, b, 0));
            for v in 0..V {
                let mut value = s.mul(s.to_f(totals[v][n]), s.as_f(part(s, block, parts.d, v)));
                if F::MINS {
                    value = s.fnma(s.to_f(minima[v][n]), s.as_f(part(s, block, parts.dmin, v)), value);
                }
                sums[v][n] = s.fma(value, scale, sums[v][n]);
            }
        }
    }
    sums
}

/// The same with a float scale per block of 32.
#[inline(always)]
fn multiply_blocks<S: Simd, F: IntFormat, const V: usize, const N: usize>(
    s: S,
    tile: &[u8],
    rows: &ActivationRows<'_>,
    k0: usize,
) -> [[S::F; N]; V] {
    let width = V * S::LANES;
    let parts = Parts::of::<F>(width);
    let mut sums = [[s.splat(0.0); N]; V];
    for (block, at) in tile.chunks_exact(parts.bytes).zip(k0 / F::COLS..) {
        let (b, group) = (at / (SUPER / F::COLS), at % (SUPER / F::COLS));
        let mut acc = [[s.splat_i(0); N]; V];
        for n in 0..N {
            let start = start::<S, F, false>(s, rows, n, (b, group * F::GROUP));
            for v in 0..V {
                acc[v][n] = start;
            }
        }
        for (u, unit) in block[..parts.scales].chunks_exact(4 * width).enumerate() {
            let w = vectors::<S, V>(s, unit);
            for n in 0..N {
                let a = s.splat_i(rows.quants(n, b, group * (F::COLS / 4) + u));
                for v in 0..V {
                    acc[v][n] = dot::<S, F>(s, acc[v][n], w[v], a);
                }
            }
            in_order();
        }
        for v in 0..V {
            let d = s.as_f(part(s, block, parts.d, v));
            for n in 0..N {
                let scale = s.mul(d, s.splat(rows.scale(n, b, group)));
                sums[v][n] = s.fma(s.to_f(lanes::<S, F>(s, acc[v][n])), scale, sums[v][n]);
            }
        }
    }
    sums
}

/// Many tokens: columns `cols` of `out`, whole stripes of `V` vectors. One stretch of activations, `k_cols` of every
/// token, meets all stripes before the next is begun: it stays in L2.
#[inline(always)]
pub fn tiled<S: Simd, F: IntFormat, const V: usize, const N: usize>(
    s: S,
    w: &Matrix<'_>,
    acts: &Activations<'_>,
    out: &mut OutTile<'_, f32>,
    accumulate: bool,
    (tile, k_cols): (&mut [u8], usize),
) {
    let width = V * S::LANES;
    assert!(out.cols.is_multiple_of(PANEL_ROWS) && k_cols.is_multiple_of(SUPER) && w.cols == acts.layout.cols());
    let block_bytes = F::BODY + F::TAIL;
    for k0 in (0..w.cols).step_by(k_cols) {
        let k_len = k_cols.min(w.cols - k0);
        let tile = &mut tile[..k_len / F::COLS * Parts::of::<F>(width).bytes];
        for col in (0..out.cols).step_by(width) {
            let stripe = stripe_rows::<S, V>(out, col);
            let stretch = (k0, k_cols, k_cols / F::COLS * block_bytes);
            let next = NextStripe::after(w, (out, col, width), stretch, acts.n_tokens);
            // Numbers that the compiler knows: then it checks no bounds in `fill`.
            for v in 0..V {
                if v * S::LANES >= stripe {
                    break;
                }
                let lane = out.col0 + col + v * S::LANES;
                let blocks = &w.panel(lane / PANEL_ROWS)[k0 / F::COLS * block_bytes..][..k_len / F::COLS * block_bytes];
                fill::<S, F>(s, tile, blocks, lane % PANEL_ROWS / S::LANES, (v, width));
            }
            macro_rules! run {
                ($token:expr, $n:tt) => {
                    prefetch_block::<S, V, $n>(s, out, ($token, col));
                    next.ask(s, $token, $n);
                    let rows = acts.rows($token, $n);
                    let sums = match F::INT_SCALES {
                        true => multiply_super::<S, F, V, $n>(s, tile, &rows, k0),
                        false => multiply_blocks::<S, F, V, $n>(s, tile, &rows, k0),
                    };
                    write_block(s, sums, out, ($token, col), stripe, accumulate || k0 > 0);
                };
            }
            in_blocks!(acts, [N, 2, 1], run);
        }
    }
}
