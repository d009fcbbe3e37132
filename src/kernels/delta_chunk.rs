//! The gated delta rule (see [`super::delta`]), a few tokens that follow each other at once.
//!
//! With `g_i` the decays of tokens up to `i` multiplied, and `r_ij` those after `j` up to `i`, which nothing is divided for,
//! the corrections and results of a chunk of `C` tokens need nothing but its first state and each other:
//!
//! ```text
//! d_i = strength_i * (v_i - g_i S^T k_i - sum_{j<i} r_ij (k_j . k_i) d_j)
//! o_i = g_i S^T q_i + sum_{j<=i} r_ij (k_j . q_i) d_j
//! S <- g_C S + sum_j r_Cj k_j d_j^T
//! ```
//!
//! A value of a strip is loaded three times and stored once for the whole chunk. For each of its tokens it takes
//! `3 + 1/C` instructions of arithmetic, not 4; what tokens make of each other adds `C/64` for the products of keys and
//! queries and `C/128` for sums of corrections (128 keys, strips of 64 columns). That is least, 3.3, for `C` from 4 to 8,
//! and 4.5 for 64; with products that four strips share, 3.2 for 8 to 16. Of 4 tokens the corrections stay in registers, so
//! there is no scratch (Zen 4: 85 % of the f32 peak, where a token at a time takes 69 %; through scratch, products given for
//! nothing, chunks of 8 and 16 reach 90 %, of 64 81 %).

#![allow(clippy::needless_range_loop, reason = "arrays of registers are indexed side by side")]

use super::delta::DeltaToken;
use super::recurrent::STATE_STEP;
use super::simd::Simd;

/// Tokens of a chunk.
pub const DELTA_CHUNK: usize = 4;

/// A number for every token.
type ByToken<T> = [T; DELTA_CHUNK];

/// What the tokens of a chunk are to each other.
struct Chunk<'a> {
    queries: ByToken<&'a [f32]>,
    keys: ByToken<&'a [f32]>,
    strengths: ByToken<f32>,
    /// What is left of the first state for token `i`: `g_i`.
    left: ByToken<f32>,
    /// What is left at the end of a correction: `r_Cj`.
    left_of: ByToken<f32>,
    /// Of token `i`: `r_ij (k_j . k_i)` for `j < i`.
    with_keys: ByToken<ByToken<f32>>,
    /// Of token `i`: `r_ij (k_j . q_i)` for `j <= i`.
    with_queries: ByToken<ByToken<f32>>,
}

impl<'a> Chunk<'a> {
    #[inline(always)]
    fn new<S: Simd>(s: S, tokens: &ByToken<DeltaToken<'a>>) -> Self {
        let n_keys = tokens[0].key.len();
        let mut chunk = Chunk {
            queries: tokens.map(|token| &token.query[..n_keys]),
            keys: tokens.map(|token| &token.key[..n_keys]),
            strengths: tokens.map(|token| token.strength),
            left: [1.0; DELTA_CHUNK],
            left_of: [1.0; DELTA_CHUNK],
            with_keys: [[0.0; DELTA_CHUNK]; DELTA_CHUNK],
            with_queries: [[0.0; DELTA_CHUNK]; DELTA_CHUNK],
        };
        let mut of_keys = [[s.splat(0.0); DELTA_CHUNK]; DELTA_CHUNK];
        let mut of_queries = of_keys;
        for at in (0..n_keys).step_by(S::LANES) {
            let mut keys = [s.splat(0.0); DELTA_CHUNK];
            for i in 0..DELTA_CHUNK {
                keys[i] = s.load(&chunk.keys[i][at..]);
                let query = s.load(&chunk.queries[i][at..]);
                for j in 0..i {
                    of_keys[i][j] = s.fma(keys[j], keys[i], of_keys[i][j]);
                }
                for j in 0..=i {
                    of_queries[i][j] = s.fma(keys[j], query, of_queries[i][j]);
                }
            }
        }
        let mut left = 1.0;
        for (i, token) in tokens.iter().enumerate() {
            left *= token.decay;
            chunk.left[i] = left;
            for j in 0..i {
                chunk.left_of[j] *= token.decay;
                chunk.with_keys[i][j] = chunk.left_of[j] * s.sum(of_keys[i][j]);
                chunk.with_queries[i][j] = chunk.left_of[j] * s.sum(of_queries[i][j]);
            }
            chunk.with_queries[i][i] = s.sum(of_queries[i][i]);
        }
        chunk
    }
}

/// The tokens' turn of a strip `state`, `[key.len()][cols]`: `v`, `[DELTA_CHUNK][cols]`, becomes `o`.
#[inline(always)]
pub fn delta_chunk<S: Simd>(s: S, state: &mut [f32], tokens: &ByToken<DeltaToken<'_>>, v: &mut [f32]) {
    let (n_keys, cols) = (tokens[0].key.len(), v.len() / DELTA_CHUNK);
    assert!(tokens.iter().all(|token| token.query.len() == n_keys && token.key.len() == n_keys));
    assert!(n_keys.is_multiple_of(S::LANES) && cols.is_multiple_of(STATE_STEP) && cols > 0);
    assert!(v.len() == DELTA_CHUNK * cols && state.len() == n_keys * cols);
    let chunk = Chunk::new(s, tokens);
    let wide = 2 * S::LANES;
    let whole = cols / wide * wide;
    for at in (0..whole).step_by(wide) {
        columns::<S, 2>(s, state, (cols, at), &chunk, v);
    }
    // A step of columns is one vector of the widest.
    if whole < cols {
        columns::<S, 1>(s, state, (cols, whole), &chunk, v);
    }
}

/// The same of `V` vectors of columns, from column `at` on.
#[inline(always)]
fn columns<S: Simd, const V: usize>(
    s: S,
    state: &mut [f32],
    (cols, at): (usize, usize),
    chunk: &Chunk<'_>,
    v: &mut [f32],
) {
    let width = V * S::LANES;
    let mut d = read::<S, V>(s, state, (cols, at), &chunk.keys);
    let of_queries = read::<S, V>(s, state, (cols, at), &chunk.queries);
    for (i, v) in v.chunks_exact_mut(cols).enumerate() {
        let v = &mut v[at..at + width];
        let (left, strength) = (s.splat(chunk.left[i]), s.splat(chunk.strengths[i]));
        for n in 0..V {
            let v = &mut v[n * S::LANES..];
            let mut missing = s.fnma(left, d[i][n], s.load(v));
            let mut out = s.mul(left, of_queries[i][n]);
            for j in 0..i {
                missing = s.fnma(s.splat(chunk.with_keys[i][j]), d[j][n], missing);
                out = s.fma(s.splat(chunk.with_queries[i][j]), d[j][n], out);
            }
            d[i][n] = s.mul(strength, missing);
            s.store(s.fma(s.splat(chunk.with_queries[i][i]), d[i][n], out), v);
        }
    }
    for (d, left) in d.iter_mut().zip(chunk.left_of) {
        for n in 0..V {
            d[n] = s.mul(s.splat(left), d[n]);
        }
    }
    let left = s.splat(chunk.left[DELTA_CHUNK - 1]);
    for (row, state) in state.chunks_exact_mut(cols).enumerate().take(chunk.keys[0].len()) {
        let state = &mut state[at..at + width];
        let mut sums = [s.splat(0.0); V];
        for n in 0..V {
            sums[n] = s.mul(left, s.load(&state[n * S::LANES..]));
        }
        for (key, d) in chunk.keys.iter().zip(&d) {
            let key = s.splat(key[row]);
            for n in 0..V {
                sums[n] = s.fma(key, d[n], sums[n]);
            }
        }
        for n in 0..V {
            s.store(sums[n], &mut state[n * S::LANES..]);
        }
    }
}

/// `S^T x` of every token's `x`, of `V` vectors of columns.
#[inline(always)]
fn read<S: Simd, const V: usize>(
    s: S,
    state: &[f32],
    (cols, at): (usize, usize),
    of: &ByToken<&[f32]>,
) -> ByToken<[S::F; V]> {
    let mut sums = [[s.splat(0.0); V]; DELTA_CHUNK];
    for (row, state) in state.chunks_exact(cols).enumerate().take(of[0].len()) {
        let state = &state[at..at + V * S::LANES];
        let mut values = [s.splat(0.0); V];
        for n in 0..V {
            values[n] = s.load(&state[n * S::LANES..]);
        }
        for (x, sums) in of.iter().zip(&mut sums) {
            let x = s.splat(x[row]);
            for n in 0..V {
                sums[n] = s.fma(x, values[n], sums[n]);
            }
        }
    }
    sums
}
