//! Activations on their way into a matrix: one record per token, f32 and the form its weights are multiplied with.
//!
//! A record holds, in this order: the f32 values; the quants (int8, or bf16); the scales (one per 32 or 256 columns);
//! the starting values of integer sums (one per 32 or 16 columns), which take out the offset of unsigned quants; and
//! the sums of sub-blocks as i16 pairs, which meet the minima; and which blocks of 256 are dense ([`SUM16_MAX`]).
#![allow(unsafe_code)]

use super::simd::Simd;
use crate::bytes;
use crate::quant::{GROUP, SUPER};

/// How activations are prepared for a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActType {
    /// Left in f32.
    F32,
    /// bfloat16, rounded to nearest even.
    Bf16,
    /// int8 with one f32 scale per 32.
    Q8x32,
    /// int8 with one f32 scale per 256.
    Q8x256,
}

impl ActType {
    /// Every form.
    pub const ALL: [ActType; 4] = [ActType::F32, ActType::Bf16, ActType::Q8x32, ActType::Q8x256];

    /// The name inside kernel names.
    pub const fn name(self) -> &'static str {
        match self {
            ActType::F32 => "f32",
            ActType::Bf16 => "bf16",
            ActType::Q8x32 => "q8x32",
            ActType::Q8x256 => "q8x256",
        }
    }
}

/// Where the magnitudes of no 16 quants of [`ActType::Q8x256`] add up to more, sums with 6-bit quants around zero, or of
/// 32 columns with 4-bit ones, fit i16 and meet their integer scale in one instruction. Blocks where they do are marked
/// dense, and summed in smaller portions; normally distributed activations stay below 600.
pub const SUM16_MAX: i32 = 1023;

/// Where the parts of a record lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActLayout {
    cols: usize,
    quants: usize,
    scales: usize,
    starts: usize,
    pairs: usize,
    dense: usize,
    bytes: usize,
}

impl ActLayout {
    /// The layout for rows of `cols` values.
    pub const fn new(cols: usize) -> Self {
        let padded = cols.next_multiple_of(GROUP);
        let quants = padded * 4;
        let scales = quants + padded * 2;
        let starts = scales + padded / GROUP * 4;
        let pairs = starts + padded / 16 * 4;
        // Whole cache lines plus one: rows then do not fall on the same cache sets.
        let dense = pairs + (padded / GROUP * 2).next_multiple_of(4);
        let bytes = (dense + padded / SUPER * 4).next_multiple_of(64) + 64;
        ActLayout { cols, quants, scales, starts, pairs, dense, bytes }
    }

    /// Bytes of a record: the stride from token to token.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Values of a row.
    pub const fn cols(&self) -> usize {
        self.cols
    }

    /// The f32 values of a record.
    pub fn values<'a>(&self, record: &'a [u8]) -> &'a [f32] {
        bytes::cast(&record[..self.cols * 4])
    }

    /// The f32 values of a record, for writing.
    pub fn values_mut<'a>(&self, record: &'a mut [u8]) -> &'a mut [f32] {
        bytes::cast_mut(&mut record[..self.cols * 4])
    }

    /// The quants of a record, as many bytes as they may take.
    #[cfg(test)]
    pub(super) fn quants<'a>(&self, record: &'a [u8]) -> &'a [u8] {
        &record[self.quants..self.scales]
    }

    /// The scales of a record.
    #[cfg(test)]
    pub(super) fn scales<'a>(&self, record: &'a [u8]) -> &'a [f32] {
        bytes::cast(&record[self.scales..self.starts])
    }
}

/// Prepared activations: records of `layout`, one per token.
#[derive(Clone, Copy, Debug)]
pub struct Acts<'a> {
    /// The records, back to back.
    pub records: &'a [u8],
    /// Their layout.
    pub layout: ActLayout,
    /// How many tokens.
    pub n_tokens: usize,
}

impl<'a> Acts<'a> {
    /// The records of `n` tokens.
    #[inline(always)]
    pub(super) fn rows(&self, token: usize, n: usize) -> Rows<'a> {
        Rows { records: &self.records[token * self.layout.bytes..][..n * self.layout.bytes], layout: self.layout }
    }
}

/// The records of some tokens, for inner loops. Row `n` and whatever index a method takes must lie inside: the loops
/// run to extents that were asserted to be those of the layout.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    records: &'a [u8],
    layout: ActLayout,
}

impl Rows<'_> {
    #[inline(always)]
    fn word(&self, n: usize, part: usize, index: usize) -> [u8; 4] {
        let at = n * self.layout.bytes + part + index * 4;
        debug_assert!(index * 4 < self.layout.bytes - part && at + 4 <= self.records.len());
        // SAFETY: inside the slice: `Acts::rows` took whole records, and the loops that call this run over `n` below
        // their number and over indices below what the layout has (asserted by `Kernels::matmul`).
        let address = unsafe { self.records.as_ptr().add(at) };
        // SAFETY: four bytes inside the slice, as above; arrays of bytes need no alignment.
        unsafe { address.cast::<[u8; 4]>().read() }
    }
    /// The f32 value of column `k`.
    #[inline(always)]
    pub fn value(&self, n: usize, k: usize) -> f32 {
        f32::from_le_bytes(self.word(n, 0, k))
    }
    /// Four int8 quants, or two bf16.
    #[inline(always)]
    pub fn quants(&self, n: usize, unit: usize) -> i32 {
        i32::from_le_bytes(self.word(n, self.layout.quants, unit))
    }
    /// The scale of a block.
    #[inline(always)]
    pub fn scale(&self, n: usize, block: usize) -> f32 {
        f32::from_le_bytes(self.word(n, self.layout.scales, block))
    }
    /// The starting value of a group.
    #[inline(always)]
    pub fn start(&self, n: usize, group: usize) -> i32 {
        i32::from_le_bytes(self.word(n, self.layout.starts, group))
    }
    /// Two sums of 32 quants.
    #[inline(always)]
    pub fn sums(&self, n: usize, pair: usize) -> i32 {
        i32::from_le_bytes(self.word(n, self.layout.pairs, pair))
    }
    /// Whether a block of 256 of any of the first `N` rows is dense.
    #[inline(always)]
    pub fn any_dense<const N: usize>(&self, block: usize) -> bool {
        let mut dense = 0;
        for n in 0..N {
            dense |= i32::from_le_bytes(self.word(n, self.layout.dense, block));
        }
        dense != 0
    }
}

/// Prepares the f32 values of a record in place.
///
/// Rounded: bf16 by at most 2^-9 of each value; int8 by at most half a scale, `max|x| / 254` per 32 or 256 columns.
#[inline(always)]
pub(super) fn quantise<S: Simd>(s: S, layout: ActLayout, kind: ActType, record: &mut [u8]) {
    assert!(record.len() >= layout.bytes);
    let (values, rest) = record.split_at_mut(layout.quants);
    let values: &[f32] = bytes::cast(&values[..layout.cols * 4]);
    let (quants, rest) = rest.split_at_mut(layout.scales - layout.quants);
    let (scales, rest) = rest.split_at_mut(layout.starts - layout.scales);
    let (starts, rest) = rest.split_at_mut(layout.pairs - layout.starts);
    let (scales, starts): (&mut [f32], &mut [i32]) = (bytes::cast_mut(scales), bytes::cast_mut(starts));
    match kind {
        ActType::F32 => (),
        ActType::Bf16 => {
            let whole = layout.cols / S::LANES * S::LANES;
            for at in (0..whole).step_by(S::LANES) {
                // Adding just under half a unit, and the unit's last bit, rounds to nearest even. NaN stays NaN
                // unless its only set bits are lost; norms and products make none of those.
                let bits = s.as_i(s.load(&values[at..]));
                let odd = s.and(s.shr::<16>(bits), s.splat_i(1));
                let rounded = s.add_i(bits, s.add_i(odd, s.splat_i(0x7fff)));
                s.store_u16(s.shr::<16>(rounded), &mut quants[2 * at..]);
            }
            for at in whole..layout.cols.next_multiple_of(2) {
                let x = values.get(at).copied().map_or(half::bf16::ZERO, half::bf16::from_f32);
                quants[2 * at..][..2].copy_from_slice(&x.to_le_bytes());
            }
        }
        ActType::Q8x32 => {
            assert!(layout.cols.is_multiple_of(GROUP));
            for (b, (x, q)) in values.as_chunks::<GROUP>().0.iter().zip(quants.as_chunks_mut::<GROUP>().0).enumerate() {
                let largest = s.largest(largest(s, x));
                scales[b] = largest / 127.0;
                let sums = round(s, x, if largest > 0.0 { 127.0 / largest } else { 0.0 }, q);
                starts[b] = s.start(s.sum_i(sums), if S::VNNI { 128 } else { 8 });
            }
        }
        ActType::Q8x256 => {
            assert!(layout.cols.is_multiple_of(SUPER));
            let (pairs, dense) = rest.split_at_mut(layout.dense - layout.pairs);
            let pairs: &mut [[i16; 2]] = bytes::cast_mut(&mut pairs[..layout.cols / GROUP * 2]);
            let dense: &mut [i32] = bytes::cast_mut(&mut dense[..layout.cols / SUPER * 4]);
            let starts = starts.as_chunks_mut::<{ SUPER / 16 }>().0;
            let pairs = pairs.as_chunks_mut::<{ SUPER / GROUP / 2 }>().0;
            let blocks = values.as_chunks::<SUPER>().0.iter().zip(quants.as_chunks_mut::<SUPER>().0);
            for (b, ((x, q), (starts, pairs))) in blocks.zip(starts.iter_mut().zip(pairs)).enumerate() {
                let largest = s.largest(largest(s, x));
                scales[b] = largest / 127.0;
                let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
                let mut densest = 0;
                let mut sums = [0; SUPER / 16];
                let parts = x.as_chunks::<16>().0.iter().zip(q.as_chunks_mut::<16>().0);
                for ((sum, start), (x, q)) in sums.iter_mut().zip(starts).zip(parts) {
                    *sum = s.sum_i(round(s, x, inverse, q));
                    *start = s.start(*sum, 32);
                    densest = q.iter().map(|q| i32::from(q.cast_signed().unsigned_abs())).sum::<i32>().max(densest);
                }
                dense[b] = i32::from(densest > SUM16_MAX);
                let sums32: [i16; 8] = std::array::from_fn(|i| (sums[2 * i] + sums[2 * i + 1]) as i16);
                for (i, pair) in pairs.iter_mut().enumerate() {
                    let first = i / 2 * 4 + i % 2;
                    *pair = [sums32[first], sums32[first + 2]];
                }
            }
        }
    }
}

#[inline(always)]
fn largest<S: Simd>(s: S, x: &[f32]) -> S::F {
    x.chunks_exact(S::LANES).fold(s.splat(0.0), |largest, x| s.max(largest, s.abs(s.load(x))))
}

/// Rounds `x * inverse` into `q`; the result's lanes add up to the sum of the quants.
#[inline(always)]
fn round<S: Simd>(s: S, x: &[f32], inverse: f32, q: &mut [u8]) -> S::I {
    let mut sums = s.splat_i(0);
    for (x, q) in x.chunks_exact(S::LANES).zip(q.chunks_exact_mut(S::LANES)) {
        let rounded = s.to_i(s.mul(s.load(x), s.splat(inverse)));
        s.store_i8(rounded, q);
        sums = s.add_i(sums, rounded);
    }
    sums
}
