//! Logarithms of probabilities, as they are reported.

/// The natural logarithm of the probability of `token`; those of the likeliest tokens go to `top`, likeliest first, of
/// equals the one with the lower number. No logit may be NaN.
///
/// # Panics
/// If there is no such token, or `top` is longer than the vocabulary.
pub fn logprobs(logits: &[f32], token: u32, top: &mut [(u32, f32)]) -> f32 {
    assert!(top.len() <= logits.len());
    let mut n = 0;
    for (id, &logit) in logits.iter().enumerate() {
        if n == top.len() && top.last().is_none_or(|(_, least)| logit <= *least) {
            continue;
        }
        let beaten = top[..n].iter().rev().take_while(|(_, other)| logit > *other).count();
        let at = n - beaten;
        n = (n + 1).min(top.len());
        top.copy_within(at..n - 1, at + 1);
        top[at] = (id as u32, logit);
    }
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // Chunks in f32, their sums in f64: a chunk's rounding is below 1e-5 of it.
    let chunk = |part: &[f32]| f64::from(part.iter().map(|x| (x - best).exp()).sum::<f32>());
    let log_total = best + logits.chunks(64).map(chunk).sum::<f64>().ln() as f32;
    top.iter_mut().for_each(|(_, logit)| *logit -= log_total);
    logits[token as usize] - log_total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_add_up_and_the_likeliest_come_first() {
        let logits: Vec<f32> = (0..1000).map(|i| ((i * 7919) % 1000) as f32 / 100.0 - 50.0).collect();
        let mut top = [(0, 0.0); 20];
        let chosen = logprobs(&logits, 123, &mut top);
        let total: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
        let exact = |id: usize| (f64::from(logits[id]).exp() / total).ln();
        assert!((f64::from(chosen) - exact(123)).abs() < 1e-5);
        let mut order: Vec<usize> = (0..1000).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        for (&(id, logprob), want) in top.iter().zip(order) {
            assert_eq!(id as usize, want);
            assert!((f64::from(logprob) - exact(want)).abs() < 1e-5);
        }
        let mut all = vec![(0, 0.0); 1000];
        logprobs(&logits, 0, &mut all);
        let sum: f64 = all.iter().map(|(_, x)| f64::from(*x).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-4, "{sum}");
    }

    #[test]
    fn of_equals_the_lower_number_and_none_at_all() {
        let mut top = [(9, 9.0); 2];
        let logprob = logprobs(&[1.0, 1.0, 1.0, 1.0], 3, &mut top);
        assert_eq!(top.map(|(id, _)| id), [0, 1]);
        assert!((logprob + 4f32.ln()).abs() < 1e-6);
        assert!(logprobs(&[0.0, f32::NEG_INFINITY], 1, &mut []) == f32::NEG_INFINITY);
    }
}
