//! What the CPU can do at most: loops with nothing but the instruction in question.

use super::simd::Simd;

/// Independent chains: enough to hide a latency of 5 at two instructions a cycle.
const CHAINS: usize = 10;

/// `rounds x CHAINS` int8 dot products of one vector; returns a value that depends on all of them.
#[inline(always)]
pub(super) fn dots<S: Simd>(s: S, rounds: usize) -> u64 {
    let mut acc = [s.splat_i(0); CHAINS];
    let mut weights = s.splat_i(0x0102_0304);
    let acts = s.splat_i(0x0101_0101);
    for _ in 0..rounds {
        for a in &mut acc {
            *a = s.dot(*a, weights, acts);
        }
        // The optimiser may not see that the operand never changes.
        weights = std::hint::black_box(weights);
    }
    let sum = acc.into_iter().fold(s.splat_i(0), |sum, a| s.add_i(sum, a));
    u64::from(s.sum_i(sum).cast_unsigned())
}

/// Multiplications of one [`dots`] call.
pub(super) const fn dot_macs<S: Simd>(rounds: usize) -> u64 {
    (rounds * CHAINS * S::LANES * 4) as u64
}

/// `rounds x CHAINS` f32 fused multiply-adds of one vector.
#[inline(always)]
pub(super) fn fmas<S: Simd>(s: S, rounds: usize) -> u64 {
    let mut acc = [s.splat(0.0); CHAINS];
    let mut weights = s.splat(0.999);
    let acts = s.splat(0.5);
    for _ in 0..rounds {
        for a in &mut acc {
            *a = s.fma(weights, *a, acts);
        }
        weights = std::hint::black_box(weights);
    }
    let sum = acc.into_iter().fold(s.splat(0.0), |sum, a| s.add(sum, a));
    u64::from(s.sum(sum).to_bits())
}

/// Multiplications of one [`fmas`] call.
pub(super) const fn fma_macs<S: Simd>(rounds: usize) -> u64 {
    (rounds * CHAINS * S::LANES) as u64
}

/// Reads all of `data` once, four vectors at a time, and returns a value that depends on every byte.
#[inline(always)]
pub(super) fn read<S: Simd>(s: S, data: &[u8]) -> u64 {
    let mut acc = [s.splat_i(0); 4];
    let step = S::LANES * 4;
    for chunk in data.chunks_exact(4 * step) {
        for (i, a) in acc.iter_mut().enumerate() {
            *a = s.add_i(*a, s.load_bytes(&chunk[i * step..]));
        }
    }
    let sum = acc.into_iter().fold(s.splat_i(0), |sum, a| s.add_i(sum, a));
    u64::from(s.sum_i(sum).cast_unsigned())
}
