//! Attention over the KV cache with running maximum and sum: no `n x n` buffer, any context length.
//!
//! # Cache layout
//! A layer's cache is pages of [`KEY_TILE`] positions, `[n_kv_heads]{K, V}` each; a sequence has a table of the pages that
//! hold its positions, in order. Of a page, a head has
//! - K in panels of 16 positions, `[4][key_dim][16]`: one vector load holds the same dimension of 16 keys, so scores need
//!   no horizontal adds. q8_0: `[4][key_dim / 32]{16 f16 scales, [32][16] i8}`.
//! - V row by row, `[64][value_dim]`; q8_0: `[64][value_dim / 32]{f16 scale, 32 i8}`.
//!
//! A page is what is taken at a time anyway, so that finding it costs one look into the table for 64 keys; 32 KiB a head at
//! 128 dimensions of f16 are long enough a stretch of memory to be read at full speed.
//!
//! # Algorithm
//! Keys are taken [`KEY_TILE`] at a time. For each query row (the heads of a GQA group times some tokens) the running
//! maximum `m`, the running sum `l` of `exp(score - m)` and the weighted sum of V are rescaled when `m` grows (Milakov
//! and Gimelshein, arXiv:1805.02867; the tiling of FlashAttention, arXiv:2205.14135). There are two ways through a
//! tile, whose results differ by less than what the cache's own rounding costs:
//! - [`streamed`], for the few rows of one token, in decode: K and V go from the cache through registers, every load used
//!   by all rows.
//! - [`tiled`], for many rows: K and V of the tile become 16-bit integers once, and the work is two small matrix products.
//!
//! A long context is cut into ranges of keys ([`key_ranges`]) that different workers take; their results are weighed
//! by their masses (the logarithm of `l`, with `m`) and added up ([`merge`]), as in Flash-Decoding.
//!
//! A sink is a score that has no value: `m` starts with it and `l` with 1. It is counted in one range of keys.

mod block;
mod cache;
mod streamed;
#[cfg(test)]
mod tests;
mod tiled;

use std::ops::Range;

use cache::Ahead;
pub use cache::{KvHead, KvType};
pub(super) use cache::{store_key, store_value};
use streamed::Keys;

use super::simd::Simd;
use crate::bytes::{self, Pod};
use crate::quant::PANEL_ROWS;

/// Keys taken at a time, and values of V side by side in a tile: K and V tiles of 64 keys x 128 dimensions are 16 KiB
/// each, and one of them at a time is in use.
pub const KEY_TILE: usize = 64;

/// Most query rows of one call: enough to make the conversion of a tile a small part of the work on it (5 % at 192 rows of
/// 128 dimensions, 10 % at 96), few enough that queries, scores and results (168 KiB together) stay in L2. Whole blocks of
/// [`TILED_ROWS`].
pub const QUERY_ROWS_MAX: usize = 192;

/// Rows of a register block over a tile: 6 x 4 vectors of 512 bits, or 6 x 2 of 256.
const TILED_ROWS: usize = 6;

/// Most rows that are streamed; with more, converting a tile once is cheaper than converting in registers again.
const STREAMED_ROWS_MAX: usize = 8;

/// Fewest keys of a range: about 20 us of one core's read bandwidth at 128 dimensions, ten times what handing out a
/// range costs.
pub const RANGE_KEYS_MIN: usize = 512;

/// Most ranges: with them even one KV head keeps 16 workers busy within 10 %.
const RANGES_MAX: usize = 32;

/// Most rows of results of one KV head that wait to be merged: bounds the scratch whatever the context.
pub const PARTIAL_ROWS_MAX: usize = 384;

const _: () = assert!(QUERY_ROWS_MAX.is_multiple_of(TILED_ROWS) && QUERY_ROWS_MAX >= STREAMED_ROWS_MAX);
const _: () = assert!(PARTIAL_ROWS_MAX / QUERY_ROWS_MAX >= 2 && KEY_TILE.is_multiple_of(PANEL_ROWS));

/// Query rows of one KV head: `group` heads of each of some consecutive tokens.
#[derive(Clone, Copy)]
pub struct Queries<'a> {
    /// Head `h` of token `t` starts at `t * stride + h * key_dim`.
    pub values: &'a [f32],
    /// Values from token to token.
    pub stride: usize,
    /// Heads per token.
    pub group: usize,
    /// Tokens.
    pub n_tokens: usize,
    /// Position of the first token; it sees itself and what is before.
    pub position: usize,
    /// How many positions a token sees, itself among them: `usize::MAX` for all.
    pub window: usize,
    /// What dot products are multiplied by, mostly `1 / sqrt(key_dim)`.
    pub scale: f32,
    /// A score for each head of the group that takes its share of the weight and has no value.
    pub sinks: Option<&'a [f32]>,
}

impl Queries<'_> {
    /// Rows: heads times tokens.
    pub const fn rows(&self) -> usize {
        self.n_tokens * self.group
    }

    /// Keys that the last token sees.
    pub const fn keys(&self) -> usize {
        self.position + self.n_tokens
    }

    /// The first key that the first token sees, rounded down to a whole [`KEY_TILE`].
    pub const fn first_key(&self) -> usize {
        (self.position + 1).saturating_sub(self.window) / KEY_TILE * KEY_TILE
    }
}

/// One row's result over a range of keys.
pub struct RowResult<'a> {
    /// Token, counted from the first of the queries.
    pub token: usize,
    /// Head of the group.
    pub head: usize,
    /// The weighted mean of V; zeros if the token sees none of the keys.
    pub values: &'a [f32],
    /// Logarithm (base 2) of the sum of `e^score`; minus infinity if the token sees none of the keys.
    pub mass: f32,
}

/// f32 values of scratch that [`attend`] needs; `head_dim` is the larger of those of keys and of values.
pub const fn attend_scratch(head_dim: usize) -> usize {
    let padded = head_dim.next_multiple_of(KEY_TILE);
    // Results, scores, running maxima and sums; queries and weights as integers, and their scales; tiles and their scales.
    let floats = padded + KEY_TILE + 1 + PANEL_ROWS;
    let integers = head_dim.next_multiple_of(PANEL_ROWS) / 2 + 1 + KEY_TILE / 2 + 1;
    QUERY_ROWS_MAX * (floats + integers) + KEY_TILE * (head_dim / 2 + padded / 2 + 2) + PANEL_ROWS * padded
}

/// Into how many ranges of how many keys (a multiple of [`KEY_TILE`]) the attention of `n_rows` rows over `n_keys` keys
/// is cut. Depends on nothing else, so that results are the same for any number of workers.
pub const fn key_ranges(n_keys: usize, n_rows: usize) -> (usize, usize) {
    let fit = PARTIAL_ROWS_MAX / n_rows;
    let most = if fit < RANGES_MAX { fit } else { RANGES_MAX };
    if most < 2 {
        return (1, n_keys.next_multiple_of(KEY_TILE));
    }
    let share = n_keys.div_ceil(most);
    let len = if share < RANGE_KEYS_MIN { RANGE_KEYS_MIN } else { share }.next_multiple_of(KEY_TILE);
    (n_keys.div_ceil(len), len)
}

/// f32 values that hold the results of one KV head's ranges in a context of `ctx` positions, for [`merge`].
pub const fn partials_len(ctx: usize, value_dim: usize) -> usize {
    if ctx <= RANGE_KEYS_MIN { 0 } else { PARTIAL_ROWS_MAX * (value_dim + 1) }
}

/// Merges the results of key ranges, `[n_ranges][n_rows][value_dim values, mass]`, into those of the first range.
pub fn merge(parts: &mut [f32], n_rows: usize, value_dim: usize) {
    let width = value_dim + 1;
    let (merged, others) = parts.split_at_mut(n_rows * width);
    for (row, merged) in merged.chunks_exact_mut(width).enumerate() {
        let others = || others.chunks_exact(width).skip(row).step_by(n_rows);
        let (values, mass) = merged.split_at_mut(value_dim);
        let top = others().fold(mass[0], |top, part| top.max(part[value_dim]));
        let weight = (mass[0] - top).exp2();
        values.iter_mut().for_each(|x| *x *= weight);
        let mut total = weight;
        for part in others() {
            let weight = (part[value_dim] - top).exp2();
            values.iter_mut().zip(part).for_each(|(sum, x)| *sum += weight * x);
            total += weight;
        }
        values.iter_mut().for_each(|x| *x /= total);
        mass[0] = top + total.log2();
    }
}

/// Attention of the query rows over the keys of one range: hands every row's result to `put`.
#[inline(always)]
pub(super) fn attend<S: Simd>(
    s: S,
    kv: &KvHead<'_>,
    queries: &Queries<'_>,
    keys: Range<usize>,
    scratch: &mut [f32],
    put: &mut dyn FnMut(RowResult<'_>),
) {
    // What tokens of a prompt come to does not depend on how many of them are in a pass.
    let is_streamed = S::FAST && queries.n_tokens == 1 && (kv.key_dim | kv.value_dim).is_multiple_of(S::LANES);
    match queries.rows() {
        n if !is_streamed || n > STREAMED_ROWS_MAX => {
            attend_rows::<S, TILED_ROWS, false>(s, kv, queries, keys, scratch, put);
        }
        0..=2 => attend_rows::<S, 2, true>(s, kv, queries, keys, scratch, put),
        3..=4 => attend_rows::<S, 4, true>(s, kv, queries, keys, scratch, put),
        _ => attend_rows::<S, STREAMED_ROWS_MAX, true>(s, kv, queries, keys, scratch, put),
    }
}

/// The next `n` values of the scratch.
#[inline(always)]
fn take<'a, T: Pod>(scratch: &mut &'a mut [f32], n: usize) -> &'a mut [T] {
    let (taken, rest) = std::mem::take(scratch).split_at_mut(n * size_of::<T>() / size_of::<f32>());
    *scratch = rest;
    bytes::cast_mut(bytes::floats_as_bytes(taken))
}

/// Rows are worked on in blocks of `N`; the last is filled up with queries of zero, whose results nobody reads.
#[inline(always)]
fn attend_rows<S: Simd, const N: usize, const STREAMED: bool>(
    s: S,
    kv: &KvHead<'_>,
    queries: &Queries<'_>,
    keys: Range<usize>,
    mut scratch: &mut [f32],
    put: &mut dyn FnMut(RowResult<'_>),
) {
    let (d, value_dim, n_rows, group) = (kv.key_dim, kv.value_dim, queries.rows(), queries.group);
    let padded = value_dim.next_multiple_of(KEY_TILE);
    let n_blocks = n_rows.div_ceil(N);
    let scratch = &mut scratch;
    let steps = d.div_ceil(PANEL_ROWS);
    let q = take::<u8>(scratch, QUERY_ROWS_MAX * steps * size_of::<tiled::Sixteen>());
    let sums = &mut take::<f32>(scratch, QUERY_ROWS_MAX * padded)[..n_blocks * N * padded];
    let scores = take::<[f32; KEY_TILE]>(scratch, QUERY_ROWS_MAX).as_chunks_mut::<N>().0;
    let tops = &mut take::<f32>(scratch, QUERY_ROWS_MAX)[..n_rows];
    let totals = &mut take::<f32>(scratch, QUERY_ROWS_MAX * PANEL_ROWS)[..n_rows * S::LANES];
    // For tiles alone.
    let query_scales = take::<f32>(scratch, QUERY_ROWS_MAX).as_chunks_mut::<N>().0;
    let weights16 = take::<tiled::Weights>(scratch, QUERY_ROWS_MAX).as_chunks_mut::<N>().0;
    let weight_scales = take::<f32>(scratch, QUERY_ROWS_MAX).as_chunks_mut::<N>().0;
    let k_tile = take(scratch, d / 2);
    let v_tile = take(scratch, padded / 2);
    let [k_scales, v_scales] = take::<[f32; KEY_TILE]>(scratch, 2) else { unreachable!() };
    let floats = take::<f32>(scratch, PANEL_ROWS * padded.max(d));

    let (q, q16): (&[[f32; N]], &[[tiled::Sixteen; N]]) = match STREAMED {
        true => {
            let q = bytes::cast_mut(&mut q[..n_blocks * N * d * 4]);
            streamed::pack_queries(queries, d, q);
            (q, &[])
        }
        false => {
            let q16 = bytes::cast_mut(&mut q[..n_blocks * N * steps * size_of::<tiled::Sixteen>()]);
            tiled::pack_queries(s, queries, d, floats, q16, query_scales);
            (&[], q16)
        }
    };
    sums.fill(0.0);
    tops.fill(f32::NEG_INFINITY);
    totals.fill(0.0);
    if let Some(sinks) = queries.sinks {
        for (row, top) in tops.iter_mut().enumerate() {
            (*top, totals[row * S::LANES]) = (sinks[row % group] * std::f32::consts::LOG2_E, 1.0);
        }
    }

    let [key_bytes, value_bytes] = [d, value_dim].map(|dim| kv.kv_type.row_bytes(dim) * KEY_TILE);
    let [ask_keys, ask_values] = [key_bytes, value_bytes].map(|bytes| bytes.div_ceil(n_blocks).next_multiple_of(64));
    if !keys.is_empty() {
        Ahead::keys(&kv.tile(keys.start)).ask(s, key_bytes);
    }
    for first in keys.clone().step_by(KEY_TILE) {
        let (n, tile) = (KEY_TILE.min(keys.end - first), kv.tile(first));
        // While K is worked on V comes from memory, and the other way round.
        let next_values = Ahead::values(&tile);
        let next_keys = if first + n < keys.end { Ahead::keys(&kv.tile(first + n)) } else { Ahead::NOTHING };
        // Before which key of the tile a row sees none, and before which all; rows are in the order of their tokens.
        let hidden = |row: usize| match queries.keys().saturating_sub(queries.window) <= first {
            true => 0,
            false => (queries.position + row / group + 1).saturating_sub(queries.window).saturating_sub(first).min(n),
        };
        let seen = |row: usize| match queries.position + 1 >= first + n {
            true => n,
            false => (queries.position + row.min(n_rows - 1) / group + 1).saturating_sub(first).min(n),
        };
        let seen_of = |block: usize| hidden(block * N)..seen(block * N + N - 1);
        if !STREAMED {
            tiled::keys_to_tile(s, &tile, n, floats, k_tile, k_scales);
        }
        for (block, scores) in scores.iter_mut().enumerate().take(n_blocks) {
            if seen_of(block).is_empty() {
                continue;
            }
            match STREAMED {
                true => streamed::score(s, Keys { kv: tile, n, ahead: next_values }, &q[block * d..][..d], scores),
                false => {
                    next_values.skip(block * ask_values).ask(s, ask_values);
                    let q16 = &q16[block * steps..][..steps];
                    tiled::score(s, (k_tile, k_scales), (q16, &query_scales[block]), scores);
                }
            }
            for (row, scores) in scores.iter_mut().enumerate().take(n_rows - block * N) {
                let row = block * N + row;
                let state = (&mut tops[row], &mut totals[row * S::LANES..][..S::LANES]);
                weights(s, scores, hidden(row)..seen(row), state, &mut sums[row * padded..][..padded]);
            }
        }
        if !STREAMED {
            tiled::values_to_tile(s, &tile, n, floats, v_tile, v_scales);
        }
        for (block, weights) in scores.iter_mut().enumerate().take(n_blocks) {
            let keys = seen_of(block);
            if keys.is_empty() {
                continue;
            }
            let sums = &mut sums[block * N * padded..][..N * padded];
            match STREAMED {
                true => {
                    let seen = Keys { kv: tile, n: keys.end, ahead: next_keys };
                    streamed::weigh(s, seen, keys.start, weights, sums, padded);
                }
                false => {
                    next_keys.skip(block * ask_keys).ask(s, ask_keys);
                    let (weights16, scales) = (&mut weights16[block], &mut weight_scales[block]);
                    for n in 0..N {
                        let row = block * N + n;
                        let seen = hidden(row)..seen(row);
                        scales[n] = tiled::quantise(s, &mut weights[n], seen, v_scales, &mut weights16[n]);
                    }
                    tiled::weigh(s, v_tile, (weights16, scales), keys, sums, (value_dim, padded));
                }
            }
        }
    }
    for row in 0..n_rows {
        let total = s.sum(s.load(&totals[row * S::LANES..]));
        let inverse = s.splat(if total == 0.0 { 0.0 } else { 1.0 / total });
        let sums = &mut sums[row * padded..][..padded];
        for x in sums.chunks_exact_mut(S::LANES) {
            s.store(s.mul(s.load(x), inverse), x);
        }
        put(RowResult {
            token: row / group,
            head: row % group,
            values: &sums[..value_dim],
            mass: tops[row] + total.log2(),
        });
    }
}

/// Turns one row's scores into weights `2^(score - m)`, those of the keys it sees, the others into zeros; moves `m`, the
/// sum of weights (by lanes) and the weighted sum of V along.
#[inline(always)]
fn weights<S: Simd>(
    s: S,
    scores: &mut [f32; KEY_TILE],
    seen: Range<usize>,
    (top, totals): (&mut f32, &mut [f32]),
    sums: &mut [f32],
) {
    if seen.is_empty() {
        return scores.fill(0.0);
    }
    let partly = seen.len() < KEY_TILE;
    if partly {
        mask(s, scores, seen.clone(), f32::NEG_INFINITY);
    }
    let mut largest = s.load(scores);
    for x in scores.chunks_exact(S::LANES).skip(1) {
        largest = s.max(largest, s.load(x));
    }
    let mut total = s.load(totals);
    // Rare after the first tiles.
    if s.any_above(largest, s.splat(*top)) {
        let largest = s.largest(largest);
        let shrink = s.splat((*top - largest).exp2());
        *top = largest;
        total = s.mul(total, shrink);
        for x in sums.chunks_exact_mut(S::LANES) {
            s.store(s.mul(s.load(x), shrink), x);
        }
    }
    let shift = s.splat(*top);
    for x in scores.chunks_exact_mut(S::LANES) {
        let weight = exp2(s, s.sub(s.load(x), shift));
        s.store(weight, x);
        total = s.add(total, weight);
    }
    s.store(total, totals);
    if partly {
        // They were counted with 2^-126 each.
        mask(s, scores, seen, 0.0);
    }
}

/// Puts `with` in the place of all but the keys `seen`.
#[inline(always)]
fn mask<S: Simd>(s: S, scores: &mut [f32; KEY_TILE], seen: Range<usize>, with: f32) {
    // From 64 less the length of what is left out before, ones are what follows; and so with zeros behind.
    static ONES: [[u8; 4 * KEY_TILE]; 3] = [[0; 4 * KEY_TILE], [0xff; 4 * KEY_TILE], [0; 4 * KEY_TILE]];
    let (ones, with) = (ONES.as_flattened(), s.as_i(s.splat(with)));
    let from = &ones[4 * (KEY_TILE - seen.start)..][..4 * KEY_TILE];
    let to = &ones[4 * (2 * KEY_TILE - seen.end)..][..4 * KEY_TILE];
    for (at, x) in scores.chunks_exact_mut(S::LANES).enumerate() {
        let at = at * 4 * S::LANES;
        let seen = s.and(s.load_bytes(&from[at..]), s.load_bytes(&to[at..]));
        // (x ^ with) & seen ^ with
        let kept = s.and(s.xor(s.as_i(s.load(x)), with), seen);
        s.store(s.as_f(s.xor(kept, with)), x);
    }
}

/// 2^x for x <= 127, relative error below 2e-7; results below 2^-126 are flushed to 2^-126, NaN stays NaN.
///
/// `x` is split into the nearest integer, which goes into the exponent, and a remainder in -0.5..=0.5, for which a
/// minimax polynomial of degree 5 (relative error 1.1e-7, exact at 0) stands.
#[inline(always)]
fn exp2<S: Simd>(s: S, x: S::F) -> S::F {
    // Adding 1.5 * 2^23 rounds to an integer, which is then found in the low bits.
    let magic = s.splat(12_582_912.0);
    // In this order a NaN is what `max` returns.
    let x = s.max(s.splat(-126.0), x);
    let shifted = s.add(x, magic);
    let r = s.sub(x, s.sub(shifted, magic));
    let mut p = s.splat(1.330_060_5e-3);
    for c in [9.669_691e-3, 5.550_558_5e-2, 0.240_222_83, std::f32::consts::LN_2, 1.0] {
        p = s.fma(p, r, s.splat(c));
    }
    s.as_f(s.add_i(s.as_i(p), s.shl::<23>(s.as_i(shifted))))
}
