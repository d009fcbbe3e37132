//! Work on single rows: norm, rotary embedding, gated activation. Lengths need not be whole vectors.

use super::simd::{Simd, exp};

/// `1 / sqrt(mean(x^2) + eps)`, the factor of RMSNorm (arXiv:1910.07467).
#[inline(always)]
fn rms_factor<S: Simd>(s: S, x: &[f32], eps: f32) -> f32 {
    let mut squares = s.splat(0.0);
    for x in x.chunks_exact(S::LANES) {
        let x = s.load(x);
        squares = s.fma(x, x, squares);
    }
    let tail: f32 = x[x.len() / S::LANES * S::LANES..].iter().map(|x| x * x).sum();
    1.0 / ((s.sum(squares) + tail) / x.len() as f32 + eps).sqrt()
}

/// `out = x * rms_factor(x) * weight`.
#[inline(always)]
pub fn rms_norm<S: Simd>(s: S, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == out.len());
    let factor = rms_factor(s, x, eps);
    let whole = x.len() / S::LANES * S::LANES;
    for at in (0..whole).step_by(S::LANES) {
        let scaled = s.mul(s.load(&x[at..]), s.splat(factor));
        s.store(s.mul(scaled, s.load(&weight[at..])), &mut out[at..]);
    }
    for at in whole..x.len() {
        out[at] = x[at] * factor * weight[at];
    }
}

/// `out += x * rms_factor(x) * weight`.
#[inline(always)]
pub fn add_rms_norm<S: Simd>(s: S, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == out.len());
    let factor = rms_factor(s, x, eps);
    let whole = x.len() / S::LANES * S::LANES;
    for at in (0..whole).step_by(S::LANES) {
        let scaled = s.mul(s.load(&x[at..]), s.splat(factor));
        s.store(s.fma(scaled, s.load(&weight[at..]), s.load(&out[at..])), &mut out[at..]);
    }
    for at in whole..x.len() {
        out[at] += x[at] * factor * weight[at];
    }
}

/// `x *= rms_factor(x) * weight`.
#[inline(always)]
pub fn rms_norm_in_place<S: Simd>(s: S, x: &mut [f32], weight: &[f32], eps: f32) {
    assert!(x.len() == weight.len());
    let factor = rms_factor(s, x, eps);
    let whole = x.len() / S::LANES * S::LANES;
    for at in (0..whole).step_by(S::LANES) {
        let scaled = s.mul(s.load(&x[at..]), s.splat(factor));
        s.store(s.mul(scaled, s.load(&weight[at..])), &mut x[at..]);
    }
    for at in whole..x.len() {
        x[at] *= factor * weight[at];
    }
}

/// `x / (1 + e^-y)`. Beyond +-87 the factor is 1 or below 1e-37; the clamp keeps `e^-y` finite.
#[inline(always)]
fn times_sigmoid<S: Simd>(s: S, x: S::F, y: S::F) -> S::F {
    let negated = s.sub(s.splat(0.0), s.max(y, s.splat(-87.0)));
    s.div(x, s.add(s.splat(1.0), exp(s, negated)))
}

/// `x / (1 + e^-x)`
#[inline(always)]
pub fn silu<S: Simd>(s: S, x: S::F) -> S::F {
    times_sigmoid(s, x, x)
}

/// `x *= scale / sqrt(sum(x^2) + eps)`.
#[inline(always)]
pub fn l2_norm_in_place<S: Simd>(s: S, x: &mut [f32], eps: f32, scale: f32) {
    let n = x.len() as f32;
    // The factor of RMSNorm has the mean of squares in the place of their sum.
    let factor = rms_factor(s, x, eps / n) * scale / n.sqrt();
    x.iter_mut().for_each(|x| *x *= factor);
}

/// `x *= sigmoid(gate)`.
#[inline(always)]
pub fn sigmoid_mul<S: Simd>(s: S, gate: &[f32], x: &mut [f32]) {
    assert!(gate.len() == x.len());
    let whole = x.len() / S::LANES * S::LANES;
    for at in (0..whole).step_by(S::LANES) {
        s.store(times_sigmoid(s, s.load(&x[at..]), s.load(&gate[at..])), &mut x[at..]);
    }
    for at in whole..x.len() {
        x[at] /= 1.0 + (-gate[at]).exp();
    }
}

/// Smaller of the two.
#[inline(always)]
fn least<S: Simd>(s: S, a: S::F, b: f32) -> S::F {
    s.sub(s.splat(0.0), s.max(s.sub(s.splat(0.0), a), s.splat(-b)))
}

/// `out = silu(gate) * up`, `silu(g) = g / (1 + e^-g)` (SwiGLU, arXiv:2002.05202).
#[inline(always)]
pub fn silu_mul<S: Simd>(s: S, gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(gate.len() == up.len() && gate.len() == out.len());
    let whole = gate.len() / S::LANES * S::LANES;
    for at in (0..whole).step_by(S::LANES) {
        let g = s.load(&gate[at..]);
        s.store(s.mul(silu(s, g), s.load(&up[at..])), &mut out[at..]);
    }
    for at in whole..gate.len() {
        out[at] = gate[at] / (1.0 + (-gate[at]).exp()) * up[at];
    }
}

/// `2 * sqrt(2 / pi)`, and the same times 0.044715: `gelu(g) = g / (1 + e^-(A g + B g^3))` (the form with tanh of
/// arXiv:1606.08415, as `1 + tanh(u) = 2 / (1 + e^-2u)`).
const GELU_A: f32 = 1.595_769;
const GELU_B: f32 = 0.071_354_814;

/// `out = gelu(gate) * up` (GeGLU, arXiv:2002.05202).
#[inline(always)]
pub fn gelu_mul<S: Simd>(s: S, gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(gate.len() == up.len() && gate.len() == out.len());
    let whole = gate.len() / S::LANES * S::LANES;
    for at in (0..whole).step_by(S::LANES) {
        let g = s.load(&gate[at..]);
        let y = s.mul(g, s.fma(s.mul(g, g), s.splat(GELU_B), s.splat(GELU_A)));
        s.store(s.mul(times_sigmoid(s, g, y), s.load(&up[at..])), &mut out[at..]);
    }
    for at in whole..gate.len() {
        let g = gate[at];
        out[at] = g / (1.0 + (-g * (GELU_A + GELU_B * g * g)).exp()) * up[at];
    }
}

/// Slope of the sigmoid and bound on its arguments in gpt-oss.
const OSS_ALPHA: f32 = 1.702;
const OSS_LIMIT: f32 = 7.0;

/// `out = g / (1 + e^-(1.702 g)) * (u + 1)` with `g = min(gate, 7)` and `u` = `up` within -7 and 7: the clamped SwiGLU of
/// gpt-oss.
#[inline(always)]
pub fn swiglu_clamped<S: Simd>(s: S, gate: &[f32], up: &[f32], out: &mut [f32]) {
    let n = out.len();
    assert!(gate.len() == n && up.len() == n);
    let whole = n / S::LANES * S::LANES;
    for at in (0..whole).step_by(S::LANES) {
        let g = least(s, s.load(&gate[at..]), OSS_LIMIT);
        let u = least(s, s.load(&up[at..]), OSS_LIMIT);
        let u = s.add(s.max(u, s.splat(-OSS_LIMIT)), s.splat(1.0));
        s.store(s.mul(times_sigmoid(s, g, s.mul(g, s.splat(OSS_ALPHA))), u), &mut out[at..]);
    }
    for at in whole..n {
        let g = gate[at].min(OSS_LIMIT);
        let u = up[at].clamp(-OSS_LIMIT, OSS_LIMIT);
        out[at] = g / (1.0 + (-OSS_ALPHA * g).exp()) * (u + 1.0);
    }
}

/// Rotates pairs `(i, i + n)` of the first `2n` values by the angles whose cosines and sines are given: the pairing of
/// NeoX models.
#[inline(always)]
pub fn rope_halves<S: Simd>(s: S, x: &mut [f32], cos: &[f32], sin: &[f32]) {
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
pub fn rope_pairs(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    for (pair, (c, s)) in x.as_chunks_mut::<2>().0.iter_mut().zip(cos.iter().zip(sin)) {
        let (p, q) = (pair[0], pair[1]);
        pair[0] = p * c - q * s;
        pair[1] = p * s + q * c;
    }
}
