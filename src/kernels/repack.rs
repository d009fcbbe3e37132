//! Sixteen rows of a file into their panel, fast: a load of a model that the page cache has is bound by this.
//!
//! What a panel is [`quant`](crate::quant) defines, and its `repack_panel` is what the tests hold this to, bit for bit. Here
//! the types that most bytes of most models have go straight from the rows: 16 bytes of each of as many rows as a vector
//! has lanes come out as four vectors, a word of row after row in each, which with 16 lanes are whole units of a panel.
//! Plain loops and indices: a closure that is not inlined loses the tier.

use super::simd::Simd;
use crate::quant::{PANEL_ROWS, UNIT, WeightType};

/// Bytes of a row that are taken together.
pub(super) const QUAD: usize = 16;

/// Bytes of rows that are moved at a time where rows are plain numbers: a cache line, for rows whose length is a power of
/// two share the same few places of the L1 cache.
const LINE: usize = 64;

/// How many blocks of a panel ahead of their use its lines are asked for: a page that has just been cleared lies in L3 by
/// the time it is filled. (Zen 4, two threads that load Q4_K: 20 GB/s each with none, 22 with one, 22.5 with two or four.)
const AHEAD: usize = 2;

/// As [`WeightType::repack_panel`]. `next` is what comes after the rows, if it does not lie in a cache yet: it is asked for
/// on the way, since memory gives bytes that follow each other faster than the rows of a panel side by side.
///
/// # Panics
/// As [`WeightType::repack_panel`].
#[inline(always)]
pub fn panel<S: Simd>(s: S, ty: WeightType, (rows, next): (&[u8], &[u8]), cols: usize, out: &mut [u8]) {
    let row_bytes = ty.row_bytes(cols);
    let whole = rows.len() == PANEL_ROWS * row_bytes && out.len() == ty.panel_bytes(cols) && row_bytes > 0;
    let rows = Rows { bytes: rows, row_bytes, next };
    match ty {
        _ if !S::FAST || !whole => slowly(s, ty, &rows, cols, out),
        // Two columns of bf16 side by side are a word.
        WeightType::F32 | WeightType::BF16 if row_bytes.is_multiple_of(LINE) => lines::<S, false>(s, &rows, out),
        WeightType::F16 if row_bytes.is_multiple_of(LINE) => lines::<S, true>(s, &rows, out),
        WeightType::Q4_0 => q4_0(s, &rows, out),
        WeightType::Q8_0 => q8_0(s, &rows, out),
        WeightType::Q4K => q45k::<S, 144>(s, &rows, out),
        WeightType::Q5K => q45k::<S, 176>(s, &rows, out),
        WeightType::Q6K => q6k(s, &rows, out),
        _ => slowly(s, ty, &rows, cols, out),
    }
}

#[inline(always)]
fn slowly<S: Simd>(s: S, ty: WeightType, rows: &Rows<'_>, cols: usize, out: &mut [u8]) {
    ask_for(s, rows.next);
    ty.repack_panel(rows.bytes, cols, out);
}

/// Asks for all lines of `bytes`.
#[inline(always)]
fn ask_for<S: Simd>(s: S, bytes: &[u8]) {
    for line in bytes.chunks(LINE) {
        // A panel's rows are more than L1 holds.
        s.prefetch::<false>(line.as_ptr());
    }
}

/// The rows of a panel, and what comes after them.
struct Rows<'a> {
    bytes: &'a [u8],
    row_bytes: usize,
    next: &'a [u8],
}

impl Rows<'_> {
    /// The 16 bytes from byte `at` on of each row from `first` on.
    #[inline(always)]
    fn quad<S: Simd>(&self, s: S, first: usize, at: usize) -> [S::I; 4] {
        s.words_of_rows(&self.bytes[first * self.row_bytes + at..], self.row_bytes)
    }

    /// Asks for the lines of a part of `bytes` of the panel that comes later, and as much of what comes next.
    #[inline(always)]
    fn ask<S: Simd>(&self, s: S, panel: *const u8, at: usize, bytes: usize) {
        if let Some(rest) = self.next.get(at..) {
            ask_for(s, &rest[..rest.len().min(bytes)]);
        }
        for line in (0..bytes).step_by(LINE) {
            s.prefetch::<true>(panel.wrapping_add(at + AHEAD * bytes + line));
        }
    }

    /// The half word at `at` of each row to a row of 16 of them.
    #[inline(always)]
    fn put_halves(&self, at: usize, out: &mut [u8]) {
        let out = out[..2 * PANEL_ROWS].as_chunks_mut::<2>().0;
        for (row, out) in out.iter_mut().enumerate() {
            let from = row * self.row_bytes + at;
            *out = [self.bytes[from], self.bytes[from + 1]];
        }
    }
}

/// The words of the rows from `first` on to their place in unit `unit`.
#[inline(always)]
fn put<S: Simd>(s: S, out: &mut [u8], unit: usize, first: usize, words: S::I) {
    s.store_bytes(words, &mut out[unit * UNIT + first * 4..]);
}

/// Four words of a row to the units `first_unit`, `first_unit + stride` and so on.
#[inline(always)]
fn put_quad<S: Simd>(s: S, out: &mut [u8], (first_unit, stride): (usize, usize), first: usize, words: [S::I; 4]) {
    put(s, out, first_unit, first, words[0]);
    put(s, out, first_unit + stride, first, words[1]);
    put(s, out, first_unit + 2 * stride, first, words[2]);
    put(s, out, first_unit + 3 * stride, first, words[3]);
}

/// The lower halves of words to a row of 16 half words at `at`, the upper ones to the next.
#[inline(always)]
fn put_split<S: Simd>(s: S, out: &mut [u8], at: usize, first: usize, words: S::I) {
    s.store_u16(words, &mut out[at + first * 2..]);
    s.store_u16(s.shr::<16>(words), &mut out[at + UNIT / 2 + first * 2..]);
}

/// Rows of plain words; if `HALVES`, of half words.
#[inline(always)]
fn lines<S: Simd, const HALVES: bool>(s: S, rows: &Rows<'_>, out: &mut [u8]) {
    let panel = out.as_ptr();
    for (i, out) in out.as_chunks_mut::<{ LINE * PANEL_ROWS }>().0.iter_mut().enumerate() {
        rows.ask(s, panel, i * LINE * PANEL_ROWS, LINE * PANEL_ROWS);
        for from in (0..LINE).step_by(QUAD) {
            for first in (0..PANEL_ROWS).step_by(S::LANES) {
                let words = rows.quad(s, first, i * LINE + from);
                for (word, words) in words.into_iter().enumerate() {
                    let unit = from / 4 + word;
                    match HALVES {
                        true => put_split(s, out, unit * UNIT, first, words),
                        false => put(s, out, unit, first, words),
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn q4_0<S: Simd>(s: S, rows: &Rows<'_>, out: &mut [u8]) {
    const BYTES: usize = 18;
    let panel = out.as_ptr();
    for (b, out) in out.as_chunks_mut::<{ BYTES * PANEL_ROWS }>().0.iter_mut().enumerate() {
        rows.ask(s, panel, b * out.len(), out.len());
        for first in (0..PANEL_ROWS).step_by(S::LANES) {
            put_quad(s, out, (0, 1), first, rows.quad(s, first, b * BYTES + 2));
        }
        rows.put_halves(b * BYTES, &mut out[PANEL_ROWS * 16..]);
    }
}

#[inline(always)]
fn q8_0<S: Simd>(s: S, rows: &Rows<'_>, out: &mut [u8]) {
    const BYTES: usize = 34;
    // Signed bytes plus 128 are unsigned ones.
    let sign = s.splat_i(0x8080_8080_u32.cast_signed());
    let panel = out.as_ptr();
    for (b, out) in out.as_chunks_mut::<{ BYTES * PANEL_ROWS }>().0.iter_mut().enumerate() {
        rows.ask(s, panel, b * out.len(), out.len());
        for first in (0..PANEL_ROWS).step_by(S::LANES) {
            for half in 0..2 {
                let [w0, w1, w2, w3] = rows.quad(s, first, b * BYTES + 2 + half * QUAD);
                let words = [s.xor(w0, sign), s.xor(w1, sign), s.xor(w2, sign), s.xor(w3, sign)];
                put_quad(s, out, (half * 4, 1), first, words);
            }
        }
        rows.put_halves(b * BYTES, &mut out[PANEL_ROWS * 32..]);
    }
}

/// Q4_K and Q5_K, blocks of `BYTES`: `d`, `dmin` and the three words of scales and minima, then all else as it is.
#[inline(always)]
fn q45k<S: Simd, const BYTES: usize>(s: S, rows: &Rows<'_>, out: &mut [u8]) {
    let (nibble, pair) = (s.splat_i(0x0f0f_0f0f), s.splat_i(0x0303_0303));
    let panel = out.as_ptr();
    for (b, out) in out.chunks_exact_mut(BYTES * PANEL_ROWS).enumerate().take(rows.row_bytes / BYTES) {
        rows.ask(s, panel, b * out.len(), out.len());
        let (body, tail) = out.split_at_mut(PANEL_ROWS * (BYTES - 4));
        for first in (0..PANEL_ROWS).step_by(S::LANES) {
            let [d, scales, minima, fours] = rows.quad(s, first, b * BYTES);
            put_split(s, tail, 0, first, d);
            // As the layout has them: the low nibbles of four pairs, the four that lie together already, all upper bits.
            let low = s.or(s.and(scales, nibble), s.shl::<4>(s.and(minima, nibble)));
            let upper4 = s.or(s.and(s.shr::<4>(scales), pair), s.shl::<2>(s.and(s.shr::<4>(minima), pair)));
            let upper6 = s.or(s.and(s.shr::<6>(scales), pair), s.shl::<2>(s.and(s.shr::<6>(minima), pair)));
            put(s, body, 0, first, low);
            put(s, body, 1, first, fours);
            put(s, body, 2, first, s.or(upper4, s.shl::<4>(upper6)));
            for quad in 1..BYTES / QUAD {
                put_quad(s, body, (quad * 4 - 1, 1), first, rows.quad(s, first, b * BYTES + quad * QUAD));
            }
        }
    }
}

/// Q6_K: the scales, then of each half of the columns two units of low nibbles and the one of their bit pairs in turn.
#[inline(always)]
fn q6k<S: Simd>(s: S, rows: &Rows<'_>, out: &mut [u8]) {
    const BYTES: usize = 210;
    let panel = out.as_ptr();
    for (b, out) in out.as_chunks_mut::<{ BYTES * PANEL_ROWS }>().0.iter_mut().enumerate() {
        rows.ask(s, panel, b * out.len(), out.len());
        let (body, tail) = out.split_at_mut(PANEL_ROWS * 208);
        let at = b * BYTES;
        for first in (0..PANEL_ROWS).step_by(S::LANES) {
            put_quad(s, body, (0, 1), first, rows.quad(s, first, at + 192));
            for i in 0..8 {
                let (half, part, l) = (i / 4, i % 4 / 2, i % 2 * 4);
                let unit = 4 + (half * 8 + l) * 3 + part;
                put_quad(s, body, (unit, 3), first, rows.quad(s, first, at + i * QUAD));
            }
            for i in 0..4 {
                put_quad(s, body, (4 + i * 12 + 2, 3), first, rows.quad(s, first, at + 128 + i * QUAD));
            }
        }
        rows.put_halves(at + 208, tail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::tests::tiers;

    #[test]
    fn panels_are_what_the_formats_define() {
        for ty in WeightType::ALL {
            for (n_rows, n_blocks) in [(16, 1), (16, 2), (16, 3), (16, 64), (16, 67), (15, 64), (1, 2)] {
                let cols = ty.block_len() * n_blocks;
                let bytes = n_rows * ty.row_bytes(cols);
                let rows: Vec<u8> = (0..bytes as u64)
                    .map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 29 ^ i.wrapping_mul(0xbf58_476d)) as u8)
                    .collect();
                // What lies between the last block and the next cache line nobody reads, and nobody needs to write.
                let used = ty.row_bytes(cols) * PANEL_ROWS;
                let mut want = vec![0xaa; ty.panel_bytes(cols)];
                ty.repack_panel(&rows, cols, &mut want);
                for kernels in tiers() {
                    let mut got = vec![0x55; ty.panel_bytes(cols)];
                    kernels.repack(ty, (&rows, &rows[..rows.len() / 2]), cols, &mut got);
                    let (ty, tier) = (ty.name(), kernels.tier().name());
                    assert!(want[..used] == got[..used], "{tier}: {ty} of {n_rows} rows of {n_blocks} blocks");
                }
            }
        }
    }
}
