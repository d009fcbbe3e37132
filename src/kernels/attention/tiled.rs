//! Many rows: two matrix products over tiles of f32, `N` rows and two or four vectors of keys or values at a time.
//!
//! With 6 rows and 4 vectors of 512 bits, a step makes 24 fused multiply-adds out of 10 loads and keeps 24 sums, 4
//! vectors and a broadcast in the 32 registers: the arithmetic is the limit.

use std::ops::Range;

use super::KEY_TILE;
use super::block::{add_products, load_block, load_row, store_block};
use crate::kernels::simd::Simd;

type Tile = [[f32; KEY_TILE]];

/// `scores[n][key] = sum_k q[k][n] * tile[k][key]`.
#[inline(always)]
pub(super) fn score<S: Simd, const N: usize>(s: S, tile: &Tile, q: &[[f32; N]], scores: &mut [[f32; KEY_TILE]; N]) {
    if S::REGISTERS >= 32 && S::LANES == 16 {
        return score_vectors::<S, N, 4>(s, tile, q, scores, 0);
    }
    for lane in (0..KEY_TILE).step_by(2 * S::LANES) {
        score_vectors::<S, N, 2>(s, tile, q, scores, lane);
    }
}

#[inline(always)]
fn score_vectors<S: Simd, const N: usize, const V: usize>(
    s: S,
    tile: &Tile,
    q: &[[f32; N]],
    scores: &mut [[f32; KEY_TILE]; N],
    lane: usize,
) {
    let mut acc = [[s.splat(0.0); V]; N];
    for (keys, q) in tile.iter().zip(q) {
        let keys = load_row::<S, V>(s, &keys[lane..]);
        add_products(s, keys, |n| &q[n], &mut acc);
    }
    store_block(s, acc, scores.as_flattened_mut(), KEY_TILE, lane);
}

/// `sums[row][i] += sum_key weights[row][key] * V[key][i]` over some keys of `tile`, `[dims / 64][key][64]`; sums have
/// `stride` values a row.
#[inline(always)]
pub(super) fn weigh<S: Simd, const N: usize>(
    s: S,
    tile: &Tile,
    weights: &[[f32; KEY_TILE]; N],
    keys: Range<usize>,
    sums: &mut [f32],
    (d, stride): (usize, usize),
) {
    let most = if S::REGISTERS >= 32 && S::LANES == 16 { 4 } else { 2 };
    for (span, tile) in tile.as_chunks::<KEY_TILE>().0.iter().enumerate() {
        let end = KEY_TILE.min(d - span * KEY_TILE);
        let mut lane = 0;
        while lane < end {
            let place = (stride, span * KEY_TILE, lane);
            lane += match most.min((end - lane).div_ceil(S::LANES)) {
                4.. => weigh_vectors::<S, N, 4>(s, tile, weights, keys.clone(), sums, place),
                2.. => weigh_vectors::<S, N, 2>(s, tile, weights, keys.clone(), sums, place),
                _ => weigh_vectors::<S, N, 1>(s, tile, weights, keys.clone(), sums, place),
            };
        }
    }
}

/// `V` vectors of every row; returns how many values that is.
#[inline(always)]
fn weigh_vectors<S: Simd, const N: usize, const V: usize>(
    s: S,
    tile: &[[f32; KEY_TILE]; KEY_TILE],
    weights: &[[f32; KEY_TILE]; N],
    keys: Range<usize>,
    sums: &mut [f32],
    (stride, first, lane): (usize, usize, usize),
) -> usize {
    let mut acc = load_block::<S, N, V>(s, sums, stride, first + lane);
    for key in keys.start..keys.end.min(KEY_TILE) {
        let values = load_row::<S, V>(s, &tile[key][lane..]);
        add_products(s, values, |row| &weights[row][key], &mut acc);
    }
    store_block(s, acc, sums, stride, first + lane);
    V * S::LANES
}
