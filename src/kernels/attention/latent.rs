//! Attention of many query heads over one row a position: multi-head latent attention (DeepSeek-V2, arXiv:2405.04434),
//! absorbed. The row is the key of every head, and its first values are the value of every head.
//!
//! Query rows lie on the lanes: every number of a latent row is broadcast to `LANES` rows at once, so that maximum, sum and
//! weights need no horizontal operation, and rows of several tokens fill lanes as well as heads of one do. A tile of 64
//! latent rows becomes f32 once for all blocks of query rows. Of a block, scores take [`TOGETHER`] positions at a time and
//! sums [`TOGETHER`] values, one register each.

use std::ops::Range;

use super::cache::{KvHead, load_value};
use super::queries::{KEY_TILE, RowResult};
use super::softmax::exp2;
use crate::kernels::simd::Simd;
use crate::quant::PANEL_ROWS;

/// Most query rows of one call: enough to make the conversion of a tile 1 % of the work on it, few enough that queries,
/// sums and the tile (420 KiB together at 512 + 64 values) stay in L2.
pub const LATENT_ROWS_MAX: usize = 64;

/// Fewest positions of a range: about 50 us of work on 16 heads of 512 + 64 values.
pub const LATENT_KEYS_MIN: usize = 128;

/// Sums in registers at a time: as many as hide the latency of one, for two units.
const TOGETHER: usize = 8;

/// Some values of every head of every token: those of head `h` of token `t` start at `t * strides[0] + h * strides[1]`.
#[derive(Clone, Copy)]
pub struct HeadValues<'a> {
    /// Where they lie.
    pub values: &'a [f32],
    /// From token to token, and from head to head.
    pub strides: [usize; 2],
}

impl<'a> HeadValues<'a> {
    /// Those from `head` of `token` on.
    pub fn from(self, token: usize, head: usize) -> HeadValues<'a> {
        HeadValues { values: &self.values[token * self.strides[0] + head * self.strides[1]..], ..self }
    }
}

/// Query rows: `group` heads of each of some consecutive tokens.
#[derive(Clone, Copy)]
pub struct LatentQueries<'a> {
    /// What meets the values of a latent row.
    pub latent: HeadValues<'a>,
    /// What meets the rest of it, which is rotated.
    pub rotated: HeadValues<'a>,
    /// Heads per token.
    pub group: usize,
    /// Tokens.
    pub n_tokens: usize,
    /// Position of the first token; it sees itself and what is before.
    pub position: usize,
    /// What dot products are multiplied by.
    pub scale: f32,
}

impl LatentQueries<'_> {
    /// Rows: heads times tokens.
    pub const fn rows(&self) -> usize {
        self.n_tokens * self.group
    }

    /// Positions that the last token sees.
    pub const fn keys(&self) -> usize {
        self.position + self.n_tokens
    }
}

/// f32 values of scratch that [`attend_latent`] needs, for latent rows of `key_dim` values of which `value_dim` are values.
pub const fn latent_scratch(key_dim: usize, value_dim: usize) -> usize {
    LATENT_ROWS_MAX * (key_dim + value_dim + 2) + KEY_TILE * (key_dim + PANEL_ROWS) + value_dim
}

/// One block of `LANES` query rows, each array by lane.
struct Block<'s> {
    /// Queries times scale, `[key_dim][LANES]`.
    q: &'s mut [f32],
    /// Weighted sums of values, `[value_dim][LANES]`.
    sums: &'s mut [f32],
    /// Running maxima.
    tops: &'s mut [f32],
    /// Running sums of weights.
    totals: &'s mut [f32],
}

/// Attention of the query rows over the positions of one range: hands every row's result to `put`.
#[inline(always)]
pub fn attend_latent<S: Simd>(
    s: S,
    kv: &KvHead<'_>,
    queries: &LatentQueries<'_>,
    keys: Range<usize>,
    scratch: &mut [f32],
    put: &mut dyn FnMut(RowResult<'_>),
) {
    let (key_dim, value_dim, group, n_rows) = (kv.key_dim, kv.value_dim, queries.group, queries.rows());
    let (tile, scratch) = scratch.split_at_mut(KEY_TILE * key_dim);
    let (scores, scratch) = scratch.split_at_mut(KEY_TILE * PANEL_ROWS);
    let (result, scratch) = scratch.split_at_mut(value_dim);
    let mut blocks = scratch.chunks_exact_mut(S::LANES * (key_dim + value_dim + 2)).map(|block| {
        let (q, block) = block.split_at_mut(S::LANES * key_dim);
        let (sums, block) = block.split_at_mut(S::LANES * value_dim);
        let (tops, totals) = block.split_at_mut(S::LANES);
        Block { q, sums, tops, totals }
    });
    let mut blocks: [Option<Block<'_>>; LATENT_ROWS_MAX / 4] = std::array::from_fn(|_| blocks.next());
    let blocks = &mut blocks[..n_rows.div_ceil(S::LANES)];
    for (at, block) in blocks.iter_mut().flatten().enumerate() {
        pack(queries, kv, at * S::LANES..n_rows.min((at + 1) * S::LANES), (S::LANES, &mut *block.q));
        block.sums.fill(0.0);
        // Low enough to be nothing beside any score, and no infinity, of which differences are no numbers.
        block.tops.fill(-1e30);
        block.totals.fill(0.0);
    }
    for first in keys.clone().step_by(KEY_TILE) {
        let n = KEY_TILE.min(keys.end - first);
        tile_of(s, kv, (first, n), tile);
        for (at, block) in blocks.iter_mut().flatten().enumerate() {
            let row = at * S::LANES;
            // Positions of the tile that the tokens of the first and the last lane see.
            let seen = |row: usize| (queries.position + row.min(n_rows - 1) / group + 1).saturating_sub(first).min(n);
            let (least, most) = (seen(row), seen(row + S::LANES - 1));
            if most == 0 {
                continue;
            }
            let rows = &tile[..most.next_multiple_of(TOGETHER) * key_dim];
            match S::FAST {
                true => score::<S, TOGETHER>(s, rows, key_dim, block.q, scores),
                false => score::<S, 1>(s, rows, key_dim, block.q, scores),
            }
            let scores = &mut scores[..most * S::LANES];
            for (lane, seen) in (0..S::LANES).map(|lane| (lane, seen(row + lane))).filter(|_| least < most) {
                scores[seen * S::LANES..]
                    .chunks_exact_mut(S::LANES)
                    .for_each(|scores| scores[lane] = f32::NEG_INFINITY);
            }
            weights(s, scores, least * S::LANES, block);
            let rows = &tile[..most * key_dim];
            match S::FAST {
                true => weigh::<S, TOGETHER>(s, rows, (key_dim, value_dim), scores, block.sums),
                false => weigh::<S, 1>(s, rows, (key_dim, value_dim), scores, block.sums),
            }
        }
    }
    for (at, block) in blocks.iter().flatten().enumerate() {
        for lane in 0..S::LANES.min(n_rows - at * S::LANES) {
            let (row, total) = (at * S::LANES + lane, block.totals[lane]);
            let inverse = if total == 0.0 { 0.0 } else { 1.0 / total };
            let sums = block.sums[lane..].iter().step_by(S::LANES);
            result.iter_mut().zip(sums).for_each(|(result, sum)| *result = sum * inverse);
            let (token, head) = (row / group, row % group);
            put(RowResult { token, head, values: result, log_sum: block.tops[lane] + total.log2() });
        }
    }
}

/// The queries of some rows, times their scale, `[key_dim][lanes]`; zeros in lanes without a row.
fn pack(queries: &LatentQueries<'_>, kv: &KvHead<'_>, rows: Range<usize>, (lanes, q): (usize, &mut [f32])) {
    let scale = queries.scale * std::f32::consts::LOG2_E;
    let (latent, rotated) = q.split_at_mut(kv.value_dim * lanes);
    for lane in 0..lanes {
        let row = rows.start + lane;
        let (token, head) = (row / queries.group, row % queries.group);
        for (from, to) in [(queries.latent, &mut *latent), (queries.rotated, &mut *rotated)] {
            let to = to[lane..].iter_mut().step_by(lanes);
            match row < rows.end {
                true => to.zip(from.from(token, head).values).for_each(|(to, x)| *to = x * scale),
                false => to.for_each(|to| *to = 0.0),
            }
        }
    }
}

/// Some latent rows of a page as f32, `[n][key_dim]`.
#[inline(always)]
fn tile_of<S: Simd>(s: S, kv: &KvHead<'_>, (first, n): (usize, usize), tile: &mut [f32]) {
    let row_bytes = kv.kv_type.row_bytes(kv.key_dim);
    let page = &kv.bytes[kv.pages[first / KEY_TILE] as usize * kv.page_bytes..][..KEY_TILE * row_bytes];
    for (row, out) in page.chunks_exact(row_bytes).zip(tile.chunks_exact_mut(kv.key_dim)).take(n) {
        for (i, out) in out.chunks_exact_mut(S::LANES).enumerate() {
            let [x] = load_value::<S, 1>(s, kv.kv_type, row, i * S::LANES);
            s.store(x, out);
        }
    }
}

/// Scores of whole groups of `T` positions, `[positions][LANES]`: dot products of their rows with the queries.
#[inline(always)]
fn score<S: Simd, const T: usize>(s: S, tile: &[f32], key_dim: usize, q: &[f32], scores: &mut [f32]) {
    let groups = tile.chunks_exact(T * key_dim).zip(scores.chunks_exact_mut(T * S::LANES));
    for (rows, scores) in groups {
        let mut sums = [s.splat(0.0); T];
        // Sixteen values of each row at a time, whose bounds are checked once.
        for (at, q) in q.chunks_exact(PANEL_ROWS * S::LANES).enumerate() {
            let mut x = [&[0f32; PANEL_ROWS]; T];
            for (i, x) in x.iter_mut().enumerate() {
                *x = &rows[i * key_dim..][..key_dim].as_chunks::<PANEL_ROWS>().0[at];
            }
            for (i, q) in q.chunks_exact(S::LANES).enumerate().take(PANEL_ROWS) {
                let q = s.load(q);
                for (sum, x) in sums.iter_mut().zip(&x) {
                    *sum = s.fma(s.splat(x[i]), q, *sum);
                }
            }
        }
        for (sum, scores) in sums.into_iter().zip(scores.chunks_exact_mut(S::LANES)) {
            s.store(sum, scores);
        }
    }
}

/// Turns scores, `[positions][LANES]`, into weights `2^(score - m)`, those of minus infinity, of which there are none
/// before value `seen_by_all`, into zeros; moves `m`, the sums of weights and those of values along.
#[inline(always)]
fn weights<S: Simd>(s: S, scores: &mut [f32], seen_by_all: usize, block: &mut Block<'_>) {
    let old = s.load(block.tops);
    let mut tops = old;
    for scores in scores.chunks_exact(S::LANES) {
        tops = s.max(tops, s.load(scores));
    }
    let mut totals = s.load(block.totals);
    // Rare after the first tiles.
    if s.any_above(tops, old) {
        let shrink = exp2(s, s.sub(old, tops));
        s.store(tops, block.tops);
        totals = s.mul(totals, shrink);
        for x in block.sums.chunks_exact_mut(S::LANES) {
            s.store(s.mul(s.load(x), shrink), x);
        }
    }
    for (at, scores) in scores.chunks_exact_mut(S::LANES).enumerate() {
        let score = s.load(scores);
        let weight = exp2(s, s.sub(score, tops));
        if at * S::LANES < seen_by_all {
            s.store(weight, scores);
            totals = s.add(totals, weight);
            continue;
        }
        let mut kept = [0f32; PANEL_ROWS];
        s.store(weight, &mut kept);
        for (score, weight) in scores.iter_mut().zip(kept) {
            *score = if *score == f32::NEG_INFINITY { 0.0 } else { weight };
        }
        totals = s.add(totals, s.load(scores));
    }
    s.store(totals, block.totals);
}

/// Adds the values of some positions times their weights, `[positions][LANES]`, to the sums, `[value_dim][LANES]`, `T` values at a time.
#[inline(always)]
fn weigh<S: Simd, const T: usize>(
    s: S,
    tile: &[f32],
    (key_dim, value_dim): (usize, usize),
    weights: &[f32],
    sums: &mut [f32],
) {
    for (at, sums) in sums.chunks_exact_mut(T * S::LANES).enumerate().take(value_dim / T) {
        let mut acc = [s.splat(0.0); T];
        for (acc, sums) in acc.iter_mut().zip(sums.chunks_exact(S::LANES)) {
            *acc = s.load(sums);
        }
        for (row, weight) in tile.chunks_exact(key_dim).zip(weights.chunks_exact(S::LANES)) {
            let (x, weight) = (&row.as_chunks::<T>().0[at], s.load(weight));
            for (acc, x) in acc.iter_mut().zip(x) {
                *acc = s.fma(s.splat(*x), weight, *acc);
            }
        }
        for (acc, sums) in acc.into_iter().zip(sums.chunks_exact_mut(S::LANES)) {
            s.store(acc, sums);
        }
    }
}

/// `out = sum_i x[i] * rows[i]`: the product of `x` with a matrix whose rows, as long as `out`, are inputs.
#[inline(always)]
pub fn absorb<S: Simd>(s: S, rows: &[f32], x: &[f32], out: &mut [f32]) {
    let cols = out.len();
    let mut done = 0;
    while done < cols {
        done += match (cols - done) / S::LANES {
            TOGETHER.. => absorb_vectors::<S, TOGETHER>(s, (rows, cols), x, done, out),
            _ => absorb_vectors::<S, 1>(s, (rows, cols), x, done, out),
        };
    }
}

/// `V` vectors from column `at` on; returns their values.
#[inline(always)]
fn absorb_vectors<S: Simd, const V: usize>(
    s: S,
    (rows, cols): (&[f32], usize),
    x: &[f32],
    at: usize,
    out: &mut [f32],
) -> usize {
    let mut sums = [s.splat(0.0); V];
    for (row, x) in rows.chunks_exact(cols).zip(x) {
        let (row, x) = (&row[at..][..V * S::LANES], s.splat(*x));
        for (v, sum) in sums.iter_mut().enumerate() {
            *sum = s.fma(s.load(&row[v * S::LANES..]), x, *sum);
        }
    }
    for (sum, out) in sums.into_iter().zip(out[at..].chunks_exact_mut(S::LANES)) {
        s.store(sum, out);
    }
    V * S::LANES
}
