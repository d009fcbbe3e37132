//! Work on single rows: norm, rotary embedding, gated activation. Lengths need not be whole vectors.

use super::simd::{Simd, exp};

/// `out = x / sqrt(mean(x^2) + eps) * weight` (RMSNorm, arXiv:1910.07467).
#[inline(always)]
pub(super) fn rms_norm<S: Simd>(s: S, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == out.len());
    let whole = x.len() / S::LANES * S::LANES;
    let mut squares = s.splat(0.0);
    for x in x.chunks_exact(S::LANES) {
        let x = s.load(x);
        squares = s.fma(x, x, squares);
    }
    let tail: f32 = x[whole..].iter().map(|x| x * x).sum();
    let scale = 1.0 / ((s.sum(squares) + tail) / x.len() as f32 + eps).sqrt();
    for at in (0..whole).step_by(S::LANES) {
        let scaled = s.mul(s.load(&x[at..]), s.splat(scale));
        s.store(s.mul(scaled, s.load(&weight[at..])), &mut out[at..]);
    }
    for at in whole..x.len() {
        out[at] = x[at] * scale * weight[at];
    }
}

/// `out = silu(gate) * up`, `silu(g) = g / (1 + e^-g)` (SwiGLU, arXiv:2002.05202).
#[inline(always)]
pub(super) fn silu_mul<S: Simd>(s: S, gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(gate.len() == up.len() && gate.len() == out.len());
    let whole = gate.len() / S::LANES * S::LANES;
    for at in (0..whole).step_by(S::LANES) {
        let g = s.load(&gate[at..]);
        // Beyond +-87 the factor is 1 or g * e^g < 1e-35; the clamp keeps e^-g finite.
        let negated = s.sub(s.splat(0.0), g);
        let bounded = s.sub(s.splat(0.0), s.max(s.sub(s.splat(0.0), negated), s.splat(-87.0)));
        let silu = s.div(g, s.add(s.splat(1.0), exp(s, bounded)));
        s.store(s.mul(silu, s.load(&up[at..])), &mut out[at..]);
    }
    for at in whole..gate.len() {
        out[at] = gate[at] / (1.0 + (-gate[at]).exp()) * up[at];
    }
}

/// Rotates pairs `(i, i + n)` of the first `2n` values by the angles whose cosines and sines are given: the pairing of
/// NeoX models.
#[inline(always)]
pub(super) fn rope_halves<S: Simd>(s: S, x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let n = cos.len();
    assert!(sin.len() == n && x.len() >= 2 * n);
    let (a, b) = x[..2 * n].split_at_mut(n);
    let whole = n / S::LANES * S::LANES;
    for at in (0..whole).step_by(S::LANES) {
        let (c, d) = (s.load(&cos[at..]), s.load(&sin[at..]));
        let (p, q) = (s.load(&a[at..]), s.load(&b[at..]));
        s.store(s.sub(s.mul(p, c), s.mul(q, d)), &mut a[at..]);
        s.store(s.fma(p, d, s.mul(q, c)), &mut b[at..]);
    }
    for at in whole..n {
        let (p, q) = (a[at], b[at]);
        a[at] = p * cos[at] - q * sin[at];
        b[at] = p * sin[at] + q * cos[at];
    }
}

/// Rotates neighbouring pairs `(2i, 2i + 1)`: the pairing of the original RoPE (arXiv:2104.09864) and of `llama` files.
#[inline(always)]
pub(super) fn rope_pairs(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    for (pair, (c, s)) in x.as_chunks_mut::<2>().0.iter_mut().zip(cos.iter().zip(sin)) {
        let (p, q) = (pair[0], pair[1]);
        pair[0] = p * c - q * s;
        pair[1] = p * s + q * c;
    }
}
