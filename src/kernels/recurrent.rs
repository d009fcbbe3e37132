//! What mixers with a state have in common: strips of states, and the causal convolution before them.

use super::rowwise::silu;
use super::simd::Simd;

/// Most columns of a strip.
pub const STRIP_COLS: usize = 64;

/// Widths of heads, of their states and of blocks of channels are multiples of this: a whole number of vectors on every tier.
pub const STATE_STEP: usize = 16;

/// How many columns of a state of `cols` one strip has; `cols` is a multiple of [`STATE_STEP`].
pub const fn strip_cols(cols: usize) -> usize {
    let mut strip = STRIP_COLS;
    while !cols.is_multiple_of(strip) {
        strip /= 2;
    }
    strip
}

/// One token of a causal convolution of some channels, and SiLU of it: `x`, its inputs, becomes
/// `silu(bias + sum_j weights[j] * input[j])`, where the last input is `x` and `history` has those before it, the oldest
/// first; it moves on by one. `weights` is `[taps][n]`, `history` `[taps - 1][n]`, `bias` `[n]`, or empty for none.
#[inline(always)]
pub fn conv_silu<S: Simd>(s: S, history: &mut [f32], (weights, bias): (&[f32], &[f32]), x: &mut [f32]) {
    let n = x.len();
    assert!(n.is_multiple_of(STATE_STEP) && weights.len() == history.len() + n);
    assert!(bias.is_empty() || bias.len() == n);
    let newest = history.len();
    for at in (0..n).step_by(S::LANES) {
        let input = s.load(&x[at..]);
        let bias = if bias.is_empty() { s.splat(0.0) } else { s.load(&bias[at..]) };
        let mut sum = s.fma(s.load(&weights[newest + at..]), input, bias);
        for tap in (at..newest).step_by(n) {
            let past = s.load(&history[tap..]);
            sum = s.fma(s.load(&weights[tap..]), past, sum);
            if tap >= n {
                s.store(past, &mut history[tap - n..]);
            }
        }
        if newest > 0 {
            s.store(input, &mut history[newest - n + at..]);
        }
        s.store(silu(s, sum), &mut x[at..]);
    }
}
