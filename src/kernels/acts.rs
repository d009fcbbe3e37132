//! Activations on their way into a matrix: one record per token, f32 and, for integer weights, int8.
//!
//! A record holds, in this order: the f32 values (padded to an even count for BF16 pairs), the int8 quants,
//! the scales (one per 32 or 256 columns), minus the quant sums per 16 and per 32 columns (i32), and the latter once
//! more as f32. Sums are kept negated: they are the starting value of accumulators.

use super::simd::Simd;
use crate::bytes;
use crate::quant::{ActType, GROUP, SUPER};

/// Where the parts of a record lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActLayout {
    cols: usize,
    quants: usize,
    scales: usize,
    sums16: usize,
    sums32: usize,
    fsums32: usize,
    bytes: usize,
}

impl ActLayout {
    /// The layout for rows of `cols` values.
    pub const fn new(cols: usize) -> Self {
        let groups = cols.div_ceil(GROUP);
        let quants = cols.next_multiple_of(16) * 4;
        let scales = quants + groups * GROUP;
        let sums16 = scales + groups * 4;
        let sums32 = sums16 + groups * 8;
        let fsums32 = sums32 + groups * 4;
        // Whole cache lines plus one: rows then do not fall on the same cache sets.
        let bytes = (fsums32 + groups * 4).next_multiple_of(64) + 64;
        ActLayout { cols, quants, scales, sums16, sums32, fsums32, bytes }
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

    /// The int8 view of a record that [`quantise`] has filled.
    #[inline(always)]
    pub(super) fn ints<'a>(&self, record: &'a [u8]) -> IntRow<'a> {
        IntRow {
            quants: &record[self.quants..self.scales],
            scales: bytes::cast(&record[self.scales..self.sums16]),
            sums16: bytes::cast(&record[self.sums16..self.sums32]),
            sums32: bytes::cast(&record[self.sums32..self.fsums32]),
            fsums32: bytes::cast(&record[self.fsums32..self.fsums32 + (self.sums16 - self.scales)]),
        }
    }
}

/// One token's int8 activations.
#[derive(Clone, Copy)]
pub(super) struct IntRow<'a> {
    pub quants: &'a [u8],
    pub scales: &'a [f32],
    pub sums16: &'a [i32],
    pub sums32: &'a [i32],
    pub fsums32: &'a [f32],
}

/// Quantises the f32 values of a record in place: `q = round(x * 127 / max|x|)` per 32 or 256 columns.
///
/// Rounded: each value by at most half a scale, `max|x| / 254`.
#[inline(always)]
pub(super) fn quantise<S: Simd>(s: S, layout: ActLayout, kind: ActType, record: &mut [u8]) {
    let block = match kind {
        ActType::F32 => return,
        ActType::Q8x32 => GROUP,
        ActType::Q8x256 => SUPER,
    };
    assert!(layout.cols.is_multiple_of(block) && record.len() >= layout.fsums32 + layout.cols / GROUP * 4);
    let (values, rest) = record.split_at_mut(layout.quants);
    let values: &[f32] = bytes::cast(&values[..layout.cols * 4]);
    let (quants, rest) = rest.split_at_mut(layout.scales - layout.quants);
    let (scales, rest) = rest.split_at_mut(layout.sums16 - layout.scales);
    let (sums16, rest) = rest.split_at_mut(layout.sums32 - layout.sums16);
    let (sums32, rest) = rest.split_at_mut(layout.fsums32 - layout.sums32);
    let (scales, sums16): (&mut [f32], &mut [i32]) = (bytes::cast_mut(scales), bytes::cast_mut(sums16));
    let sums32: &mut [i32] = bytes::cast_mut(sums32);
    let fsums32: &mut [f32] = bytes::cast_mut(&mut rest[..layout.cols / GROUP * 4]);
    for (b, (values, quants)) in values.chunks_exact(block).zip(quants.chunks_exact_mut(block)).enumerate() {
        let mut largest = s.splat(0.0);
        for x in values.chunks_exact(S::LANES) {
            largest = s.max(largest, s.abs(s.load(x)));
        }
        let largest = s.largest(largest);
        let (scale, inverse) = if largest > 0.0 { (largest / 127.0, 127.0 / largest) } else { (0.0, 0.0) };
        scales[b] = scale;
        for (h, (x, q)) in values.chunks_exact(16).zip(quants.chunks_exact_mut(16)).enumerate() {
            let mut sum = s.splat_i(0);
            for lane in (0..16).step_by(S::LANES) {
                let rounded = s.to_i(s.mul(s.load(&x[lane..]), s.splat(inverse)));
                s.store_i8(rounded, &mut q[lane..]);
                sum = s.add_i(sum, rounded);
            }
            sums16[b * block / 16 + h] = -s.sum_i(sum);
        }
    }
    for (i, pair) in sums16[..layout.cols / 16].chunks_exact(2).enumerate() {
        sums32[i] = pair[0] + pair[1];
        fsums32[i] = sums32[i] as f32;
    }
}
