//! The gated delta rule (arXiv:2412.06464), a token at a time.
//!
//! The state of a head maps keys to values: a token first makes it fade, then corrects what it holds for the token's key
//! `k` towards the value `v`, and reads it with the query `q`:
//!
//! ```text
//! S <- decay * S        d = strength * (v - S^T k)        S <- S + k d^T        o = S^T q
//! ```
//!
//! Columns of a state depend on nothing but their own values, so it lies, and is worked on, in strips of up to
//! [`STRIP_COLS`](super::recurrent::STRIP_COLS) of them, `[key_dim][cols]`: 32 KiB at 128 keys, which stay in L1 between the two passes of a token. As
//! `S^T q` after the correction is `decay * S^T q + (k . q) d` of the state before, the first pass reads for both products,
//! the second writes: each value is loaded twice and stored once, and takes three multiply-adds and a multiplication.
//! Where several tokens follow each other, [`super::delta_chunk`] takes less.

use super::recurrent::STATE_STEP;
use super::simd::Simd;

/// What a token brings a head.
#[derive(Clone, Copy)]
pub struct DeltaToken<'a> {
    /// What reads the state, as long as the key.
    pub query: &'a [f32],
    /// Where the state is corrected.
    pub key: &'a [f32],
    /// What is left of the state before.
    pub decay: f32,
    /// How much of the way to the value the correction goes.
    pub strength: f32,
}

/// Vectors of columns that are worked on at once: sums of both products stay in registers.
const VECTORS: usize = 4;

/// One token's turn of a strip `state`, `[key.len()][v.len()]`: `v` becomes `o`.
#[inline(always)]
pub fn delta_step<S: Simd>(s: S, state: &mut [f32], token: &DeltaToken<'_>, v: &mut [f32]) {
    let (q, k, rates, cols) = (token.query, token.key, [token.decay, token.strength], v.len());
    assert!(q.len() == k.len() && state.len() == k.len() * cols && cols.is_multiple_of(STATE_STEP));
    let mut dot = s.splat(0.0);
    for (q, k) in q.chunks_exact(S::LANES).zip(k.chunks_exact(S::LANES)) {
        dot = s.fma(s.load(q), s.load(k), dot);
    }
    let kq = s.sum(dot);
    let wide = VECTORS * S::LANES;
    let whole = if S::FAST { cols / wide * wide } else { 0 };
    for at in (0..whole).step_by(wide) {
        columns::<S, VECTORS>(s, state, (cols, at), (q, k, kq), v, rates);
    }
    for at in (whole..cols).step_by(S::LANES) {
        columns::<S, 1>(s, state, (cols, at), (q, k, kq), v, rates);
    }
}

/// The same of `V` vectors of columns, from column `at` on.
#[inline(always)]
fn columns<S: Simd, const V: usize>(
    s: S,
    state: &mut [f32],
    (cols, at): (usize, usize),
    (q, k, kq): (&[f32], &[f32], f32),
    v: &mut [f32],
    [decay, strength]: [f32; 2],
) {
    let width = V * S::LANES;
    let (mut of_k, mut of_q) = ([s.splat(0.0); V], [s.splat(0.0); V]);
    for (row, (&k, &q)) in state.chunks_exact(cols).zip(k.iter().zip(q)) {
        let row = &row[at..at + width];
        let (k, q) = (s.splat(k), s.splat(q));
        for n in 0..V {
            let x = s.load(&row[n * S::LANES..]);
            (of_k[n], of_q[n]) = (s.fma(k, x, of_k[n]), s.fma(q, x, of_q[n]));
        }
    }
    let (decay, strength, kq) = (s.splat(decay), s.splat(strength), s.splat(kq));
    let mut d = of_k;
    let v = &mut v[at..at + width];
    for n in 0..V {
        let v = &mut v[n * S::LANES..];
        d[n] = s.mul(strength, s.fnma(decay, of_k[n], s.load(v)));
        s.store(s.fma(kq, d[n], s.mul(decay, of_q[n])), v);
    }
    for (row, &k) in state.chunks_exact_mut(cols).zip(k) {
        let row = &mut row[at..at + width];
        let k = s.splat(k);
        for n in 0..V {
            let x = &mut row[n * S::LANES..];
            s.store(s.fma(k, d[n], s.mul(decay, s.load(x))), x);
        }
    }
}
