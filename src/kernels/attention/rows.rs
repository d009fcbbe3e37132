//! Attention of some query rows over a range of keys, tile by tile: see [`super`].

use std::ops::Range;

use super::cache::{KvHead, Prefetch};
use super::queries::{KEY_TILE, QUERY_ROWS_MAX, Queries, RowResult, STREAMED_ROWS_MAX, TILED_ROWS};
use super::softmax::{squeeze, weights};
use super::streamed::{self, Keys};
use super::tiled;
use crate::bytes::{self, Pod};
use crate::kernels::simd::Simd;
use crate::quant::PANEL_ROWS;

/// The next `n` values of the scratch.
#[inline(always)]
fn take<'a, T: Pod>(scratch: &mut &'a mut [f32], n: usize) -> &'a mut [T] {
    let (taken, rest) = std::mem::take(scratch).split_at_mut(n * size_of::<T>() / size_of::<f32>());
    *scratch = rest;
    bytes::cast_mut(bytes::floats_as_bytes(taken))
}

/// Takes from the scores of a tile, exponents of 2, `slope` for every position that a key lies before the query, which is
/// `ahead` of the first key (ALiBi, arXiv:2108.12409).
#[inline(always)]
fn lean(scores: &mut [f32; KEY_TILE], slope: f32, ahead: f32) {
    let slope = slope * std::f32::consts::LOG2_E;
    for (key, score) in scores.iter_mut().enumerate() {
        *score += slope * (key as f32 - ahead);
    }
}

/// Attention of the query rows over the keys of one range: hands every row's result to `put`. Rows are worked on in blocks;
/// the last is filled up with queries of zero, whose results nobody reads. All that is streamed is one block.
#[inline(always)]
pub fn attend<S: Simd>(
    s: S,
    kv: &KvHead<'_>,
    queries: &Queries<'_>,
    keys: Range<usize>,
    mut scratch: &mut [f32],
    put: &mut dyn FnMut(RowResult<'_>),
) {
    let (d, value_dim, n_rows, group) = (kv.key_dim, kv.value_dim, queries.rows(), queries.group);
    // What tokens of a prompt come to does not depend on how many of them are in a pass.
    let streamed = S::FAST && queries.n_tokens == 1 && (d | value_dim).is_multiple_of(S::LANES);
    let streamed = streamed && n_rows <= STREAMED_ROWS_MAX;
    let block_rows = if streamed { streamed::block_rows(n_rows) } else { TILED_ROWS };
    let padded = value_dim.next_multiple_of(KEY_TILE);
    let n_blocks = n_rows.div_ceil(block_rows);
    let scratch = &mut scratch;
    let steps = d.div_ceil(PANEL_ROWS);
    let q = take::<u8>(scratch, QUERY_ROWS_MAX * steps * size_of::<tiled::Sixteen>());
    let sums = &mut take::<f32>(scratch, QUERY_ROWS_MAX * padded)[..n_blocks * block_rows * padded];
    let scores = &mut take::<[f32; KEY_TILE]>(scratch, QUERY_ROWS_MAX)[..n_blocks * block_rows];
    let tops = &mut take::<f32>(scratch, QUERY_ROWS_MAX)[..n_rows];
    let totals = &mut take::<f32>(scratch, QUERY_ROWS_MAX * PANEL_ROWS)[..n_rows * S::LANES];
    // For tiles alone.
    let query_scales = take::<f32>(scratch, QUERY_ROWS_MAX).as_chunks_mut::<TILED_ROWS>().0;
    let weights16 = take::<tiled::Weights>(scratch, QUERY_ROWS_MAX).as_chunks_mut::<TILED_ROWS>().0;
    let weight_scales = take::<f32>(scratch, QUERY_ROWS_MAX).as_chunks_mut::<TILED_ROWS>().0;
    let k_tile = take(scratch, d / 2);
    let v_tile = take(scratch, padded / 2);
    let [k_scales, v_scales] = take::<[f32; KEY_TILE]>(scratch, 2) else { unreachable!() };
    let floats = take::<f32>(scratch, PANEL_ROWS * padded.max(d));

    let (q, q16): (&[f32], &[[tiled::Sixteen; TILED_ROWS]]) = match streamed {
        true => {
            let q = bytes::cast_mut(&mut q[..block_rows * d * 4]);
            streamed::pack_queries(queries, d, block_rows, q);
            (q, &[])
        }
        false => {
            let q16 = bytes::cast_mut(&mut q[..n_blocks * TILED_ROWS * steps * size_of::<tiled::Sixteen>()]);
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
        Prefetch::keys(&kv.tile(keys.start)).ask(s, key_bytes);
    }
    for first in keys.clone().step_by(KEY_TILE) {
        let (n, tile) = (KEY_TILE.min(keys.end - first), kv.tile(first));
        // While K is worked on V comes from memory, and the other way round.
        let next_values = Prefetch::values(&tile);
        let next_keys = if first + n < keys.end { Prefetch::keys(&kv.tile(first + n)) } else { Prefetch::NOTHING };
        // Before which key of the tile a row sees none, and before which all; rows are in the order of their tokens.
        let last = queries.position + queries.n_tokens - 1;
        let hidden = |row: usize| match queries.window.first(last) <= first {
            true => 0,
            false => queries.window.first(queries.position + row / group).saturating_sub(first).min(n),
        };
        let end = |token: usize| queries.window.end(queries.position + token, queries.len);
        let seen = |row: usize| match end(0) >= first + n {
            true => n,
            false => end(row.min(n_rows - 1) / group).saturating_sub(first).min(n),
        };
        let seen_of = |block: usize| hidden(block * block_rows)..seen(block * block_rows + block_rows - 1);
        if !streamed {
            tiled::keys_to_tile(s, &tile, n, floats, k_tile, k_scales);
        }
        for (block, scores) in scores.chunks_exact_mut(block_rows).enumerate() {
            if seen_of(block).is_empty() {
                continue;
            }
            match scores.as_chunks_mut::<TILED_ROWS>().0 {
                [scores] if !streamed => {
                    next_values.skip(block * ask_values).ask(s, ask_values);
                    let q16 = &q16[block * steps..][..steps];
                    tiled::score(s, (k_tile, k_scales), (q16, &query_scales[block]), scores);
                }
                _ => streamed::score(s, Keys { kv: tile, n, ahead: next_values }, q, scores),
            }
            for (row, scores) in scores.iter_mut().enumerate().take(n_rows - block * block_rows) {
                let row = block * block_rows + row;
                if let Some(cap) = queries.cap {
                    squeeze(s, scores, cap * std::f32::consts::LOG2_E);
                }
                if let Some(slopes) = queries.slopes {
                    lean(scores, slopes[row % group], (queries.position + row / group) as f32 - first as f32);
                }
                let state = (&mut tops[row], &mut totals[row * S::LANES..][..S::LANES]);
                weights(s, scores, hidden(row)..seen(row), state, &mut sums[row * padded..][..padded]);
            }
        }
        if !streamed {
            tiled::values_to_tile(s, &tile, n, floats, v_tile, v_scales);
        }
        let blocks = scores.chunks_exact_mut(block_rows).zip(sums.chunks_exact_mut(block_rows * padded));
        for (block, (weights, sums)) in blocks.enumerate() {
            let keys = seen_of(block);
            if keys.is_empty() {
                continue;
            }
            if streamed {
                let seen = Keys { kv: tile, n: keys.end, ahead: next_keys };
                streamed::weigh(s, seen, keys.start, weights, sums, padded);
                continue;
            }
            next_keys.skip(block * ask_keys).ask(s, ask_keys);
            let (weights16, scales) = (&mut weights16[block], &mut weight_scales[block]);
            for (n, weights) in weights.iter_mut().enumerate() {
                let row = block * TILED_ROWS + n;
                let seen = hidden(row)..seen(row);
                scales[n] = tiled::quantise(s, weights, seen, v_scales, &mut weights16[n]);
            }
            tiled::weigh(s, v_tile, (weights16, scales), keys, sums, (value_dim, padded));
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
            log_sum: tops[row] + total.log2(),
        });
    }
}
