//! What a matrix product is, in f64: the definition that every tier is held to.

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

/// Attention of one query over `n` keys in f64.
pub(super) fn attend(q: &[f32], keys: &[f32], values: &[f32], d: usize, n: usize) -> Vec<f64> {
    let dot = |i: usize| (0..d).map(|j| f64::from(q[j]) * f64::from(keys[i * d + j])).sum::<f64>() / (d as f64).sqrt();
    let scores: Vec<f64> = (0..n).map(dot).collect();
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
    let total: f64 = weights.iter().sum();
    (0..d).map(|j| (0..n).map(|i| weights[i] * f64::from(values[i * d + j])).sum::<f64>() / total).collect()
}
