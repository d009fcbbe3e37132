//! What the CPU can do at most: loops with nothing but the instruction in question.

use super::simd::{Bf16Dot, Simd};

/// Independent chains: enough to hide a latency of 6 at two instructions a cycle.
const CHAINS: usize = 12;

/// How memory is read. None is best everywhere: it depends on how far ahead the CPU fetches by itself, and on the
/// pages, at whose ends it stops. The best of them is what this box gives.
///
/// A loop of nothing but loads is not the fastest: it has so many under way that they wait for the buffers of L1 and
/// keep the CPU's own prefetcher out (measured on a Granite Rapids server, one core, huge pages: 15.2 GB/s by
/// 64-byte loads, 19.3 by 32-byte loads). The ways that do a little arithmetic on every vector, as decode does, pace it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadWay {
    /// Front to back, loads alone.
    Plain,
    /// Front to back, with arithmetic and prefetches into L1 8 KiB ahead.
    Ahead,
    /// The same with prefetches into L2 8 KiB ahead.
    AheadL2,
    /// Four stretches in turn, with arithmetic and prefetches into L1 2 KiB ahead.
    Four,
}

impl ReadWay {
    /// Every way.
    pub const ALL: [ReadWay; 4] = [ReadWay::Plain, ReadWay::Ahead, ReadWay::AheadL2, ReadWay::Four];

    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            ReadWay::Plain => "plain",
            ReadWay::Ahead => "ahead",
            ReadWay::AheadL2 => "ahead-l2",
            ReadWay::Four => "four",
        }
    }
}

/// Where a dot product is two instructions, the second has a latency of 1, and takes a register for the first one's result.
const fn chains<S: Simd>() -> usize {
    if S::DOT.is_in_lanes() { CHAINS } else { 8 }
}

/// `rounds x chains` int8 dot products of one vector, or if `PAIRS` those of 16-bit integers; returns a value that depends on
/// all of them.
#[inline(always)]
pub fn dots<S: Simd, const PAIRS: bool>(s: S, rounds: usize) -> u64 {
    let mut acc = [s.splat_i(0); CHAINS];
    // Of no two chains, and in no two rounds, what the optimiser knows to be the same product: where it is an instruction of
    // its own, one would be left.
    let weights = std::hint::black_box([s.splat_i(0x0102_0304); 2]);
    let acts = std::hint::black_box([[s.splat_i(0x0101_0101); CHAINS / 2]; 8]);
    for round in 0..rounds {
        let acts = &acts[round % 8];
        for (i, a) in acc.iter_mut().enumerate().take(chains::<S>()) {
            let (w, x) = (weights[i % 2], acts[i / 2]);
            *a = if PAIRS { s.dot_pairs(*a, w, x) } else { s.dot(*a, w, x) };
        }
    }
    let sum = acc.into_iter().fold(s.splat_i(0), |sum, a| s.add_i(sum, a));
    u64::from(s.sum_i(sum).cast_unsigned())
}

/// Multiplications of one [`dots`] call.
pub const fn dot_macs<S: Simd, const PAIRS: bool>(rounds: usize) -> u64 {
    (rounds * chains::<S>() * S::LANES * if PAIRS { 2 } else { 4 }) as u64
}

/// `rounds x CHAINS` f32 fused multiply-adds of one vector.
#[inline(always)]
pub fn fmas<S: Simd>(s: S, rounds: usize) -> u64 {
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
pub const fn fma_macs<S: Simd>(rounds: usize) -> u64 {
    (rounds * CHAINS * S::LANES) as u64
}

/// `rounds x CHAINS` dot products of one vector of bf16 pairs.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only x86-64 has it so far"))]
#[inline(always)]
pub fn bf16_dots<S: Bf16Dot>(s: S, rounds: usize) -> u64 {
    let mut acc = [s.splat(0.0); CHAINS];
    // Pairs of 1.0 and of 2^-7.
    let mut weights = s.splat_i(0x3f80_3f80);
    let acts = s.splat_i(0x3c00_3c00);
    for _ in 0..rounds {
        for a in &mut acc {
            *a = s.dot_bf16(*a, weights, acts);
        }
        weights = std::hint::black_box(weights);
    }
    let sum = acc.into_iter().fold(s.splat(0.0), |sum, a| s.add(sum, a));
    u64::from(s.sum(sum).to_bits())
}

/// Multiplications of one [`bf16_dots`] call.
pub const fn bf16_macs<S: Simd>(rounds: usize) -> u64 {
    (rounds * CHAINS * S::LANES * 2) as u64
}

/// Bytes that [`read`] takes at a time.
const READ_BYTES: usize = 512;

/// Reads all of `data` once but for a rest below [`READ_BYTES`], and returns a value that depends on every byte read.
#[inline(always)]
pub fn read<S: Simd>(s: S, data: &[u8], way: ReadWay) -> u64 {
    match way {
        _ if !S::FAST => read_parts::<_, 1, false>(s, [data], |_| ()),
        ReadWay::Plain => read_parts::<_, 1, false>(s, [data], |_| ()),
        ReadWay::Ahead => read_parts::<_, 1, true>(s, [data], |line| s.prefetch::<true>(line.wrapping_add(8192))),
        ReadWay::AheadL2 => read_parts::<_, 1, true>(s, [data], |line| s.prefetch::<false>(line.wrapping_add(8192))),
        ReadWay::Four => {
            let each = data.len() / 4 / READ_BYTES * READ_BYTES;
            let parts: [&[u8]; 4] = std::array::from_fn(|i| &data[i * each..][..each]);
            let rest = read_parts::<_, 1, true>(s, [&data[4 * each..]], |_| ());
            read_parts::<_, 4, true>(s, parts, |line| s.prefetch::<true>(line.wrapping_add(2048))).wrapping_add(rest)
        }
    }
}

/// Reads parts of one length in turn; `ahead` sees every cache line before it is read. The lower half of the result is
/// the sum of all 32-bit words.
#[inline(always)]
fn read_parts<S: Simd, const N: usize, const PACED: bool>(s: S, parts: [&[u8]; N], ahead: impl Fn(*const u8)) -> u64 {
    let mut acc = [s.splat_i(0); 8];
    let mut nibbles = [s.splat_i(0); 4];
    let (mask, step) = (s.splat_i(0x0f0f_0f0f), S::LANES * 4);
    let parts = parts.map(|part| part.as_chunks::<READ_BYTES>().0);
    for at in 0..parts[0].len() {
        for part in parts {
            let chunk = &part[at];
            // Extents known to the compiler: unrolled, and every sum stays in its register.
            for i in 0..READ_BYTES / step {
                if (i * step).is_multiple_of(64) {
                    ahead(chunk[i * step..].as_ptr());
                }
                let x = s.load_bytes(&chunk[i * step..]);
                acc[i % 8] = s.add_i(acc[i % 8], x);
                if PACED {
                    nibbles[0] = s.add_i(nibbles[0], s.and(x, mask));
                    nibbles[1] = s.add_i(nibbles[1], s.and(s.shr::<4>(x), mask));
                    nibbles[2] = s.xor(nibbles[2], s.shr::<2>(x));
                    nibbles[3] = s.xor(nibbles[3], s.shr::<6>(x));
                }
            }
        }
    }
    let sum = acc.into_iter().fold(s.splat_i(0), |sum, a| s.add_i(sum, a));
    let other = nibbles.into_iter().fold(s.splat_i(0), |sum, a| s.add_i(sum, a));
    u64::from(s.sum_i(sum).cast_unsigned()) | u64::from(s.sum_i(other).cast_unsigned()) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::available;

    #[test]
    fn every_way_reads_every_byte_once() {
        let data: Vec<u8> = (0..40 * READ_BYTES).map(|i| (i % 251) as u8).collect();
        for len in [0, READ_BYTES, 5 * READ_BYTES, data.len()] {
            let words = data[..len].as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
            let want = words.fold(0u32, u32::wrapping_add);
            for kernels in available() {
                for way in ReadWay::ALL {
                    assert_eq!(kernels.read(&data[..len], way) as u32, want, "{kernels:?} {way:?} {len}");
                }
            }
        }
    }

    #[test]
    fn peaks_count_what_they_do() {
        for kernels in available() {
            let (int8, int16) = (kernels.peak_int8(100), kernels.peak_int16(100));
            assert_eq!(int8.1, 2 * int16.1);
            let peaks = [("int8", Some(int8)), ("f32", Some(kernels.peak_f32(100))), ("bf16", kernels.peak_bf16(100))];
            for (what, peak) in peaks {
                let Some((_, macs)) = peak else { continue };
                assert!(macs >= 100 * CHAINS as u64 * 8, "{kernels:?} {what}");
            }
        }
    }
}
