//! Few rows: K and V from the cache through registers, each load used by all `N` rows.

use super::block::{add_products, load_block, store_block};
use super::cache::{KvTile, KvType, Prefetch, load_value};
use super::queries::{KEY_TILE, Queries, STREAMED_ROWS_MAX};
use crate::kernels::simd::Simd;
use crate::quant::{GROUP, PANEL_ROWS};

/// The first keys of a page.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a> {
    pub kv: KvTile<'a>,
    pub n: usize,
    /// What is asked for meanwhile, a line for every line read.
    pub ahead: Prefetch,
}

/// Rows of the block that takes `n_rows`: 2, 4 or 8.
pub(super) const fn block_rows(n_rows: usize) -> usize {
    match n_rows {
        0..=2 => 2,
        3..=4 => 4,
        _ => STREAMED_ROWS_MAX,
    }
}

/// Queries as a block of `n_rows` rows, `[key_dim][n_rows]`, times `log2(e) * scale`: scores are exponents of 2. Not for any
/// tier: it is little of the work, and the compiler makes thousands of instructions of it where it may.
#[inline(never)]
pub(super) fn pack_queries(queries: &Queries<'_>, d: usize, n_rows: usize, q: &mut [f32]) {
    let scale = std::f32::consts::LOG2_E * queries.scale;
    for n in 0..n_rows {
        let to = q.iter_mut().skip(n).step_by(n_rows);
        if n >= queries.rows() {
            to.for_each(|q| *q = 0.0);
            continue;
        }
        let from = n / queries.group * queries.stride + n % queries.group * d;
        to.zip(&queries.values[from..][..d]).for_each(|(q, x)| *q = x * scale);
    }
}

/// Scores of the keys, whole panels, for a block of rows.
#[inline(always)]
pub(super) fn score<S: Simd>(s: S, keys: Keys<'_>, q: &[f32], scores: &mut [[f32; KEY_TILE]]) {
    if let Some(scores) = scores.as_mut_array::<2>() {
        score_rows(s, keys, q.as_chunks().0, scores);
    } else if let Some(scores) = scores.as_mut_array::<4>() {
        score_rows(s, keys, q.as_chunks().0, scores);
    } else if let Some(scores) = scores.as_mut_array::<STREAMED_ROWS_MAX>() {
        score_rows(s, keys, q.as_chunks().0, scores);
    }
}

#[inline(always)]
fn score_rows<S: Simd, const N: usize>(
    s: S,
    Keys { kv, n, ahead }: Keys<'_>,
    q: &[[f32; N]],
    scores: &mut [[f32; KEY_TILE]; N],
) {
    for lane0 in (0..n).step_by(PANEL_ROWS) {
        let panel = kv.panel(lane0);
        let ahead = ahead.skip(lane0 / PANEL_ROWS * panel.len());
        for lane in (0..PANEL_ROWS).step_by(S::LANES) {
            let sums = match kv.kv_type {
                KvType::F16 => score_floats::<S, N, { 2 * PANEL_ROWS }>(s, panel, lane, q, ahead),
                KvType::Q8_0 => score_q8_0::<S, N>(s, panel, lane, q, ahead),
                KvType::F32 => score_floats::<S, N, { 4 * PANEL_ROWS }>(s, panel, lane, q, ahead),
            };
            for (sum, scores) in sums.into_iter().zip(&mut *scores) {
                s.store(sum, &mut scores[lane0 + lane..]);
            }
        }
    }
}

/// Adds up chains of sums: enough of them for `N` rows hide the latency of the fused multiply-add.
#[inline(always)]
fn join<S: Simd, const N: usize>(s: S, chains: [[S::F; N]; 4]) -> [S::F; N] {
    let mut sums = chains[0];
    for n in 0..N {
        sums[n] = s.add(s.add(chains[0][n], chains[1][n]), s.add(chains[2][n], chains[3][n]));
    }
    sums
}

/// Keys of f16 or f32, by the bytes of one value of a panel's keys.
#[inline(always)]
fn score_floats<S: Simd, const N: usize, const STEP: usize>(
    s: S,
    panel: &[u8],
    lane: usize,
    q: &[[f32; N]],
    ahead: Prefetch,
) -> [S::F; N] {
    let mut chains = [[s.splat(0.0); N]; 4];
    let steps = panel.as_chunks::<STEP>().0.as_chunks::<4>().0;
    for (at, (steps, q)) in steps.iter().zip(q.as_chunks::<4>().0).enumerate() {
        if lane == 0 {
            ahead.skip(at * 4 * STEP).ask(s, 4 * STEP);
        }
        for (i, (step, q)) in steps.iter().zip(q).enumerate() {
            let keys = match STEP / PANEL_ROWS {
                2 => s.load_f16(&step[2 * lane..]),
                _ => s.as_f(s.load_bytes(&step[4 * lane..])),
            };
            let chain = &mut chains[i % (STREAMED_ROWS_MAX / N)];
            for n in 0..N {
                chain[n] = s.fma(keys, s.splat(q[n]), chain[n]);
            }
        }
    }
    join::<S, N>(s, chains)
}

#[inline(always)]
fn score_q8_0<S: Simd, const N: usize>(s: S, panel: &[u8], lane: usize, q: &[[f32; N]], ahead: Prefetch) -> [S::F; N] {
    let mut sums = [s.splat(0.0); N];
    let blocks = panel.as_chunks::<{ PANEL_ROWS * (2 + GROUP) }>().0;
    for (at, (block, q)) in blocks.iter().zip(q.as_chunks::<GROUP>().0).enumerate() {
        if lane == 0 {
            ahead.skip(at * block.len()).ask(s, block.len());
        }
        let mut chains = [[s.splat(0.0); N]; 4];
        for (steps, q) in block[2 * PANEL_ROWS..].as_chunks::<{ 4 * PANEL_ROWS }>().0.iter().zip(q.as_chunks::<4>().0) {
            for (i, q) in q.iter().enumerate() {
                let keys = s.to_f(s.load_i8(&steps[i * PANEL_ROWS + lane..]));
                let chain = &mut chains[i % (STREAMED_ROWS_MAX / N)];
                for n in 0..N {
                    chain[n] = s.fma(keys, s.splat(q[n]), chain[n]);
                }
            }
        }
        let scale = s.load_f16(&block[2 * lane..]);
        for (sum, block) in sums.iter_mut().zip(join::<S, N>(s, chains)) {
            *sum = s.fma(block, scale, *sum);
        }
    }
    sums
}

/// Adds V of the keys times their weights to the sums of a block of rows, `[rows][stride]`; nothing before key `hidden` is
/// read.
#[inline(always)]
pub(super) fn weigh<S: Simd>(
    s: S,
    keys: Keys<'_>,
    hidden: usize,
    weights: &[[f32; KEY_TILE]],
    sums: &mut [f32],
    stride: usize,
) {
    if let Some(weights) = weights.as_array::<2>() {
        weigh_rows(s, keys, hidden, weights, sums, stride);
    } else if let Some(weights) = weights.as_array::<4>() {
        weigh_rows(s, keys, hidden, weights, sums, stride);
    } else if let Some(weights) = weights.as_array::<STREAMED_ROWS_MAX>() {
        weigh_rows(s, keys, hidden, weights, sums, stride);
    }
}

#[inline(always)]
fn weigh_rows<S: Simd, const N: usize>(
    s: S,
    keys: Keys<'_>,
    hidden: usize,
    weights: &[[f32; KEY_TILE]; N],
    sums: &mut [f32],
    stride: usize,
) {
    let n_vectors = keys.kv.value_dim / S::LANES;
    // Half of the registers hold sums.
    let most = S::REGISTERS / 2 / N;
    let mut done = 0;
    while done < n_vectors {
        let at = done * S::LANES;
        let done_bytes = keys.n * keys.kv.kv_type.row_bytes(keys.kv.value_dim) / n_vectors * done;
        let keys = Keys { ahead: keys.ahead.skip(done_bytes), ..keys };
        done += match most.min(n_vectors - done) {
            8.. => weigh_vectors::<S, N, 8>(s, keys, hidden, weights, sums, (stride, at)),
            4.. => weigh_vectors::<S, N, 4>(s, keys, hidden, weights, sums, (stride, at)),
            2.. => weigh_vectors::<S, N, 2>(s, keys, hidden, weights, sums, (stride, at)),
            _ => weigh_vectors::<S, N, 1>(s, keys, hidden, weights, sums, (stride, at)),
        };
    }
}

/// `V` vectors of every row, from value `at` on; returns `V`.
#[inline(always)]
fn weigh_vectors<S: Simd, const N: usize, const V: usize>(
    s: S,
    Keys { kv, n, ahead }: Keys<'_>,
    hidden: usize,
    weights: &[[f32; KEY_TILE]; N],
    sums: &mut [f32],
    (stride, at): (usize, usize),
) -> usize {
    let part = V * S::LANES * kv.kv_type.row_bytes(kv.value_dim) / kv.value_dim;
    let mut acc = load_block::<S, N, V>(s, sums, stride, at);
    for (key, row) in (hidden..n.min(KEY_TILE)).zip(kv.rows(hidden, n - hidden)) {
        ahead.skip(key * part).ask(s, part);
        let values = load_value::<S, V>(s, kv.kv_type, row, at);
        add_products(s, values, |row| &weights[row][key], &mut acc);
    }
    store_block(s, acc, sums, stride, at);
    V
}
