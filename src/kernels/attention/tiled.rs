//! Many rows: two matrix products over tiles of 16-bit integers, `N` rows and two or four vectors of keys or values at a
//! time. A step multiplies pairs: twice the multiplications of a step in f32.
//!
//! With 6 rows and 4 vectors of 512 bits, a step makes 24 dot products of pairs out of 10 loads and keeps 24 sums, 4
//! vectors and a broadcast in the 32 registers: the arithmetic is the limit.
//!
//! # Scales and errors
//! What is multiplied is rounded to `scale * integer`, with scales that follow from a row, a key or a value and never
//! from its neighbours: a row's result does not depend on what else is in the pass. Sums of products fit i32:
//! - **Scores.** A query is scaled as [`scaling`] does, a key as [`row_scaling`]. A rounding moves a score by up to
//!   `sqrt(d) / 2 * |q| * |k| / norm`, the two of them by 1.0e-5 of `|q| * |k|` in standard deviation (each element by `1 / sqrt(12)`),
//!   1.3e-5 where the query has one large element. For 128 dimensions of like sizes f16 keys cost 1.8e-5: an element
//!   loses 2.1e-4 of itself, the root of the mean square over all mantissas.
//! - **Weights times V.** A value is scaled to elements of [`VALUE_MAX`], and its scale goes into the weight. A row's
//!   weights are scaled to elements of [`WEIGHT_MAX`] or, where that is less, to a sum of 4 times that; with rounding, 64 of
//!   them add up to no more than [`WEIGHT_SUM`]. An element of V is off by up to `0.5 / 16379` (3.1e-5) of the value's
//!   largest; f16 takes up to 4.9e-4 of itself. A weight is off by up to `0.5 / 32767` (1.5e-5) of the largest of its 64, or
//!   of a quarter of their sum where that is more: 2.4e-4 of itself where all are alike.
//!
//! A NaN or an infinity makes the scale NaN, and with it all that it is multiplied with.

use std::ops::Range;

use super::cache::{KvTile, KvType, key_values, load_value};
use super::queries::{KEY_TILE, Queries};
use super::softmax::mask;
use crate::bytes;
use crate::kernels::activations16::{ELEMENTS_MAX, MAGIC, round, row_scaling, scaling};
use crate::kernels::simd::Simd;
use crate::quant::PANEL_ROWS;

/// Pairs of i16, `[pair][64][2]`: 64 keys, or 64 dimensions of V.
pub(super) type Pairs = [[u8; 4 * KEY_TILE]];

/// A row's weights as i16.
pub(super) type Weights = [u8; 2 * KEY_TILE];

/// 16 dimensions of a query as i16.
pub(super) type Sixteen = [u8; 2 * PANEL_ROWS];

/// Largest element of a value.
const VALUE_MAX: f32 = 16379.0;

/// Largest weight.
const WEIGHT_MAX: f32 = 32767.0;

/// Largest sum of a row's weights: 4 of the largest, 64 roundings, and 4 for the arithmetic in f32.
const WEIGHT_SUM: usize = 4 * 32767 + 32 + 4;

const _: () = assert!(WEIGHT_SUM * VALUE_MAX as usize <= i32::MAX as usize && KEY_TILE == 64);

/// f32 bits of infinity: what is not below is NaN or infinite.
const INFINITE: i32 = 0x7f80_0000;

/// Queries in blocks of `N` rows, `[rows / N][key_dim / 16][N][16]`, and their scales, times `log2(e) * scale`: scores are
/// exponents of 2. Rows beyond the last are zeros, and so is what fills up the last 16 dimensions.
#[inline(always)]
pub(super) fn pack_queries<S: Simd, const N: usize>(
    s: S,
    queries: &Queries<'_>,
    d: usize,
    row: &mut [f32],
    q: &mut [[Sixteen; N]],
    scales: &mut [[f32; N]],
) {
    assert!(d <= ELEMENTS_MAX && d.is_multiple_of(2));
    let factor = s.splat(std::f32::consts::LOG2_E * queries.scale);
    let row = &mut row[..d.next_multiple_of(PANEL_ROWS)];
    row[d..].fill(0.0);
    for (block, (q, scales)) in q.chunks_exact_mut(d.div_ceil(PANEL_ROWS)).zip(scales).enumerate() {
        for n in 0..N {
            let index = block * N + n;
            if index >= queries.rows() {
                q.iter_mut().for_each(|q| q[n] = [0; 2 * PANEL_ROWS]);
                scales[n] = 0.0;
                continue;
            }
            let from = index / queries.group * queries.stride + index % queries.group * d;
            let values = &queries.values[from..][..d];
            let whole = d / S::LANES * S::LANES;
            for (x, out) in values.chunks_exact(S::LANES).zip(row.chunks_exact_mut(S::LANES)) {
                s.store(s.mul(s.load(x), factor), out);
            }
            for (x, out) in values[whole..].iter().zip(&mut row[whole..]) {
                *out = x * (std::f32::consts::LOG2_E * queries.scale);
            }
            let (factor, scale) = scaling(s, row);
            scales[n] = scale;
            for (x, q) in row.chunks_exact(PANEL_ROWS).zip(&mut *q) {
                round(s, x, factor, &mut q[n]);
            }
        }
    }
}

/// The first `n` keys of a page and their scales. Whole panels are read; the surplus is masked later.
#[inline(always)]
pub(super) fn keys_to_tile<S: Simd>(
    s: S,
    kv: &KvTile<'_>,
    n: usize,
    panel: &mut [f32],
    tile: &mut Pairs,
    scales: &mut [f32; KEY_TILE],
) {
    let panel = panel.as_chunks_mut::<PANEL_ROWS>().0;
    for lane0 in (0..n).step_by(PANEL_ROWS) {
        for lane in (0..PANEL_ROWS).step_by(S::LANES) {
            let squares = key_values(s, kv, lane0, lane, panel);
            let (factor, scale) = row_scaling(s, squares);
            s.store(scale, &mut scales[lane0 + lane..]);
            for (x, pairs) in panel.as_chunks::<2>().0.iter().zip(&mut *tile) {
                let low = s.as_i(s.fma(s.load(&x[0][lane..]), factor, s.splat(MAGIC)));
                let high = s.as_i(s.fma(s.load(&x[1][lane..]), factor, s.splat(MAGIC)));
                s.store_bytes(s.pairs(low, high), &mut pairs[4 * (lane0 + lane)..]);
            }
        }
    }
}

/// The first `n` values of a page, `[dims / 64][32][64][2]`, and their scales; zeros beyond `value_dim`. Whole panels are
/// read, as of keys.
#[inline(always)]
pub(super) fn values_to_tile<S: Simd>(
    s: S,
    kv: &KvTile<'_>,
    n: usize,
    rows: &mut [f32],
    tile: &mut Pairs,
    scales: &mut [f32; KEY_TILE],
) {
    let padded = kv.value_dim.next_multiple_of(KEY_TILE);
    let rows = &mut rows[..PANEL_ROWS * padded];
    for (first, scales) in scales.as_chunks_mut::<PANEL_ROWS>().0.iter_mut().enumerate() {
        let first = first * PANEL_ROWS;
        if first >= n {
            scales.fill(0.0);
            continue;
        }
        // Several rows at a time hide the latency of finding the largest.
        let mut factors = [0.0; PANEL_ROWS];
        for (i, row) in rows.chunks_exact_mut(padded).enumerate() {
            let largest = row_values(s, kv, first + i, row);
            factors[i] = VALUE_MAX / largest.max(1e-20);
            scales[i] = if largest.is_finite() { largest * (1.0 / VALUE_MAX) } else { f32::NAN };
        }
        for (i, rows) in rows.chunks_exact(2 * padded).enumerate() {
            let (a, b) = rows.split_at(padded);
            let [low, high] = [s.splat(factors[2 * i]), s.splat(factors[2 * i + 1])];
            for (span, tile) in tile.as_chunks_mut::<{ KEY_TILE / 2 }>().0.iter_mut().enumerate() {
                let pairs = &mut tile[first / 2 + i];
                let (a, b) = (&a[span * KEY_TILE..][..KEY_TILE], &b[span * KEY_TILE..][..KEY_TILE]);
                for at in (0..KEY_TILE).step_by(S::LANES) {
                    let low = s.as_i(s.fma(s.load(&a[at..]), low, s.splat(MAGIC)));
                    let high = s.as_i(s.fma(s.load(&b[at..]), high, s.splat(MAGIC)));
                    s.store_bytes(s.pairs(low, high), &mut pairs[4 * at..]);
                }
            }
        }
    }
}

/// A row of V, zeros beyond `value_dim`, and the largest magnitude, infinity if one is NaN.
#[inline(always)]
fn row_values<S: Simd>(s: S, kv: &KvTile<'_>, at: usize, out: &mut [f32]) -> f32 {
    let (d, bytes) = (kv.value_dim, kv.row(at));
    let mut largest = s.splat_i(0);
    let mut done = 0;
    while done + 4 * S::LANES <= d {
        let x = load_value::<S, 4>(s, kv.kv_type, bytes, done);
        for (x, out) in x.into_iter().zip(out[done..].chunks_exact_mut(S::LANES)) {
            largest = s.max_i(largest, s.as_i(s.abs(x)));
            s.store(x, out);
        }
        done += 4 * S::LANES;
    }
    while done + S::LANES <= d {
        let [x] = load_value::<S, 1>(s, kv.kv_type, bytes, done);
        largest = s.max_i(largest, s.as_i(s.abs(x)));
        s.store(x, &mut out[done..]);
        done += S::LANES;
    }
    out[done..].fill(0.0);
    if done < d {
        // Not q8_0, which has whole groups of 32.
        match kv.kv_type {
            KvType::F32 => out[done..d].copy_from_slice(&bytes::cast(bytes)[done..]),
            _ => {
                let halves: &[half::f16] = bytes::cast(bytes);
                out[done..].iter_mut().zip(&halves[done..]).for_each(|(out, x)| *out = x.to_f32());
            }
        }
        largest = s.max_i(largest, s.as_i(s.abs(s.load(&out[done..]))));
    }
    f32::from_bits(s.largest_i(largest).min(INFINITE).cast_unsigned())
}

/// `scores[n][key] = sum_k q[k][n] * tile[k][key]`.
#[inline(always)]
pub(super) fn score<S: Simd, const N: usize>(
    s: S,
    keys: (&Pairs, &[f32; KEY_TILE]),
    queries: (&[[Sixteen; N]], &[f32; N]),
    scores: &mut [[f32; KEY_TILE]; N],
) {
    if S::REGISTERS >= 32 && S::LANES == 16 {
        return score_vectors::<S, N, 4>(s, keys, queries, scores, 0);
    }
    if S::FAST {
        for lane in (0..KEY_TILE).step_by(2 * S::LANES) {
            score_vectors::<S, N, 2>(s, keys, queries, scores, lane);
        }
    } else {
        for lane in (0..KEY_TILE).step_by(S::LANES) {
            score_vectors::<S, N, 1>(s, keys, queries, scores, lane);
        }
    }
}

#[inline(always)]
fn score_vectors<S: Simd, const N: usize, const V: usize>(
    s: S,
    (tile, key_scales): (&Pairs, &[f32; KEY_TILE]),
    (q, query_scales): (&[[Sixteen; N]], &[f32; N]),
    scores: &mut [[f32; KEY_TILE]; N],
    lane: usize,
) {
    let mut acc = [[s.splat_i(0); V]; N];
    for (tile, q) in tile.chunks(PANEL_ROWS / 2).zip(q) {
        for (pair, keys) in tile.iter().enumerate() {
            add_pairs(s, &keys[4 * lane..], q, pair, &mut acc);
        }
    }
    for ((acc, scores), scale) in acc.into_iter().zip(scores).zip(query_scales) {
        for (v, sum) in acc.into_iter().enumerate() {
            let at = lane + v * S::LANES;
            let scale = s.mul(s.load(&key_scales[at..]), s.splat(*scale));
            s.store(s.mul(s.to_f(sum), scale), &mut scores[at..]);
        }
    }
}

/// Adds products of `V` vectors of pairs with pair `pair` of each row.
#[inline(always)]
fn add_pairs<S: Simd, const N: usize, const V: usize, const BYTES: usize>(
    s: S,
    x: &[u8],
    rows: &[[u8; BYTES]; N],
    pair: usize,
    acc: &mut [[S::I; V]; N],
) {
    let x = &x[..4 * V * S::LANES];
    let mut vectors = [s.splat_i(0); V];
    for v in 0..V {
        vectors[v] = s.load_bytes(&x[4 * v * S::LANES..]);
    }
    for n in 0..N {
        let pair = s.splat_i(i32::from_le_bytes(rows[n].as_chunks::<4>().0[pair]));
        for v in 0..V {
            acc[n][v] = s.dot_pairs(acc[n][v], vectors[v], pair);
        }
    }
}

/// A row's weights, zeros for what it does not see, times the scales of their values, as integers; returns their scale.
#[inline(always)]
pub(super) fn quantise<S: Simd>(
    s: S,
    weights: &mut [f32; KEY_TILE],
    seen: Range<usize>,
    mut scales: &[f32; KEY_TILE],
    out: &mut Weights,
) -> f32 {
    if seen.len() < KEY_TILE {
        // What is not seen may have any scale.
        for (x, scale) in weights.chunks_exact_mut(S::LANES).zip(scales.chunks_exact(S::LANES)) {
            s.store(s.mul(s.load(x), s.load(scale)), x);
        }
        mask(s, weights, seen, 0.0);
        scales = &[1.0; KEY_TILE];
    }
    let (mut total, mut largest) = (s.splat(0.0), s.splat(0.0));
    for (x, scale) in weights.chunks_exact(S::LANES).zip(scales.chunks_exact(S::LANES)) {
        let x = s.mul(s.load(x), s.load(scale));
        total = s.add(total, x);
        largest = s.max(largest, x);
    }
    let (quarter, largest) = (s.sum(total) * 0.25, s.largest(largest));
    // In this order a sum of NaN is taken.
    let top = if largest > quarter { largest } else { quarter };
    let factor = s.splat(if top == 0.0 { 0.0 } else { WEIGHT_MAX / top });
    let out = out.chunks_exact_mut(2 * S::LANES);
    for ((x, scale), out) in weights.chunks_exact(S::LANES).zip(scales.chunks_exact(S::LANES)).zip(out) {
        let x = s.mul(s.load(x), s.load(scale));
        s.store_u16(s.as_i(s.fma(x, factor, s.splat(MAGIC))), out);
    }
    top * (1.0 / WEIGHT_MAX)
}

/// `sums[row][i] += scales[row] * sum_key weights[row][key] * V[key][i]` over some keys of `tile`; sums have `stride` values
/// a row.
#[inline(always)]
pub(super) fn weigh<S: Simd, const N: usize>(
    s: S,
    tile: &Pairs,
    weights: (&[Weights; N], &[f32; N]),
    keys: Range<usize>,
    sums: &mut [f32],
    (d, stride): (usize, usize),
) {
    let most = match S::FAST {
        true if S::REGISTERS >= 32 && S::LANES == 16 => 4,
        true => 2,
        false => 1,
    };
    let pairs = keys.start / 2..keys.end.div_ceil(2);
    for (span, tile) in tile.as_chunks::<{ KEY_TILE / 2 }>().0.iter().enumerate() {
        let end = KEY_TILE.min(d - span * KEY_TILE);
        let mut lane = 0;
        while lane < end {
            let place = (stride, span * KEY_TILE, lane);
            lane += match most.min((end - lane).div_ceil(S::LANES)) {
                4.. => weigh_vectors::<S, N, 4>(s, tile, weights, pairs.clone(), sums, place),
                2.. => weigh_vectors::<S, N, 2>(s, tile, weights, pairs.clone(), sums, place),
                _ => weigh_vectors::<S, N, 1>(s, tile, weights, pairs.clone(), sums, place),
            };
        }
    }
}

/// `V` vectors of every row; returns how many values that is.
#[inline(always)]
fn weigh_vectors<S: Simd, const N: usize, const V: usize>(
    s: S,
    tile: &[[u8; 4 * KEY_TILE]; KEY_TILE / 2],
    (weights, scales): (&[Weights; N], &[f32; N]),
    pairs: Range<usize>,
    sums: &mut [f32],
    (stride, first, lane): (usize, usize, usize),
) -> usize {
    let mut acc = [[s.splat_i(0); V]; N];
    let pairs = pairs.start..pairs.end.min(KEY_TILE / 2);
    for (pair, values) in pairs.clone().zip(&tile[pairs]) {
        add_pairs(s, &values[4 * lane..], weights, pair, &mut acc);
    }
    for n in 0..N {
        let sums = &mut sums[n * stride + first + lane..][..V * S::LANES];
        for (x, acc) in sums.chunks_exact_mut(S::LANES).zip(acc[n]) {
            s.store(s.fma(s.to_f(acc), s.splat(scales[n]), s.load(x)), x);
        }
    }
    V * S::LANES
}
