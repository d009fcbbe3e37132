//! Work on single rows: norms, rotary embedding, activations. Lengths need not be whole vectors.

use super::simd::{Simd, exp};
use crate::quant::PANEL_ROWS;

/// Lanes of the widest vector.
const LANES_MAX: usize = PANEL_ROWS;

/// What is taken out of a row before its weights meet it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Its root mean square (RMSNorm, arXiv:1910.07467).
    Rms,
    /// Its mean, then its deviation (LayerNorm, arXiv:1607.06450).
    Layer,
}

/// A norm of rows: `(x - mean) / sqrt(mean((x - mean)^2) + eps) * weight + bias`; the mean is 0 in RMSNorm.
#[derive(Clone, Copy, Debug)]
pub struct RowNorm<'a> {
    /// Which.
    pub kind: NormKind,
    /// As long as a row; ones if there are none.
    pub weight: Option<&'a [f32]>,
    /// As long as a row; zeros if there are none.
    pub bias: Option<&'a [f32]>,
    /// Added under the root.
    pub eps: f32,
}

impl<'a> RowNorm<'a> {
    /// RMSNorm with weights.
    pub fn rms(weight: &'a [f32], eps: f32) -> RowNorm<'a> {
        RowNorm { kind: NormKind::Rms, weight: Some(weight), bias: None, eps }
    }

    fn assert_length(&self, n: usize) {
        assert!([self.weight, self.bias].into_iter().flatten().all(|values| values.len() == n));
    }
}

/// `1 / sqrt(mean((x - mean)^2) + eps)`.
#[inline(always)]
fn inverse_deviation<S: Simd>(s: S, x: &[f32], mean: f32, eps: f32) -> f32 {
    let mut squares = s.splat(0.0);
    for x in x.chunks_exact(S::LANES) {
        let x = s.sub(s.load(x), s.splat(mean));
        squares = s.fma(x, x, squares);
    }
    let tail: f32 = x[x.len() / S::LANES * S::LANES..].iter().map(|x| (x - mean) * (x - mean)).sum();
    1.0 / ((s.sum(squares) + tail) / x.len() as f32 + eps).sqrt()
}

/// What is taken from every value of a row, and what the rest is multiplied by.
#[inline(always)]
fn terms<S: Simd>(s: S, x: &[f32], norm: &RowNorm<'_>) -> (f32, f32) {
    let mean = match norm.kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => {
            let mut sum = s.splat(0.0);
            for x in x.chunks_exact(S::LANES) {
                sum = s.add(sum, s.load(x));
            }
            let tail: f32 = x[x.len() / S::LANES * S::LANES..].iter().sum();
            (s.sum(sum) + tail) / x.len() as f32
        }
    };
    (mean, inverse_deviation(s, x, mean, norm.eps))
}

/// The norm of the values `x` of a row, from the `at`th on.
#[inline(always)]
fn normed<S: Simd>(s: S, x: &[f32], norm: &RowNorm<'_>, (mean, factor): (f32, f32), at: usize) -> S::F {
    let mut y = s.mul(s.sub(s.load(x), s.splat(mean)), s.splat(factor));
    if let Some(weight) = norm.weight {
        y = s.mul(y, s.load(&weight[at..]));
    }
    if let Some(bias) = norm.bias {
        y = s.add(y, s.load(&bias[at..]));
    }
    y
}

/// The same of one value.
#[inline(always)]
fn normed_one(x: f32, norm: &RowNorm<'_>, (mean, factor): (f32, f32), at: usize) -> f32 {
    let y = (x - mean) * factor * norm.weight.map_or(1.0, |weight| weight[at]);
    y + norm.bias.map_or(0.0, |bias| bias[at])
}

/// `out = norm(x)`.
#[inline(always)]
pub fn norm<S: Simd>(s: S, x: &[f32], norm: &RowNorm<'_>, out: &mut [f32]) {
    assert!(x.len() == out.len());
    norm.assert_length(x.len());
    let terms = terms(s, x, norm);
    let whole = x.len() / S::LANES * S::LANES;
    for at in (0..whole).step_by(S::LANES) {
        s.store(normed(s, &x[at..], norm, terms, at), &mut out[at..]);
    }
    for at in whole..x.len() {
        out[at] = normed_one(x[at], norm, terms, at);
    }
}

/// `out += norm(x)`.
#[inline(always)]
pub fn add_norm<S: Simd>(s: S, x: &[f32], norm: &RowNorm<'_>, out: &mut [f32]) {
    assert!(x.len() == out.len());
    norm.assert_length(x.len());
    let terms = terms(s, x, norm);
    let whole = x.len() / S::LANES * S::LANES;
    for at in (0..whole).step_by(S::LANES) {
        s.store(s.add(normed(s, &x[at..], norm, terms, at), s.load(&out[at..])), &mut out[at..]);
    }
    for at in whole..x.len() {
        out[at] += normed_one(x[at], norm, terms, at);
    }
}

/// `x = norm(x)`.
#[inline(always)]
pub fn norm_in_place<S: Simd>(s: S, x: &mut [f32], norm: &RowNorm<'_>) {
    norm.assert_length(x.len());
    let terms = terms(s, x, norm);
    let whole = x.len() / S::LANES * S::LANES;
    for at in (0..whole).step_by(S::LANES) {
        s.store(normed(s, &x[at..], norm, terms, at), &mut x[at..]);
    }
    for (at, x) in x.iter_mut().enumerate().skip(whole) {
        *x = normed_one(*x, norm, terms, at);
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
    let factor = inverse_deviation(s, x, 0.0, eps / n) * scale / n.sqrt();
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

/// The numbers of [`Activation::Xielu`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Xielu {
    /// Of values below 0.
    pub negative: f32,
    /// Of values above 0.
    pub positive: f32,
    /// Slope at 0.
    pub slope: f32,
    /// What values below 0 are at most; not above 0.
    pub most: f32,
}

/// What a feed-forward layer makes of its gate, or of what goes up where there is no gate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `g / (1 + e^-g)`; with a gate that is SwiGLU (arXiv:2002.05202).
    Silu,
    /// GELU in its form with tanh (arXiv:1606.08415); with a gate GeGLU.
    Gelu,
    /// `max(g, 0)`.
    Relu,
    /// `max(g, 0)^2` (arXiv:2109.08668).
    ReluSquared,
    /// `slope g + positive g^2` above 0, else `slope g + negative (e^min(g, most) - 1 - g)` (xIELU, arXiv:2411.13010).
    Xielu(Xielu),
    /// `g / (1 + e^-(1.702 g)) * (u + 1)` with `g = min(gate, 7)` and `u` = `up` within -7 and 7: gpt-oss.
    SwigluClamped,
    /// `g / (1 + e^-g) * u` with `g` at most this and `u` within plus and minus it.
    SwigluOfLimited(f32),
    /// `g / (1 + e^-g)`, which is at most this, times `u`, which is within plus and minus it.
    LimitedSwiglu(f32),
}

/// `2 * sqrt(2 / pi)`, and the same times 0.044715: `gelu(g) = g / (1 + e^-(A g + B g^3))`, as
/// `1 + tanh(u) = 2 / (1 + e^-2u)`.
const GELU_A: f32 = 1.595_769;
const GELU_B: f32 = 0.071_354_814;

/// Slope of the sigmoid and bound on its arguments in gpt-oss.
const OSS_ALPHA: f32 = 1.702;
const OSS_LIMIT: f32 = 7.0;

/// `activation(gate) * up` of one vector. It is inlined where it is called: a closure that is not would lack the features of
/// the tier.
#[inline(always)]
fn activated<S: Simd>(s: S, activation: Activation, g: S::F, u: S::F) -> S::F {
    match activation {
        Activation::Silu => s.mul(silu(s, g), u),
        Activation::Gelu => {
            let y = s.mul(g, s.fma(s.mul(g, g), s.splat(GELU_B), s.splat(GELU_A)));
            s.mul(times_sigmoid(s, g, y), u)
        }
        Activation::Relu => s.mul(s.max(g, s.splat(0.0)), u),
        Activation::ReluSquared => {
            let g = s.max(g, s.splat(0.0));
            s.mul(s.mul(g, g), u)
        }
        Activation::Xielu(Xielu { negative, positive, slope, most }) => {
            let (above, below) = (s.max(g, s.splat(0.0)), least(s, g, 0.0));
            // At 0 and above it is 0 but for what `most` lets be lost.
            let shrunk = s.sub(s.sub(exp(s, least(s, below, most)), s.splat(1.0)), below);
            let linear = s.mul(g, s.splat(slope));
            let curved = s.fma(s.mul(above, above), s.splat(positive), s.mul(shrunk, s.splat(negative)));
            s.mul(s.add(linear, curved), u)
        }
        Activation::SwigluClamped => {
            let g = least(s, g, OSS_LIMIT);
            let u = s.add(s.max(least(s, u, OSS_LIMIT), s.splat(-OSS_LIMIT)), s.splat(1.0));
            s.mul(times_sigmoid(s, g, s.mul(g, s.splat(OSS_ALPHA))), u)
        }
        Activation::SwigluOfLimited(limit) => {
            s.mul(silu(s, least(s, g, limit)), s.max(least(s, u, limit), s.splat(-limit)))
        }
        Activation::LimitedSwiglu(limit) => {
            s.mul(least(s, silu(s, g), limit), s.max(least(s, u, limit), s.splat(-limit)))
        }
    }
}

/// `out = activation(gate) * up`, or `activation(gate)` without an `up`, vector by vector.
#[inline(always)]
pub fn activate<S: Simd>(s: S, activation: Activation, gate: &[f32], up: Option<&[f32]>, out: &mut [f32]) {
    let n = out.len();
    assert!(gate.len() == n && up.is_none_or(|up| up.len() == n));
    // The rest lies in vectors of its own, so that every value goes the same way.
    let mut rest = [[0.0; LANES_MAX], [1.0; LANES_MAX], [0.0; LANES_MAX]];
    for at in (0..n).step_by(S::LANES) {
        let left = (n - at).min(S::LANES);
        let [rest_gate, rest_up, rest_out] = &mut rest;
        let (g, u) = if left == S::LANES {
            (s.load(&gate[at..]), up.map_or(s.splat(1.0), |up| s.load(&up[at..])))
        } else {
            rest_gate[..left].copy_from_slice(&gate[at..]);
            if let Some(up) = up {
                rest_up[..left].copy_from_slice(&up[at..]);
            }
            (s.load(rest_gate), s.load(rest_up))
        };
        let y = activated(s, activation, g, u);
        if left == S::LANES {
            s.store(y, &mut out[at..]);
        } else {
            s.store(y, rest_out);
            out[at..].copy_from_slice(&rest_out[..left]);
        }
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
