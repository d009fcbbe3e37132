//! Scores of a tile become weights.

use std::ops::Range;

use super::queries::KEY_TILE;
use crate::kernels::simd::{Simd, called, exp};

/// `cap * tanh(score / cap)` in the place of each score. Beyond 40 caps it is the cap; NaN and infinities become NaN.
#[inline(always)]
pub(super) fn squeeze<S: Simd>(s: S, scores: &mut [f32; KEY_TILE], cap: f32) {
    let (least, zero) = (s.splat(-80.0), s.splat(0.0));
    for x in scores.chunks_exact_mut(S::LANES) {
        let score = s.load(x);
        let negated = s.max(s.mul(score, s.splat(-2.0 / cap)), least);
        // tanh(y) = (1 - e^-2y) / (1 + e^-2y)
        let e = exp(s, s.sub(zero, s.max(s.sub(zero, negated), least)));
        let tanh = s.div(s.sub(s.splat(1.0), e), s.add(s.splat(1.0), e));
        s.store(s.fma(score, zero, s.mul(tanh, s.splat(cap))), x);
    }
}

/// Turns one row's scores into weights `2^(score - m)`, those of the keys it sees, the others into zeros; moves `m`, the
/// sum of weights (by lanes) and the weighted sum of V along.
#[inline(always)]
pub(super) fn weights<S: Simd>(
    s: S,
    scores: &mut [f32; KEY_TILE],
    seen: Range<usize>,
    (top, totals): (&mut f32, &mut [f32]),
    sums: &mut [f32],
) {
    if seen.is_empty() {
        return scores.fill(0.0);
    }
    let partly = seen.len() < KEY_TILE;
    if partly {
        mask(s, scores, seen.clone(), f32::NEG_INFINITY);
    }
    let mut largest = s.load(scores);
    for x in scores.chunks_exact(S::LANES).skip(1) {
        largest = s.max(largest, s.load(x));
    }
    let mut total = s.load(totals);
    // Rare after the first tiles.
    if s.any_above(largest, s.splat(*top)) {
        let largest = s.largest(largest);
        let shrink = s.splat((*top - largest).exp2());
        *top = largest;
        total = s.mul(total, shrink);
        for x in sums.chunks_exact_mut(S::LANES) {
            s.store(s.mul(s.load(x), shrink), x);
        }
    }
    let shift = s.splat(*top);
    for x in scores.chunks_exact_mut(S::LANES) {
        let weight = exp2(s, s.sub(s.load(x), shift));
        s.store(weight, x);
        total = s.add(total, weight);
    }
    s.store(total, totals);
    if partly {
        // They were counted with 2^-126 each.
        mask(s, scores, seen, 0.0);
    }
}

/// Puts `with` in the place of all but the keys `seen`.
#[inline(always)]
pub(super) fn mask<S: Simd>(s: S, scores: &mut [f32; KEY_TILE], seen: Range<usize>, with: f32) {
    // From 64 less the length of what is left out before, ones are what follows; and so with zeros behind.
    static ONES: [[u8; 4 * KEY_TILE]; 3] = [[0; 4 * KEY_TILE], [0xff; 4 * KEY_TILE], [0; 4 * KEY_TILE]];
    let (ones, with) = (ONES.as_flattened(), s.as_i(s.splat(with)));
    let from = &ones[4 * (KEY_TILE - seen.start)..][..4 * KEY_TILE];
    let to = &ones[4 * (2 * KEY_TILE - seen.end)..][..4 * KEY_TILE];
    for (at, x) in scores.chunks_exact_mut(S::LANES).enumerate() {
        let at = at * 4 * S::LANES;
        let seen = s.and(s.load_bytes(&from[at..]), s.load_bytes(&to[at..]));
        // (x ^ with) & seen ^ with
        let kept = s.and(s.xor(s.as_i(s.load(x)), with), seen);
        s.store(s.as_f(s.xor(kept, with)), x);
    }
}

/// 2^x for x <= 127, relative error below 2e-7; results below 2^-126 are flushed to 2^-126, NaN stays NaN.
///
/// `x` is split into the nearest integer, which goes into the exponent, and a remainder in -0.5..=0.5, for which a
/// minimax polynomial of degree 5 (relative error 1.1e-7, exact at 0) stands.
#[inline(always)]
pub(super) fn exp2<S: Simd>(s: S, x: S::F) -> S::F {
    if S::FAST { exp2_here(s, x) } else { called(s, x, exp2_here) }
}

#[inline(always)]
fn exp2_here<S: Simd>(s: S, x: S::F) -> S::F {
    // Adding 1.5 * 2^23 rounds to an integer, which is then found in the low bits.
    let magic = s.splat(12_582_912.0);
    // In this order a NaN is what `max` returns.
    let x = s.max(s.splat(-126.0), x);
    let shifted = s.add(x, magic);
    let r = s.sub(x, s.sub(shifted, magic));
    let mut p = s.splat(1.330_060_5e-3);
    for c in [9.669_691e-3, 5.550_558_5e-2, 0.240_222_83, std::f32::consts::LN_2, 1.0] {
        p = s.fma(p, r, s.splat(c));
    }
    s.as_f(s.add_i(s.as_i(p), s.shl::<23>(s.as_i(shifted))))
}
