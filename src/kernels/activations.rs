//! Activations on their way into a matrix: one record per token, f32 and the form its weights are multiplied with.
//!
//! A record holds the f32 values, then a block of 512 bytes for every 256 columns: 128 pairs of i16, whose scales, one per
//! [`COLS16`] columns, follow the last block; or int8 quants and, on the cache lines that follow them, what else a kernel
//! needs of these columns:
//! - the starting values of integer sums, which take out the offset of unsigned quants: one per 16 columns, or per 32. With
//!   products in i32 lanes ([`super::simd::Dot::is_in_lanes`]) an i32; else an i16 for each half of a lane, exactly what its
//!   products are too large by, so that a sum of a few of them may wrap around on its way;
//! - the scales: eight, one per 32 columns, followed by the sums of these columns, which meet float minima; or one, followed
//!   by whether the block is dense ([`SUM16_MAX`]) and the sums of 32 and of 16 columns as i16 pairs, which meet integer
//!   minima;
//! - with a scale per 32 columns, the starting values per 16 columns; with one, the starting values per 8, for
//!   kernels that meet a dense block.
//!
//! Where weights have integer scales, a kernel sums two neighbouring groups of 32 columns side by side: of each 64
//! columns, the units of four quants, and the starting values, of the first and the second group alternate ([`paired`]).
#![allow(unsafe_code)]

use std::ops::Range;

use super::activations16::{self, COLS16, scaling};
use super::simd::Simd;
use crate::bytes;
use crate::quant::{GROUP, PANEL_ROWS, SUPER};

/// How activations are prepared for a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivationFormat {
    /// Left in f32.
    F32,
    /// i16 with one f32 scale per 128.
    I16,
    /// int8 with one f32 scale per 32.
    Q8x32,
    /// int8 with one f32 scale per 256.
    Q8x256,
}

impl ActivationFormat {
    /// Every form.
    pub const ALL: [ActivationFormat; 4] =
        [ActivationFormat::F32, ActivationFormat::I16, ActivationFormat::Q8x32, ActivationFormat::Q8x256];

    /// This form, then the others.
    pub fn and_others(self) -> impl Iterator<Item = ActivationFormat> {
        std::iter::once(self).chain(ActivationFormat::ALL.into_iter().filter(move |kind| *kind != self))
    }

    /// Whether all that is made of 256 columns lies in their block.
    pub const fn in_blocks(self) -> bool {
        matches!(self, ActivationFormat::Q8x32 | ActivationFormat::Q8x256)
    }

    /// The name inside kernel names.
    pub const fn name(self) -> &'static str {
        match self {
            ActivationFormat::F32 => "f32",
            ActivationFormat::I16 => "i16",
            ActivationFormat::Q8x32 => "q8x32",
            ActivationFormat::Q8x256 => "q8x256",
        }
    }
}

/// Where the magnitudes of no 16 quants of [`ActivationFormat::Q8x256`] add up to more, sums with 6-bit quants around zero, or of
/// 32 columns with 4-bit ones, fit i16 and meet their integer scale in one instruction. Blocks where they do are marked
/// dense, and summed in smaller portions; normally distributed activations stay below 600.
pub const SUM16_MAX: i32 = 1023;

/// Bytes of a block.
pub const BLOCK_BYTES: usize = 512;
/// Where its parts lie.
const COMPENSATION: usize = SUPER;
const SCALES: usize = COMPENSATION + SUPER / 16 * 4;
const DENSE: usize = SCALES + 4;
const PAIRS: usize = DENSE + 4;
const PAIRS16: usize = PAIRS + SUPER / GROUP * 2;
const COMPENSATION8: usize = 384;
/// With a scale per 32 columns: their sums, and the starting values per 16.
const GROUP_SUMS: usize = SCALES + SUPER / GROUP * 4;
const COMPENSATION16: usize = COMPENSATION8;
const _: () =
    assert!(GROUP_SUMS + SUPER / GROUP * 4 == COMPENSATION16 && COMPENSATION16 + SUPER / 16 * 4 <= BLOCK_BYTES);
const _: () = assert!(PAIRS16 + SUPER / 16 * 2 <= COMPENSATION8 && SCALES + SUPER / GROUP * 4 <= COMPENSATION8);
const _: () = assert!(COMPENSATION8 + SUPER / 8 * 4 == BLOCK_BYTES && 2 * SUPER == BLOCK_BYTES);

/// Where the parts of a record lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActivationLayout {
    cols: usize,
    blocks: usize,
    scales16: usize,
    bytes: usize,
}

impl ActivationLayout {
    /// The layout for rows of `cols` values.
    pub const fn new(cols: usize) -> Self {
        let blocks = (cols * 4).next_multiple_of(64);
        // Whole cache lines, an odd number: rows then do not fall on the same cache sets.
        let scales16 = blocks + cols.div_ceil(SUPER) * BLOCK_BYTES;
        let bytes = (scales16 + cols.div_ceil(COLS16) * 4).next_multiple_of(64);
        ActivationLayout { cols, blocks, scales16, bytes: bytes + 64 * (1 - bytes / 64 % 2) }
    }

    /// Bytes of a record: the stride from token to token.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Values of a row.
    pub const fn cols(&self) -> usize {
        self.cols
    }

    /// Where in a record its blocks lie.
    pub const fn blocks(&self) -> Range<usize> {
        self.blocks..self.scales16
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
    pub(super) fn effective(&self, kind: ActivationFormat, record: &[u8]) -> Vec<f32> {
        let block = |k: usize| &record[self.blocks + k / SUPER * BLOCK_BYTES..][..BLOCK_BYTES];
        let float = |bytes: &[u8]| f32::from_le_bytes(*bytes.first_chunk().unwrap());
        let at = |k: usize| if kind == ActivationFormat::Q8x256 { paired(k / 4, 8) * 4 + k % 4 } else { k };
        let quant = |k: usize| f32::from(block(k)[at(k % SUPER)].cast_signed());
        let value = |k: usize| match kind {
            ActivationFormat::F32 => self.values(record)[k],
            ActivationFormat::I16 => {
                let quant = i16::from_le_bytes(*block(k)[k % SUPER * 2..].first_chunk().unwrap());
                f32::from(quant) * float(&record[self.scales16 + k / COLS16 * 4..])
            }
            ActivationFormat::Q8x32 => quant(k) * float(&block(k)[SCALES + k % SUPER / GROUP * 4..]),
            ActivationFormat::Q8x256 => quant(k) * float(&block(k)[SCALES..]),
        };
        (0..self.cols).map(value).collect()
    }
}

/// Where value `index` lies among those of which every [`GROUP`] columns have `per_group`, if groups alternate in pairs.
#[inline(always)]
pub const fn paired(index: usize, per_group: usize) -> usize {
    let (group, i) = (index / per_group, index % per_group);
    group / 2 * 2 * per_group + 2 * i + group % 2
}

/// Prepared activations: records of `layout`, one per token.
#[derive(Clone, Copy, Debug)]
pub struct Activations<'a> {
    /// The records, back to back.
    pub records: &'a [u8],
    /// Their layout.
    pub layout: ActivationLayout,
    /// How many tokens.
    pub n_tokens: usize,
}

impl<'a> Activations<'a> {
    /// The records of `n` tokens.
    #[inline(always)]
    pub fn rows(&self, token: usize, n: usize) -> ActivationRows<'a> {
        ActivationRows {
            records: &self.records[token * self.layout.bytes..][..n * self.layout.bytes],
            layout: self.layout,
        }
    }
}

/// The records of some tokens, for inner loops. Row `n` and whatever index a method takes must lie inside: the loops
/// run to extents that were asserted to be those of the layout.
#[derive(Clone, Copy)]
pub struct ActivationRows<'a> {
    records: &'a [u8],
    layout: ActivationLayout,
}

impl ActivationRows<'_> {
    #[inline(always)]
    fn bytes<const W: usize>(&self, n: usize, at: usize) -> [u8; W] {
        let at = n * self.layout.bytes + at;
        debug_assert!(at + W <= self.records.len());
        // SAFETY: inside the slice: `Activations::rows` took whole records, and the loops that call this run over `n` below
        // their number and over columns below the layout's (asserted by `Kernels::matmul`).
        let address = unsafe { self.records.as_ptr().add(at) };
        // SAFETY: `W` bytes inside the slice, as above; arrays of bytes need no alignment.
        unsafe { address.cast::<[u8; W]>().read() }
    }
    #[inline(always)]
    fn part(&self, n: usize, block: usize, part: usize) -> i32 {
        i32::from_le_bytes(self.bytes(n, self.layout.blocks + block * BLOCK_BYTES + part))
    }
    #[inline(always)]
    fn pair(&self, n: usize, block: usize, part: usize) -> i64 {
        i64::from_le_bytes(self.bytes(n, self.layout.blocks + block * BLOCK_BYTES + part))
    }
    /// The f32 value of column `k`.
    #[inline(always)]
    pub fn value(&self, n: usize, k: usize) -> f32 {
        f32::from_le_bytes(self.bytes(n, k * 4))
    }
    /// Two i16.
    #[inline(always)]
    pub fn int16s(&self, n: usize, pair: usize) -> i32 {
        self.part(n, 0, pair * 4)
    }
    /// The scale of [`COLS16`] columns of i16.
    #[inline(always)]
    pub fn scale16(&self, n: usize, index: usize) -> f32 {
        f32::from_le_bytes(self.bytes(n, self.layout.scales16 + index * 4))
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
        self.part(n, block, COMPENSATION + group * 4)
    }
    /// The starting value of 8 columns.
    #[inline(always)]
    pub fn start8(&self, n: usize, block: usize, columns: usize) -> i32 {
        self.part(n, block, COMPENSATION8 + columns * 4)
    }
    /// Of a scale per 32 columns: the starting value of 16.
    #[inline(always)]
    pub fn start16(&self, n: usize, block: usize, columns: usize) -> i32 {
        self.part(n, block, COMPENSATION16 + columns * 4)
    }
    /// The sum of 32 columns.
    #[inline(always)]
    pub fn group_sum(&self, n: usize, block: usize, group: usize) -> f32 {
        f32::from_bits(self.part(n, block, GROUP_SUMS + group * 4).cast_unsigned())
    }
    /// Four quants of each of two groups.
    #[inline(always)]
    pub fn quants_pair(&self, n: usize, block: usize, unit: usize) -> i64 {
        self.pair(n, block, unit * 8)
    }
    /// The starting values of 16 columns of each of two groups.
    #[inline(always)]
    pub fn start_pair(&self, n: usize, block: usize, pair: usize) -> i64 {
        self.pair(n, block, COMPENSATION + pair * 8)
    }
    /// The starting values of 8 columns of each of two groups.
    #[inline(always)]
    pub fn start8_pair(&self, n: usize, block: usize, pair: usize) -> i64 {
        self.pair(n, block, COMPENSATION8 + pair * 8)
    }
    /// Two sums of 32 quants.
    #[inline(always)]
    pub fn sums(&self, n: usize, block: usize, pair: usize) -> i32 {
        self.part(n, block, PAIRS + pair * 4)
    }
    /// The sums of the two halves of 32 quants.
    #[inline(always)]
    pub fn sums16(&self, n: usize, block: usize, group: usize) -> i32 {
        self.part(n, block, PAIRS16 + group * 4)
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
/// Rounded by at most half a scale: that of i16 is in [`super::activations16`], that of int8 `max|x| / 127` per 32 or 256 columns.
#[inline(always)]
pub fn quantise<S: Simd>(
    s: S,
    layout: ActivationLayout,
    kind: ActivationFormat,
    record: &mut [u8],
    of_block: impl Fn(ActivationFormat, &[f32], &mut [u8]),
) {
    assert!(record.len() >= layout.bytes);
    let (values, blocks) = record.split_at_mut(layout.blocks);
    let values: &[f32] = bytes::cast(&values[..layout.cols * 4]);
    let (blocks, scales16) = blocks.split_at_mut(layout.scales16 - layout.blocks);
    match kind {
        ActivationFormat::F32 => (),
        ActivationFormat::I16 => {
            let scales = bytes::cast_mut(&mut scales16[..layout.cols.div_ceil(COLS16) * 4]);
            to_i16(s, values, blocks, scales);
        }
        ActivationFormat::Q8x32 | ActivationFormat::Q8x256 => {
            for (values, block) in values.chunks(SUPER).zip(blocks.chunks_exact_mut(BLOCK_BYTES)) {
                of_block(kind, values, block);
            }
        }
    }
}

/// Prepares up to 256 values for their block.
///
/// # Panics
/// If the form does not lie in blocks, or the block is shorter than [`BLOCK_BYTES`].
#[inline(always)]
pub fn quantise_block<S: Simd>(s: S, kind: ActivationFormat, values: &[f32], block: &mut [u8]) {
    let block = &mut block[..BLOCK_BYTES];
    match kind {
        ActivationFormat::Q8x32 => to_q8x32(s, values, block),
        ActivationFormat::Q8x256 => to_q8x256(s, values, block),
        ActivationFormat::F32 | ActivationFormat::I16 => unreachable!("not a form in blocks"),
    }
}

#[inline(always)]
fn to_i16<S: Simd>(s: S, values: &[f32], blocks: &mut [u8], scales: &mut [f32]) {
    let mut filled_up = [0.0; COLS16];
    for ((values, out), scale) in values.chunks(COLS16).zip(blocks.chunks_exact_mut(2 * COLS16)).zip(scales) {
        let values = match values.len() {
            COLS16 => values,
            n => {
                filled_up[..n].copy_from_slice(values);
                &filled_up
            }
        };
        let factor;
        (factor, *scale) = scaling(s, values);
        activations16::round(s, values, factor, out);
    }
}

/// Vectors of byte or lane sums of a block, at most: 256 bytes in vectors of 32.
const VECTORS_MAX: usize = 8;

#[inline(always)]
fn to_q8x32<S: Simd>(s: S, values: &[f32], block: &mut [u8]) {
    assert!(values.len().is_multiple_of(GROUP));
    let mut filled_up = [0.0; SUPER];
    let values = match values.len() {
        SUPER => values,
        n => {
            filled_up[..n].copy_from_slice(values);
            &filled_up
        }
    };
    let (quants, rest) = block.split_at_mut(COMPENSATION);
    let (starts, rest) = rest.split_at_mut(SCALES - COMPENSATION);
    let (scales, rest) = rest.split_at_mut(GROUP_SUMS - SCALES);
    let scales: &mut [f32] = bytes::cast_mut(scales);
    let mut sums = Sums::new(s);
    let groups = 4 * S::LANES / GROUP;
    for (v, (x, q)) in values.chunks_exact(4 * S::LANES).zip(quants.chunks_exact_mut(4 * S::LANES)).enumerate() {
        let mut inverses = [s.splat(0.0); 2];
        for (g, x) in x.as_chunks::<GROUP>().0.iter().enumerate() {
            let largest = largest(s, x);
            scales[groups * v + g] = largest / 127.0;
            inverses[g] = s.splat(if largest > 0.0 { 127.0 / largest } else { 0.0 });
        }
        if groups == 1 {
            inverses[1] = inverses[0];
        }
        let bytes = round(s, x, inverses);
        s.store_bytes(bytes, q);
        sums.set(s, v, bytes);
    }
    let (group_sums, starts16) = rest.split_at_mut(COMPENSATION16 - GROUP_SUMS);
    sums.halve(s);
    sums.halve(s);
    sums.store_starts::<1>(s, if S::DOT.is_unsigned() { 7 } else { 3 }, &mut starts16[..SUPER / 16 * 4]);
    sums.halve(s);
    sums.store_starts::<1>(s, if S::DOT.is_unsigned() { 7 } else { 3 }, &mut starts[..4 * S::LANES]);
    let mut sums_of_32 = [0.0; PANEL_ROWS];
    s.store(s.to_f(sums.all[0]), &mut sums_of_32);
    let group_sums: &mut [f32] = bytes::cast_mut(group_sums);
    for ((group_sum, sum), scale) in group_sums.iter_mut().zip(sums_of_32).zip(&*scales) {
        *group_sum = sum * scale;
    }
}

#[inline(always)]
fn to_q8x256<S: Simd>(s: S, values: &[f32], block: &mut [u8]) {
    assert!(values.len() == SUPER && block.len() == BLOCK_BYTES);
    let largest = largest(s, values);
    let inverse = s.splat(if largest > 0.0 { 127.0 / largest } else { 0.0 });
    let mut sums = Sums::new(s);
    let mut magnitudes = sums.all;
    let (quants, rest) = block.split_at_mut(COMPENSATION);
    for (i, (x, q)) in values.chunks_exact(8 * S::LANES).zip(quants.chunks_exact_mut(8 * S::LANES)).enumerate() {
        let two = [round(s, x, [inverse; 2]), round(s, &x[4 * S::LANES..], [inverse; 2])];
        for (v, bytes) in two.into_iter().enumerate() {
            sums.set(s, 2 * i + v, bytes);
            magnitudes[2 * i + v] = sums_of_4(s, s.abs_i8(bytes));
        }
        // In registers: what has just been stored in other pieces cannot be loaded at once.
        let two = s.alternate::<8>(two);
        s.store_bytes(two[0], q);
        s.store_bytes(two[1], &mut q[4 * S::LANES..]);
    }
    sums.halve(s);
    // Also where this block is not dense: it may meet a kernel together with one that is.
    sums.store_starts::<4>(s, 5, &mut rest[COMPENSATION8 - COMPENSATION..]);
    sums.halve(s);
    sums.store_starts::<2>(s, 5, &mut rest[..SCALES - COMPENSATION]);
    for (sums, pairs) in
        sums.all.iter().zip(rest[PAIRS16 - COMPENSATION..][..SUPER / 16 * 2].chunks_exact_mut(2 * S::LANES))
    {
        s.store_u16(*sums, pairs);
    }
    sums.halve(s);
    let mut sums_of_32 = [0; 4 * PANEL_ROWS];
    s.store_bytes(sums.all[0], &mut sums_of_32);
    for (i, pair) in rest[PAIRS - COMPENSATION..].as_chunks_mut::<4>().0.iter_mut().take(SUPER / GROUP / 2).enumerate()
    {
        // At most 4064 each.
        let first = (i / 2 * 4 + i % 2) * 4;
        pair[..2].copy_from_slice(&sums_of_32[first..][..2]);
        pair[2..].copy_from_slice(&sums_of_32[first + 8..][..2]);
    }
    let n = halve(s, &mut magnitudes, SUPER / 4 / S::LANES);
    let n = halve(s, &mut magnitudes, n);
    let mut dense = false;
    for sums in &magnitudes[..n] {
        dense |= s.any_above(s.to_f(*sums), s.splat(SUM16_MAX as f32));
    }
    let rest: &mut [i32] = bytes::cast_mut(rest);
    rest[(SCALES - COMPENSATION) / 4] = (largest / 127.0).to_bits().cast_signed();
    rest[(DENSE - COMPENSATION) / 4] = i32::from(dense);
}

/// The largest magnitude.
#[inline(always)]
fn largest<S: Simd>(s: S, x: &[f32]) -> f32 {
    let mut tops = [s.splat(0.0); 2];
    for x in x.chunks_exact(2 * S::LANES) {
        tops[0] = s.max(tops[0], s.abs(s.load(x)));
        tops[1] = s.max(tops[1], s.abs(s.load(&x[S::LANES..])));
    }
    s.largest(s.max(tops[0], tops[1]))
}

/// Rounds four vectors times `inverses`, one for each half, to bytes.
#[inline(always)]
fn round<S: Simd>(s: S, x: &[f32], inverses: [S::F; 2]) -> S::I {
    let mut rounded = [s.splat_i(0); 4];
    for i in 0..4 {
        rounded[i] = s.to_i(s.mul(s.load(&x[i * S::LANES..]), inverses[i / 2]));
    }
    s.pack_i8(rounded)
}

/// Sums of neighbouring quants of a block.
struct Sums<S: Simd> {
    all: [S::I; VECTORS_MAX],
    /// Where products add up in i16, of the first two of every four.
    firsts: [S::I; VECTORS_MAX],
    n: usize,
}

impl<S: Simd> Sums<S> {
    #[inline(always)]
    fn new(s: S) -> Self {
        Sums { all: [s.splat_i(0); VECTORS_MAX], firsts: [s.splat_i(0); VECTORS_MAX], n: SUPER / 4 / S::LANES }
    }
    /// Vector `v` is `bytes`.
    #[inline(always)]
    fn set(&mut self, s: S, v: usize, bytes: S::I) {
        self.all[v] = sums_of_4(s, bytes);
        if !S::DOT.is_in_lanes() {
            self.firsts[v] =
                s.dot_pairs(s.splat_i(0), s.dot(s.splat_i(0), s.splat_i(0x0101_0101), bytes), s.splat_i(1));
        }
    }
    #[inline(always)]
    fn halve(&mut self, s: S) {
        if !S::DOT.is_in_lanes() {
            halve(s, &mut self.firsts, self.n);
        }
        self.n = halve(s, &mut self.all, self.n);
    }
    /// What takes `2^bits * sum` out of a dot product, of the sums of vector `v`.
    #[inline(always)]
    fn starts(&self, s: S, bits: u32, v: usize) -> S::I {
        let none = s.splat_i(0);
        let all = s.sub_i(none, s.shl_by(self.all[v], bits));
        if S::DOT.is_in_lanes() {
            return all;
        }
        let firsts = s.sub_i(none, s.shl_by(self.firsts[v], bits));
        s.pairs(firsts, s.sub_i(all, firsts))
    }
    /// Stores them, alternating where a group of 32 columns has `PER_GROUP` of them.
    #[inline(always)]
    fn store_starts<const PER_GROUP: usize>(&self, s: S, bits: u32, starts: &mut [u8]) {
        for (v, out) in starts.chunks_mut(8 * S::LANES).enumerate() {
            let mut two = [self.starts(s, bits, 2 * v), self.starts(s, bits, 2 * v + 1)];
            if PER_GROUP > 1 {
                two = s.alternate::<PER_GROUP>(two);
            }
            for (x, out) in two.into_iter().zip(out.chunks_exact_mut(4 * S::LANES)) {
                s.store_bytes(x, out);
            }
        }
    }
}

/// Sums of four signed bytes each.
#[inline(always)]
fn sums_of_4<S: Simd>(s: S, bytes: S::I) -> S::I {
    s.dot_lanes(s.dot(s.splat_i(0), s.splat_i(0x0101_0101), bytes))
}

/// Adds up neighbours of the lanes of `n` vectors; how many vectors that makes.
#[inline(always)]
fn halve<S: Simd>(s: S, sums: &mut [S::I; VECTORS_MAX], n: usize) -> usize {
    for i in 0..n.div_ceil(2) {
        sums[i] = s.add_pairs(sums[2 * i], sums[2 * i + 1]);
    }
    n.div_ceil(2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Tier;
    use crate::kernels::simd::Dot;
    use crate::kernels::tests::{Random, tiers};

    /// What takes `offset` out of the products of all `quants`, or of the first and the last two of every four.
    fn start(dot: Dot, quants: &[i32], offset: i32) -> [u8; 4] {
        if dot.is_in_lanes() {
            return (-offset * quants.iter().sum::<i32>()).to_le_bytes();
        }
        let half = |at: usize| -offset * quants.chunks(4).map(|four| four[at] + four[at + 1]).sum::<i32>();
        [half(0) as i16, half(2) as i16].map(i16::to_le_bytes).concat().try_into().unwrap()
    }

    /// The block, written down one value at a time.
    fn expected(kind: ActivationFormat, dot: Dot, values: &[f32]) -> [u8; BLOCK_BYTES] {
        let mut block = [0; BLOCK_BYTES];
        let columns = if kind == ActivationFormat::Q8x32 { GROUP } else { SUPER };
        let mut quants = [0i32; SUPER];
        for (i, x) in values.chunks(columns).enumerate() {
            let largest = x.iter().fold(0f32, |a, x| a.max(x.abs()));
            block[SCALES + 4 * i..][..4].copy_from_slice(&(largest / 127.0).to_le_bytes());
            let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            for (q, x) in quants[columns * i..].iter_mut().zip(x) {
                *q = (x * inverse).round_ties_even() as i32;
            }
        }
        let place = |i, per_group| if kind == ActivationFormat::Q8x32 { i } else { paired(i, per_group) };
        for (i, q) in quants.into_iter().enumerate() {
            block[place(i / 4, 8) * 4 + i % 4] = q as u8;
        }
        let sums = |n: usize| quants.chunks(n).map(|q| q.iter().sum::<i32>());
        if kind == ActivationFormat::Q8x32 {
            let offset = if dot.is_unsigned() { 128 } else { 8 };
            let scale = |at: usize| f32::from_le_bytes(*block[SCALES + 4 * at..].first_chunk().unwrap());
            let scales: [f32; SUPER / GROUP] = std::array::from_fn(scale);
            for (i, sum) in sums(32).enumerate() {
                block[COMPENSATION + 4 * i..][..4].copy_from_slice(&start(dot, &quants[32 * i..][..32], offset));
                block[GROUP_SUMS + 4 * i..][..4].copy_from_slice(&(sum as f32 * scales[i]).to_le_bytes());
            }
            for (i, quants) in quants.chunks(16).enumerate() {
                block[COMPENSATION16 + 4 * i..][..4].copy_from_slice(&start(dot, quants, offset));
            }
            return block;
        }
        for (i, quants) in quants.chunks(16).enumerate() {
            block[COMPENSATION + 4 * paired(i, 2)..][..4].copy_from_slice(&start(dot, quants, 32));
        }
        for (i, quants) in quants.chunks(8).enumerate() {
            block[COMPENSATION8 + 4 * paired(i, 4)..][..4].copy_from_slice(&start(dot, quants, 32));
        }
        for (at, sum) in [0, 2, 1, 3, 4, 6, 5, 7].into_iter().zip(sums(32)) {
            block[PAIRS + 2 * at..][..2].copy_from_slice(&(sum as i16).to_le_bytes());
        }
        for (i, sum) in sums(16).enumerate() {
            block[PAIRS16 + 2 * i..][..2].copy_from_slice(&(sum as i16).to_le_bytes());
        }
        let densest = quants.chunks(16).map(|q| q.iter().map(|q| q.abs()).sum::<i32>()).max();
        block[DENSE] = u8::from(densest > Some(SUM16_MAX));
        block
    }

    #[test]
    fn blocks_hold_what_they_say_on_every_tier() {
        let mut random = Random(7);
        let (mut dense, cols) = (0, 2 * SUPER);
        for case in 0..40 {
            // Zeros, spread out values, and evenly large ones.
            let mut value = |_| match case % 4 {
                0 => 0.0,
                1 | 2 => random.unit().powi(5) * 9.0,
                _ => random.unit().signum() * 0.7 + 0.2 * random.unit(),
            };
            let values: Vec<f32> = (0..cols).map(&mut value).collect();
            let last = if case % 4 == 1 { GROUP * (1 + case / 4 % 7) } else { SUPER };
            for (kind, cols) in [(ActivationFormat::Q8x32, SUPER + last), (ActivationFormat::Q8x256, cols)] {
                let layout = ActivationLayout::new(cols);
                for k in tiers() {
                    let mut record = vec![0; layout.bytes()];
                    layout.values_mut(&mut record).copy_from_slice(&values[..cols]);
                    k.quantise(layout, kind, &mut record);
                    for (i, x) in values[..cols].chunks(SUPER).enumerate() {
                        let dot = match k.tier() {
                            Tier::Scalar => Dot::SignedSigned,
                            Tier::Avx2 => Dot::PairsI16,
                            _ => Dot::UnsignedSigned,
                        };
                        let want = expected(kind, dot, x);
                        let found = &mut record[layout.blocks + i * BLOCK_BYTES..][..BLOCK_BYTES];
                        if kind == ActivationFormat::Q8x32 {
                            found[COMPENSATION + SUPER / GROUP * 4..SCALES].fill(0);
                        }
                        assert!(found == want, "{} {} case {case} block {i}", k.tier().name(), kind.name());
                        let mut alone = [0; BLOCK_BYTES];
                        k.quantise_block(kind, x, &mut alone);
                        if kind == ActivationFormat::Q8x32 {
                            alone[COMPENSATION + SUPER / GROUP * 4..SCALES].fill(0);
                        }
                        assert!(alone == want, "{} {} case {case} block {i} alone", k.tier().name(), kind.name());
                        dense += usize::from(want[DENSE]) * usize::from(kind == ActivationFormat::Q8x256);
                    }
                }
            }
        }
        assert!(dense > 0);
    }
}
