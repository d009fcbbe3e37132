//! What the kernels compute, in f64: the definition that every tier is held to.

use std::ops::Range;

use super::delta::DeltaToken;

/// `out[t][r] = sum_k w[r][k] * x[t][k]`, and `sum_k |w * x|`, the scale of its rounding error.
pub(super) fn matmul(w: &[f32], x: &[f32], rows: usize, cols: usize, n_tokens: usize) -> Vec<(f64, f64)> {
    let mut out = Vec::with_capacity(rows * n_tokens);
    for t in 0..n_tokens {
        for r in 0..rows {
            let products = (0..cols).map(|k| f64::from(w[r * cols + k]) * f64::from(x[t * cols + k]));
            out.push(products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs())));
        }
    }
    out
}

/// Attention of one query over some keys, whose scores may be capped; a sink takes its share of the weight.
pub(super) fn attend(
    q: &[f32],
    (keys, values): (&[f32], &[f32]),
    seen: Range<usize>,
    (scale, cap, slope): (f32, Option<f32>, f32),
    sink: Option<f32>,
) -> Vec<f64> {
    let d = q.len();
    let last = seen.end - 1;
    let dot = |i: usize| {
        let dot: f64 = (0..d).map(|j| f64::from(q[j]) * f64::from(keys[i * d + j])).sum();
        let score = dot * f64::from(scale);
        let score = cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh());
        score - f64::from(slope) * (last - i) as f64
    };
    let sink = sink.map_or(f64::NEG_INFINITY, f64::from);
    let scores: Vec<f64> = seen.clone().map(dot).collect();
    let top = scores.iter().copied().fold(sink, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
    let total: f64 = weights.iter().sum::<f64>() + (sink - top).exp();
    let value_dim = values.len() / (keys.len() / d);
    let value = |i: usize, j: usize| f64::from(values[i * value_dim + j]);
    (0..value_dim).map(|j| seen.clone().zip(&weights).map(|(i, w)| w * value(i, j)).sum::<f64>() / total).collect()
}

/// One token of the gated delta rule on `state`, `[key.len()][v.len()]`: what it reads.
pub(super) fn delta_step(state: &mut [f64], token: &DeltaToken<'_>, v: &[f32]) -> Vec<f64> {
    let DeltaToken { query: q, key: k, decay, strength } = *token;
    let cols = v.len();
    state.iter_mut().for_each(|x| *x *= f64::from(decay));
    let read = |state: &[f64], with: &[f32], col: usize| -> f64 {
        with.iter().enumerate().map(|(row, &with)| f64::from(with) * state[row * cols + col]).sum()
    };
    for (col, &v) in v.iter().enumerate() {
        let d = f64::from(strength) * (f64::from(v) - read(state, k, col));
        k.iter().enumerate().for_each(|(row, &k)| state[row * cols + col] += f64::from(k) * d);
    }
    (0..cols).map(|col| read(state, q, col)).collect()
}

/// One token of a selective state space on `state`, `[b.len()][x.len()]`: what it reads. `rates(at, col)`: the decay of a
/// value of the state, the step of its channel, and what skips the state.
pub(super) fn ssm_step(
    state: &mut [f64],
    (b, c): (&[f32], &[f32]),
    x: &[f32],
    rates: &dyn Fn(usize, usize) -> (f64, f32, f32),
) -> Vec<f64> {
    let cols = x.len();
    let mut y: Vec<f64> = (0..cols).map(|col| f64::from(rates(col, col).2) * f64::from(x[col])).collect();
    for (at, value) in state.iter_mut().enumerate() {
        let (row, col) = (at / cols, at % cols);
        let (decay, dt, _) = rates(at, col);
        *value = decay * *value + f64::from(b[row]) * f64::from(dt) * f64::from(x[col]);
        y[col] += f64::from(c[row]) * *value;
    }
    y
}
