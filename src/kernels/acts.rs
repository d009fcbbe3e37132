//! Activations on their way into a matrix: one record per token, f32 and the form its weights are multiplied with.
//!
//! A record holds the f32 values, then a block of 512 bytes for every 256 columns: 128 pairs of bf16; or int8 quants and,
//! on the cache lines that follow them, what else a kernel needs of these columns:
//! - the starting values of integer sums, which take out the offset of unsigned quants: one per 16 columns, or per 32;
//! - the scales: eight, one per 32 columns; or one, followed by whether the block is dense ([`SUM16_MAX`]) and the sums of
//!   sub-blocks as i16 pairs, which meet the minima;
//! - the starting values per 8 columns, for kernels that meet a dense block.
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

/// Bytes of a block, and where its parts lie.
const BLOCK: usize = 512;
const STARTS: usize = SUPER;
const SCALES: usize = STARTS + SUPER / 16 * 4;
const DENSE: usize = SCALES + 4;
const PAIRS: usize = DENSE + 4;
const STARTS8: usize = 384;
const _: () = assert!(PAIRS + SUPER / GROUP * 2 <= STARTS8 && SCALES + SUPER / GROUP * 4 <= STARTS8);
const _: () = assert!(STARTS8 + SUPER / 8 * 4 == BLOCK && 2 * SUPER == BLOCK);

/// Where the parts of a record lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActLayout {
    cols: usize,
    blocks: usize,
    bytes: usize,
}

impl ActLayout {
    /// The layout for rows of `cols` values.
    pub const fn new(cols: usize) -> Self {
        let blocks = (cols * 4).next_multiple_of(64);
        // Whole cache lines, an odd number: rows then do not fall on the same cache sets.
        let bytes = blocks + cols.div_ceil(SUPER) * BLOCK;
        ActLayout { cols, blocks, bytes: bytes + 64 * (1 - bytes / 64 % 2) }
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

    /// What the kernels multiply with: the values as they are after [`quantise`].
    #[cfg(test)]
    pub(super) fn effective(&self, kind: ActType, record: &[u8]) -> Vec<f32> {
        let block = |k: usize| &record[self.blocks + k / SUPER * BLOCK..][..BLOCK];
        let float = |bytes: &[u8]| f32::from_le_bytes(*bytes.first_chunk().unwrap());
        let quant = |k: usize| f32::from(block(k)[k % SUPER].cast_signed());
        let value = |k: usize| match kind {
            ActType::F32 => self.values(record)[k],
            ActType::Bf16 => half::bf16::from_le_bytes(*block(k)[k % SUPER * 2..].first_chunk().unwrap()).to_f32(),
            ActType::Q8x32 => quant(k) * float(&block(k)[SCALES + k % SUPER / GROUP * 4..]),
            ActType::Q8x256 => quant(k) * float(&block(k)[SCALES..]),
        };
        (0..self.cols).map(value).collect()
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
    fn word(&self, n: usize, at: usize) -> [u8; 4] {
        let at = n * self.layout.bytes + at;
        debug_assert!(at + 4 <= self.records.len());
        // SAFETY: inside the slice: `Acts::rows` took whole records, and the loops that call this run over `n` below
        // their number and over columns below the layout's (asserted by `Kernels::matmul`).
        let address = unsafe { self.records.as_ptr().add(at) };
        // SAFETY: four bytes inside the slice, as above; arrays of bytes need no alignment.
        unsafe { address.cast::<[u8; 4]>().read() }
    }
    #[inline(always)]
    fn part(&self, n: usize, block: usize, part: usize) -> i32 {
        i32::from_le_bytes(self.word(n, self.layout.blocks + block * BLOCK + part))
    }
    /// The f32 value of column `k`.
    #[inline(always)]
    pub fn value(&self, n: usize, k: usize) -> f32 {
        f32::from_le_bytes(self.word(n, k * 4))
    }
    /// Two bf16.
    #[inline(always)]
    pub fn bf16s(&self, n: usize, pair: usize) -> i32 {
        self.part(n, 0, pair * 4)
    }
    /// Four int8 quants of a block.
    #[inline(always)]
    pub fn quants(&self, n: usize, block: usize, unit: usize) -> i32 {
        self.part(n, block, unit * 4)
    }
    /// A scale of a block: its only one, or that of 32 columns.
    #[inline(always)]
    pub fn scale(&self, n: usize, block: usize, group: usize) -> f32 {
        f32::from_bits(self.part(n, block, SCALES + group * 4).cast_unsigned())
    }
    /// The starting value of a group of a block.
    #[inline(always)]
    pub fn start(&self, n: usize, block: usize, group: usize) -> i32 {
        self.part(n, block, STARTS + group * 4)
    }
    /// The starting value of 8 columns.
    #[inline(always)]
    pub fn start8(&self, n: usize, block: usize, columns: usize) -> i32 {
        self.part(n, block, STARTS8 + columns * 4)
    }
    /// Two sums of 32 quants.
    #[inline(always)]
    pub fn sums(&self, n: usize, block: usize, pair: usize) -> i32 {
        self.part(n, block, PAIRS + pair * 4)
    }
    /// Whether a block of any of the first `N` rows is dense.
    #[inline(always)]
    pub fn any_dense<const N: usize>(&self, block: usize) -> bool {
        let mut dense = 0;
        for n in 0..N {
            dense |= self.part(n, block, DENSE);
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
    let (values, blocks) = record.split_at_mut(layout.blocks);
    let values: &[f32] = bytes::cast(&values[..layout.cols * 4]);
    for (values, block) in values.chunks(SUPER).zip(blocks.chunks_exact_mut(BLOCK)) {
        match kind {
            ActType::F32 => (),
            ActType::Bf16 => to_bf16(s, values, block),
            ActType::Q8x32 => to_q8x32(s, values, block),
            ActType::Q8x256 => to_q8x256(s, values, block),
        }
    }
}

#[inline(always)]
fn to_bf16<S: Simd>(s: S, values: &[f32], block: &mut [u8]) {
    let whole = values.len() / S::LANES * S::LANES;
    for at in (0..whole).step_by(S::LANES) {
        // Adding just under half a unit, and the unit's last bit, rounds to nearest even. NaN stays NaN unless its only
        // set bits are lost; norms and products make none of those.
        let bits = s.as_i(s.load(&values[at..]));
        let odd = s.and(s.shr::<16>(bits), s.splat_i(1));
        let rounded = s.add_i(bits, s.add_i(odd, s.splat_i(0x7fff)));
        s.store_u16(s.shr::<16>(rounded), &mut block[2 * at..]);
    }
    for at in whole..values.len().next_multiple_of(2) {
        let x = values.get(at).copied().map_or(half::bf16::ZERO, half::bf16::from_f32);
        block[2 * at..][..2].copy_from_slice(&x.to_le_bytes());
    }
}

#[inline(always)]
fn to_q8x32<S: Simd>(s: S, values: &[f32], block: &mut [u8]) {
    assert!(values.len().is_multiple_of(GROUP));
    let (quants, rest) = block.split_at_mut(STARTS);
    let (starts, scales) = rest.split_at_mut(SCALES - STARTS);
    let (starts, scales): (&mut [i32], &mut [f32]) = (bytes::cast_mut(starts), bytes::cast_mut(scales));
    for (g, (x, q)) in values.as_chunks::<GROUP>().0.iter().zip(quants.as_chunks_mut::<GROUP>().0).enumerate() {
        let largest = s.largest(largest(s, x));
        scales[g] = largest / 127.0;
        let sums = round(s, x, if largest > 0.0 { 127.0 / largest } else { 0.0 }, q);
        starts[g] = s.start(s.sum_i(sums), if S::VNNI { 128 } else { 8 });
    }
}

#[inline(always)]
fn to_q8x256<S: Simd>(s: S, values: &[f32], block: &mut [u8]) {
    assert!(values.len() == SUPER);
    let largest = s.largest(largest(s, values));
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    let (quants, rest) = block.split_at_mut(STARTS);
    let rest: &mut [i32] = bytes::cast_mut(rest);
    let part = |at: usize| (at - STARTS) / 4;
    let (mut sums, mut densest) = ([0; SUPER / 16], 0);
    let parts = values.as_chunks::<16>().0.iter().zip(quants.as_chunks_mut::<16>().0);
    for (g, (x, q)) in parts.enumerate() {
        round(s, x, inverse, q);
        densest = q.iter().map(|q| i32::from(q.cast_signed().unsigned_abs())).sum::<i32>().max(densest);
        let mut sum8 = [0; 2];
        for (i, (sum, q)) in sum8.iter_mut().zip(q.as_chunks::<8>().0).enumerate() {
            *sum = q.iter().map(|q| i32::from(q.cast_signed())).sum();
            // Also where this block is not dense: it may meet a kernel together with one that is.
            rest[part(STARTS8) + 2 * g + i] = s.start(*sum, 32);
        }
        sums[g] = sum8[0] + sum8[1];
        rest[g] = s.start(sums[g], 32);
    }
    rest[part(SCALES)] = (largest / 127.0).to_bits().cast_signed();
    rest[part(DENSE)] = i32::from(densest > SUM16_MAX);
    for i in 0..SUPER / GROUP / 2 {
        // Sums of 32 quants are at most 4064.
        let sum32 = |group: usize| (sums[2 * group] + sums[2 * group + 1]) as u16;
        let first = i / 2 * 4 + i % 2;
        let pair = u32::from(sum32(first)) | u32::from(sum32(first + 2)) << 16;
        rest[part(PAIRS) + i] = pair.cast_signed();
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
