//! Selective state spaces (Mamba, arXiv:2312.00752; Mamba-2, arXiv:2405.21060), a token at a time.
//!
//! The state of a head has a row of channels for each of its dimensions `n`: a token first makes it fade, then writes its
//! channels `x`, times its step `dt`, where `b` says, and reads it with `c`; what skips the state is added:
//!
//! ```text
//! S[n] <- decay * S[n] + b[n] * dt * x        y = sum_n c[n] * S[n] + d * x
//! ```
//!
//! In Mamba-2 the decay `exp(dt * a)` is one number for a head; in the first Mamba every channel has a step of its own, and
//! every value of its state a rate `a`. Channels do not know of each other, so states lie, and are worked on, in strips as
//! those of the delta rule: each value is loaded and stored once, and takes two multiply-adds and a multiplication.

use super::recurrent::STATE_STEP;
use super::simd::{Simd, exp};

/// Vectors of channels that are worked on at once: their sums stay in registers.
const VECTORS: usize = 4;

/// What a token does to all channels of a head alike.
#[derive(Clone, Copy, Debug)]
pub struct SsmRates {
    /// What is left of the state.
    pub decay: f32,
    /// Factor of what is written.
    pub dt: f32,
    /// Factor of what skips the state.
    pub d: f32,
}

/// One token's turn of a strip `state`, `[b.len()][x.len()]`, of Mamba-2: `x` becomes `y`.
#[inline(always)]
pub fn ssm_step<S: Simd>(s: S, state: &mut [f32], (b, c): (&[f32], &[f32]), x: &mut [f32], rates: SsmRates) {
    let cols = x.len();
    assert!(b.len() == c.len() && state.len() == b.len() * cols && cols.is_multiple_of(STATE_STEP));
    let wide = VECTORS * S::LANES;
    let whole = if S::FAST { cols / wide * wide } else { 0 };
    for at in (0..whole).step_by(wide) {
        channels::<S, VECTORS>(s, state, (cols, at), (b, c), x, rates);
    }
    for at in (whole..cols).step_by(S::LANES) {
        channels::<S, 1>(s, state, (cols, at), (b, c), x, rates);
    }
}

/// The same of `V` vectors of channels, from channel `at` on.
#[inline(always)]
fn channels<S: Simd, const V: usize>(
    s: S,
    state: &mut [f32],
    (cols, at): (usize, usize),
    (b, c): (&[f32], &[f32]),
    x: &mut [f32],
    rates: SsmRates,
) {
    let width = V * S::LANES;
    let x = &mut x[at..at + width];
    let (mut written, mut y) = ([s.splat(0.0); V], [s.splat(0.0); V]);
    for n in 0..V {
        let x = s.load(&x[n * S::LANES..]);
        (written[n], y[n]) = (s.mul(s.splat(rates.dt), x), s.mul(s.splat(rates.d), x));
    }
    let decay = s.splat(rates.decay);
    for (row, (&b, &c)) in state.chunks_exact_mut(cols).zip(b.iter().zip(c)) {
        let row = &mut row[at..at + width];
        let (b, c) = (s.splat(b), s.splat(c));
        for n in 0..V {
            let value = &mut row[n * S::LANES..];
            let new = s.fma(b, written[n], s.mul(decay, s.load(value)));
            s.store(new, value);
            y[n] = s.fma(c, new, y[n]);
        }
    }
    for n in 0..V {
        s.store(y[n], &mut x[n * S::LANES..]);
    }
}

/// One token's turn of a strip `state`, `[b.len()][x.len()]`, of the first Mamba: `x` becomes `y`. `a` has the shape of the
/// state, `dt` and `d` that of `x`.
#[inline(always)]
pub fn ssm_step_by_channel<S: Simd>(
    s: S,
    (state, a): (&mut [f32], &[f32]),
    (b, c): (&[f32], &[f32]),
    x: &mut [f32],
    (dt, d): (&[f32], &[f32]),
) {
    let cols = x.len();
    assert!(b.len() == c.len() && state.len() == b.len() * cols && a.len() == state.len());
    assert!(dt.len() == cols && d.len() == cols && cols.is_multiple_of(STATE_STEP));
    for at in (0..cols).step_by(S::LANES) {
        let (input, dt) = (s.load(&x[at..]), s.load(&dt[at..]));
        let written = s.mul(dt, input);
        let mut y = s.mul(s.load(&d[at..]), input);
        for (n, (&b, &c)) in b.iter().zip(c).enumerate() {
            let value = &mut state[n * cols + at..];
            let decay = exp(s, s.mul(dt, s.load(&a[n * cols + at..])));
            let new = s.fma(s.splat(b), written, s.mul(decay, s.load(value)));
            s.store(new, value);
            y = s.fma(s.splat(c), new, y);
        }
        s.store(y, &mut x[at..]);
    }
}
