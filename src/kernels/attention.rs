//! Attention over the KV cache with running maximum and sum: no `n x n` buffer, any context length.
//!
//! # Cache layout
//! One cache per layer and KV head, `ctx` positions (a multiple of 16) of `head_dim` values.
//! - K is kept in panels of 16 positions, `[ctx / 16][head_dim][16]`: one vector load holds the same dimension of 16
//!   keys, so scores need no horizontal adds. q8_0: `[ctx / 16][head_dim / 32]{16 f16 scales, [32][16] i8}`.
//! - V is kept row by row, `[ctx][head_dim]`; q8_0: `[ctx][head_dim / 32]{f16 scale, 32 i8}`.
//!
//! # Algorithm
//! Keys are taken [`KEY_TILE`] at a time; K and V of the tile are converted to f32 once and used by all query rows of
//! the block (the heads of a GQA group times some tokens). For each row the running maximum `m`, the running sum `l`
//! of `exp(score - m)` and the weighted sum of V are rescaled when `m` grows (Milakov and Gimelshein,
//! arXiv:1805.02867; the tiling of FlashAttention, arXiv:2205.14135).

use super::simd::{Simd, exp};
use crate::bytes;
use crate::quant::{GROUP, PANEL_ROWS};

/// Keys converted at a time: K and V tiles of 64 keys x 128 dimensions are 32 KiB each in f32.
pub const KEY_TILE: usize = 64;

/// Most query rows a block may hold.
pub const QUERY_ROWS_MAX: usize = 32;

/// How K and V are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    /// IEEE half.
    F16,
    /// int8 with an f16 scale per 32 values.
    Q8_0,
}

impl KvType {
    /// Bytes of one position of one head, K or V.
    pub const fn row_bytes(self, head_dim: usize) -> usize {
        match self {
            KvType::F16 => head_dim * 2,
            KvType::Q8_0 => head_dim / GROUP * (GROUP + 2),
        }
    }

    /// The name, as in `--kv-type`.
    pub const fn name(self) -> &'static str {
        match self {
            KvType::F16 => "f16",
            KvType::Q8_0 => "q8_0",
        }
    }

    /// Writes one key at `position` of a head's K cache. The f16 rounding is to nearest even; q8_0 rounds to a
    /// multiple of `max / 127` per 32 values.
    pub fn store_key(self, cache: &mut [u8], position: usize, key: &[f32]) {
        let (panel_bytes, lane) = (PANEL_ROWS * self.row_bytes(key.len()), position % PANEL_ROWS);
        let panel = &mut cache[position / PANEL_ROWS * panel_bytes..][..panel_bytes];
        match self {
            KvType::F16 => {
                for (step, x) in panel.chunks_exact_mut(2 * PANEL_ROWS).zip(key) {
                    step[2 * lane..][..2].copy_from_slice(&half::f16::from_f32(*x).to_le_bytes());
                }
            }
            KvType::Q8_0 => {
                for (block, x) in panel.chunks_exact_mut(PANEL_ROWS * (GROUP + 2)).zip(key.chunks_exact(GROUP)) {
                    let (scale, inverse) = q8_scale(x);
                    block[2 * lane..][..2].copy_from_slice(&scale.to_le_bytes());
                    for (step, x) in block[2 * PANEL_ROWS..].chunks_exact_mut(PANEL_ROWS).zip(x) {
                        step[lane] = (x * inverse).round_ties_even() as i8 as u8;
                    }
                }
            }
        }
    }

    /// Writes one value row at `position` of a head's V cache; rounding as [`KvType::store_key`].
    pub fn store_value(self, cache: &mut [u8], position: usize, value: &[f32]) {
        let row_bytes = self.row_bytes(value.len());
        let row = &mut cache[position * row_bytes..][..row_bytes];
        match self {
            KvType::F16 => {
                for (out, x) in row.chunks_exact_mut(2).zip(value) {
                    out.copy_from_slice(&half::f16::from_f32(*x).to_le_bytes());
                }
            }
            KvType::Q8_0 => {
                for (block, x) in row.chunks_exact_mut(GROUP + 2).zip(value.chunks_exact(GROUP)) {
                    let (scale, inverse) = q8_scale(x);
                    block[..2].copy_from_slice(&scale.to_le_bytes());
                    for (q, x) in block[2..].iter_mut().zip(x) {
                        *q = (x * inverse).round_ties_even() as i8 as u8;
                    }
                }
            }
        }
    }
}

fn q8_scale(x: &[f32]) -> (half::f16, f32) {
    let largest = x.iter().fold(0f32, |m, x| m.max(x.abs()));
    (half::f16::from_f32(largest / 127.0), if largest > 0.0 { 127.0 / largest } else { 0.0 })
}

/// One head's cache.
#[derive(Clone, Copy)]
pub struct KvHead<'a> {
    /// How it is kept.
    pub kv_type: KvType,
    /// K, in panels of 16 positions.
    pub keys: &'a [u8],
    /// V, row by row.
    pub values: &'a [u8],
    /// Values per position.
    pub head_dim: usize,
}

/// Query rows of one KV head: `group` heads of each of some consecutive tokens.
#[derive(Clone, Copy)]
pub struct Queries<'a> {
    /// Head `h` of token `t` starts at `t * stride + h * head_dim`.
    pub values: &'a [f32],
    /// Values from token to token.
    pub stride: usize,
    /// Heads per token.
    pub group: usize,
    /// Tokens.
    pub n_tokens: usize,
    /// Position of the first token; it sees itself and everything before.
    pub position: usize,
}

/// f32 values of scratch that [`attend`] needs.
pub const fn attend_scratch(head_dim: usize) -> usize {
    let padded = head_dim.next_multiple_of(32);
    // K and V tiles; queries, results and scores; running maximum and sum.
    KEY_TILE * (head_dim + padded) + QUERY_ROWS_MAX * (head_dim + padded + KEY_TILE + 2)
}

/// Attention of the query rows over their keys: writes row `t * group + h` of the result through
/// `put(t, h, values)`.
#[inline(always)]
pub(super) fn attend<S: Simd>(
    s: S,
    kv: &KvHead<'_>,
    queries: &Queries<'_>,
    scratch: &mut [f32],
    put: &mut dyn FnMut(usize, usize, &[f32]),
) {
    let d = kv.head_dim;
    let padded = d.next_multiple_of(32);
    let n_rows = queries.n_tokens * queries.group;
    assert!(n_rows <= QUERY_ROWS_MAX);
    let (k_tile, rest) = scratch.split_at_mut(KEY_TILE * d);
    let (v_tile, rest) = rest.split_at_mut(KEY_TILE * padded);
    let (q, rest) = rest.split_at_mut(QUERY_ROWS_MAX * d);
    let (sums, rest) = rest.split_at_mut(QUERY_ROWS_MAX * padded);
    let (scores, rest) = rest.split_at_mut(QUERY_ROWS_MAX * KEY_TILE);
    let (largest, rest) = rest.split_at_mut(QUERY_ROWS_MAX);
    let totals = &mut rest[..QUERY_ROWS_MAX];

    let scale = 1.0 / (d as f32).sqrt();
    for row in 0..n_rows {
        let from = row / queries.group * queries.stride + row % queries.group * d;
        for (q, x) in q[row * d..][..d].iter_mut().zip(&queries.values[from..][..d]) {
            *q = x * scale;
        }
    }
    sums[..n_rows * padded].fill(0.0);
    largest.fill(f32::NEG_INFINITY);
    totals.fill(0.0);

    let n_keys = queries.position + queries.n_tokens;
    for first in (0..n_keys).step_by(KEY_TILE) {
        let n = KEY_TILE.min(n_keys - first);
        load_keys(s, kv, first, n, k_tile);
        load_values(s, kv, first, n, v_tile, padded);
        for row0 in (0..n_rows).step_by(4) {
            if row0 + 4 <= n_rows {
                score::<S, 4>(s, q, k_tile, d, row0, scores);
            } else {
                (row0..n_rows).for_each(|row| score::<S, 1>(s, q, k_tile, d, row, scores));
            }
        }
        for row in 0..n_rows {
            let seen = (queries.position + row / queries.group + 1).saturating_sub(first).min(n);
            let scores = &mut scores[row * KEY_TILE..][..KEY_TILE];
            scores[seen..].fill(f32::NEG_INFINITY);
            let mut top = s.splat(largest[row]);
            for x in scores.chunks_exact(S::LANES) {
                top = s.max(top, s.load(x));
            }
            let top = s.largest(top);
            let mut total = s.splat(0.0);
            for x in scores.chunks_exact_mut(S::LANES) {
                s.store(exp(s, s.sub(s.load(x), s.splat(top))), x);
            }
            scores[seen..].fill(0.0);
            for x in scores.chunks_exact(S::LANES) {
                total = s.add(total, s.load(x));
            }
            let shrink = if seen == 0 { 1.0 } else { (largest[row] - top).exp() };
            totals[row] = totals[row] * shrink + s.sum(total);
            largest[row] = top;
            for x in sums[row * padded..][..padded].chunks_exact_mut(S::LANES) {
                s.store(s.mul(s.load(x), s.splat(shrink)), x);
            }
        }
        for row0 in (0..n_rows).step_by(4) {
            if row0 + 4 <= n_rows {
                weigh::<S, 4>(s, scores, v_tile, n, padded, row0, sums);
            } else {
                (row0..n_rows).for_each(|row| weigh::<S, 1>(s, scores, v_tile, n, padded, row, sums));
            }
        }
    }
    for row in 0..n_rows {
        let sums = &mut sums[row * padded..][..padded];
        for x in sums.chunks_exact_mut(S::LANES) {
            s.store(s.div(s.load(x), s.splat(totals[row])), x);
        }
        put(row / queries.group, row % queries.group, &sums[..d]);
    }
}

#[inline(always)]
fn score<S: Simd, const N: usize>(s: S, q: &[f32], k_tile: &[f32], d: usize, row0: usize, scores: &mut [f32]) {
    let rows: [&[f32]; N] = std::array::from_fn(|n| &q[(row0 + n) * d..][..d]);
    for lane in (0..KEY_TILE).step_by(2 * S::LANES) {
        let sums = fma_block::<S, 2, N>(s, &k_tile[lane..], KEY_TILE, &rows, d, [[s.splat(0.0); 2]; N]);
        for (n, [a, b]) in sums.into_iter().enumerate() {
            let out = &mut scores[(row0 + n) * KEY_TILE + lane..];
            s.store(a, out);
            s.store(b, &mut out[S::LANES..]);
        }
    }
}

#[inline(always)]
fn weigh<S: Simd, const N: usize>(
    s: S,
    scores: &[f32],
    v_tile: &[f32],
    n_keys: usize,
    padded: usize,
    row0: usize,
    sums: &mut [f32],
) {
    let rows: [&[f32]; N] = std::array::from_fn(|n| &scores[(row0 + n) * KEY_TILE..][..KEY_TILE]);
    for lane in (0..padded).step_by(2 * S::LANES) {
        let start: [[S::F; 2]; N] = std::array::from_fn(|n| {
            let sums = &sums[(row0 + n) * padded + lane..];
            [s.load(sums), s.load(&sums[S::LANES..])]
        });
        let result = fma_block::<S, 2, N>(s, &v_tile[lane..], padded, &rows, n_keys, start);
        for (n, [a, b]) in result.into_iter().enumerate() {
            let out = &mut sums[(row0 + n) * padded + lane..];
            s.store(a, out);
            s.store(b, &mut out[S::LANES..]);
        }
    }
}

/// Keys `first .. first + n` to f32, `[head_dim][KEY_TILE]`. Whole panels are read; the surplus is masked later.
#[inline(always)]
fn load_keys<S: Simd>(s: S, kv: &KvHead<'_>, first: usize, n: usize, tile: &mut [f32]) {
    let panel_bytes = PANEL_ROWS * kv.kv_type.row_bytes(kv.head_dim);
    for p in 0..KEY_TILE / PANEL_ROWS {
        let lane0 = p * PANEL_ROWS;
        if lane0 >= n {
            tile.chunks_exact_mut(KEY_TILE).for_each(|keys| keys[lane0..].fill(0.0));
            return;
        }
        let panel = &kv.keys[(first / PANEL_ROWS + p) * panel_bytes..][..panel_bytes];
        for half in 0..PANEL_ROWS / S::LANES {
            let lane = half * S::LANES;
            match kv.kv_type {
                KvType::F16 => {
                    for (step, keys) in panel.chunks_exact(2 * PANEL_ROWS).zip(tile.chunks_exact_mut(KEY_TILE)) {
                        s.store(s.load_f16(&step[2 * lane..]), &mut keys[lane0 + lane..]);
                    }
                }
                KvType::Q8_0 => {
                    let blocks = panel.chunks_exact(PANEL_ROWS * (GROUP + 2));
                    for (block, tile) in blocks.zip(tile.chunks_exact_mut(GROUP * KEY_TILE)) {
                        let scale = s.load_f16(&block[2 * lane..]);
                        let steps = block[2 * PANEL_ROWS..].chunks_exact(PANEL_ROWS);
                        for (step, keys) in steps.zip(tile.chunks_exact_mut(KEY_TILE)) {
                            let x = s.to_f(s.load_i8(&step[lane..]));
                            s.store(s.mul(x, scale), &mut keys[lane0 + lane..]);
                        }
                    }
                }
            }
        }
    }
}

/// Values `first .. first + n` to f32, `[n][padded]`, zeros beyond `head_dim`.
#[inline(always)]
fn load_values<S: Simd>(s: S, kv: &KvHead<'_>, first: usize, n: usize, tile: &mut [f32], padded: usize) {
    let (d, row_bytes) = (kv.head_dim, kv.kv_type.row_bytes(kv.head_dim));
    let rows = &kv.values[first * row_bytes..][..n * row_bytes];
    for (row, out) in rows.chunks_exact(row_bytes).zip(tile.chunks_exact_mut(padded)) {
        match kv.kv_type {
            KvType::F16 => {
                let whole = d / S::LANES * S::LANES;
                for at in (0..whole).step_by(S::LANES) {
                    s.store(s.load_f16(&row[2 * at..]), &mut out[at..]);
                }
                let halves: &[half::f16] = bytes::cast(row);
                for (out, x) in out[whole..d].iter_mut().zip(&halves[whole..]) {
                    *out = x.to_f32();
                }
            }
            KvType::Q8_0 => {
                for (block, out) in row.chunks_exact(GROUP + 2).zip(out.chunks_exact_mut(GROUP)) {
                    let scale = s.splat(half::f16::from_le_bytes([block[0], block[1]]).to_f32());
                    for at in (0..GROUP).step_by(S::LANES) {
                        let x = s.to_f(s.load_i8(&block[2 + at..]));
                        s.store(s.mul(x, scale), &mut out[at..]);
                    }
                }
            }
        }
        out[d..].fill(0.0);
    }
}

/// `sums[n][v] += sum_k tile[k * stride + v * LANES ..] * rows[n][k]`.
#[inline(always)]
fn fma_block<S: Simd, const V: usize, const N: usize>(
    s: S,
    tile: &[f32],
    stride: usize,
    rows: &[&[f32]; N],
    k_len: usize,
    mut sums: [[S::F; V]; N],
) -> [[S::F; V]; N] {
    for k in 0..k_len {
        let w: [S::F; V] = std::array::from_fn(|v| s.load(&tile[k * stride + v * S::LANES..]));
        for n in 0..N {
            let a = s.splat(rows[n][k]);
            for v in 0..V {
                sums[n][v] = s.fma(w[v], a, sums[n][v]);
            }
        }
    }
    sums
}
