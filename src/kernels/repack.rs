//! Sixteen rows of a file into their panel, fast: a load of a model that the page cache has is bound by this.
//!
//! What a panel is [`quant`](crate::quant) defines, and its `repack_panel` is what the tests hold this to, bit for bit. Here
//! the types that most bytes of most models have go straight from the rows, as 4 x 4 transposes of words: four rows give
//! 16 bytes each, which come out as four words of four neighbouring rows. Vectors of 128 bits are enough for that, so it
//! is the same on every tier.

use crate::quant::{PANEL_ROWS, UNIT, WeightType};

/// Rows that are transposed together.
const GROUP: usize = 4;

/// Bytes of a row that are transposed together.
const QUAD: usize = 16;

/// Bytes of rows that are moved at a time where rows are plain numbers: a cache line, for rows whose length is a power of
/// two share the same few places of the L1 cache.
const LINE: usize = 64;

/// How many blocks of a panel ahead of their use its lines are asked for: a page that has just been cleared lies in L3 by
/// the time it is filled. (Zen 4, two threads that load Q4_K: 20 GB/s each with none, 22 with one, 22.5 with two or four.)
const AHEAD: usize = 2;

/// As [`WeightType::repack_panel`]. What comes `next`, if it does not lie in a cache yet, is asked for on the way: memory
/// gives bytes that follow each other faster than the rows of a panel side by side.
///
/// # Panics
/// As [`WeightType::repack_panel`].
pub fn repack_panel(ty: WeightType, rows: &[u8], cols: usize, panel: &mut [u8], next: &[u8]) {
    let row_bytes = ty.row_bytes(cols);
    let whole = rows.len() == PANEL_ROWS * row_bytes && panel.len() == ty.panel_bytes(cols);
    if !whole || row_bytes == 0 {
        next.chunks(LINE).for_each(|line| prefetch(line.as_ptr()));
        return ty.repack_panel(rows, cols, panel);
    }
    let rows = Rows { bytes: rows, row_bytes, next };
    match ty {
        // Two columns of bf16 side by side are a word.
        WeightType::F32 | WeightType::BF16 if row_bytes.is_multiple_of(LINE) => lines::<false>(&rows, panel),
        WeightType::F16 if row_bytes.is_multiple_of(LINE) => lines::<true>(&rows, panel),
        WeightType::Q4_0 => blocks::<18, { 18 * PANEL_ROWS }>(&rows, panel, q4_0),
        WeightType::Q8_0 => blocks::<34, { 34 * PANEL_ROWS }>(&rows, panel, q8_0),
        WeightType::Q4K => blocks::<144, { 144 * PANEL_ROWS }>(&rows, panel, q45k),
        WeightType::Q5K => blocks::<176, { 176 * PANEL_ROWS }>(&rows, panel, q45k),
        WeightType::Q6K => blocks::<210, { 210 * PANEL_ROWS }>(&rows, panel, q6k),
        _ => {
            next.chunks(LINE).for_each(|line| prefetch(line.as_ptr()));
            ty.repack_panel(rows.bytes, cols, panel);
        }
    }
}

/// The rows of a panel, and what comes after them.
struct Rows<'a> {
    bytes: &'a [u8],
    row_bytes: usize,
    next: &'a [u8],
}

impl Rows<'_> {
    /// `BYTES` of each row of a group, from byte `at` on.
    #[inline(always)]
    fn group<const BYTES: usize>(&self, group: usize, at: usize) -> [&[u8; BYTES]; GROUP] {
        std::array::from_fn(|i| {
            self.bytes[(group * GROUP + i) * self.row_bytes + at..].first_chunk().expect("a whole block")
        })
    }

    /// Asks for the part of what comes next that is as long as a part of the panel, where that begins at `at`.
    #[inline(always)]
    fn ask(&self, at: usize, bytes: usize) {
        if let Some(rest) = self.next.get(at..) {
            rest[..rest.len().min(bytes)].chunks(LINE).for_each(|line| prefetch(line.as_ptr()));
        }
    }
}

/// Asks for a line that will be written soon.
#[inline(always)]
fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    super::x86_64::prefetch(address);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Sixteen bytes of four rows: row by row before, word by word after.
#[inline(always)]
fn transpose(quads: [[u8; QUAD]; GROUP]) -> [[u8; QUAD]; GROUP] {
    #[cfg(target_arch = "x86_64")]
    return super::x86_64::transpose_words(quads);
    #[cfg(not(target_arch = "x86_64"))]
    std::array::from_fn(|word| std::array::from_fn(|i| quads[i / 4][word * 4 + i % 4]))
}

/// The lower halves of four words, then the upper ones.
#[inline(always)]
fn split(words: [u8; QUAD]) -> [u8; QUAD] {
    #[cfg(target_arch = "x86_64")]
    return super::x86_64::split_words(words);
    #[cfg(not(target_arch = "x86_64"))]
    std::array::from_fn(|i| words[i % 8 / 2 * 4 + i / 8 * 2 + i % 2])
}

/// Where the words of `group` lie in unit `unit`.
#[inline(always)]
fn put(out: &mut [u8], unit: usize, group: usize, words: [u8; QUAD]) {
    out[unit * UNIT + group * QUAD..][..QUAD].copy_from_slice(&words);
}

/// The four words of each row of a group from byte `from` on, transposed.
#[inline(always)]
fn quad<const BYTES: usize>(rows: &[&[u8; BYTES]; GROUP], from: usize) -> [[u8; QUAD]; GROUP] {
    transpose(rows.map(|row| *row[from..].first_chunk().expect("four words")))
}

/// They go to the units `first`, `first + stride` and so on of `out`.
#[inline(always)]
fn put_quad<const BYTES: usize>(
    rows: &[&[u8; BYTES]; GROUP],
    from: usize,
    (out, group): (&mut [u8], usize),
    (first, stride): (usize, usize),
) {
    for (word, words) in quad(rows, from).into_iter().enumerate() {
        put(out, first + word * stride, group, words);
    }
}

#[inline(always)]
fn as_words(bytes: [u8; QUAD]) -> [u32; GROUP] {
    std::array::from_fn(|i| u32::from_le_bytes(bytes.as_chunks().0[i]))
}

#[inline(always)]
fn as_bytes(words: [u32; GROUP]) -> [u8; QUAD] {
    let mut bytes = [0; QUAD];
    bytes.as_chunks_mut().0.iter_mut().zip(words).for_each(|(out, word)| *out = word.to_le_bytes());
    bytes
}

/// The lower halves of four words to where a group has them in a row of 16 half words at `at`, the upper ones to the next.
#[inline(always)]
fn put_halves(out: &mut [u8], at: usize, group: usize, words: [u8; QUAD]) {
    let halves = split(words);
    for (half, halves) in halves.as_chunks::<{ QUAD / 2 }>().0.iter().enumerate() {
        out[at + half * UNIT / 2 + group * QUAD / 2..][..QUAD / 2].copy_from_slice(halves);
    }
}

/// The half word at `at` of each block of a group to where it has them in a row of 16 half words.
#[inline(always)]
fn put_scale<const BYTES: usize>(rows: &[&[u8; BYTES]; GROUP], at: usize, out: &mut [u8], group: usize) {
    let halves = rows.map(|row| [row[at], row[at + 1]]);
    out[group * QUAD / 2..][..QUAD / 2].copy_from_slice(halves.as_flattened());
}

/// Rows of plain words; if `HALVES`, of half words.
fn lines<const HALVES: bool>(rows: &Rows<'_>, panel: &mut [u8]) {
    for (at, out) in (0..rows.row_bytes).step_by(LINE).zip(panel.as_chunks_mut::<{ LINE * PANEL_ROWS }>().0) {
        rows.ask(at * PANEL_ROWS, LINE * PANEL_ROWS);
        for group in 0..PANEL_ROWS / GROUP {
            let rows = rows.group::<LINE>(group, at);
            for from in (0..LINE).step_by(QUAD) {
                for (word, words) in quad(&rows, from).into_iter().enumerate() {
                    let unit = from / 4 + word;
                    match HALVES {
                        true => put_halves(out, unit * UNIT, group, words),
                        false => put(out, unit, group, words),
                    }
                }
            }
        }
    }
}

/// Rows of blocks of `BYTES`, of which a panel has `PANEL` bytes side by side: `one` moves those of a group.
#[inline(always)]
fn blocks<const BYTES: usize, const PANEL: usize>(
    rows: &Rows<'_>,
    panel: &mut [u8],
    one: impl Fn(&[&[u8; BYTES]; GROUP], &mut [u8; PANEL], usize),
) {
    let first = panel.as_ptr();
    for (b, out) in panel.as_chunks_mut::<PANEL>().0.iter_mut().enumerate().take(rows.row_bytes / BYTES) {
        rows.ask(b * PANEL, PANEL);
        for line in (0..PANEL).step_by(LINE) {
            prefetch(first.wrapping_add((b + AHEAD) * PANEL + line));
        }
        for group in 0..PANEL_ROWS / GROUP {
            one(&rows.group(group, b * BYTES), out, group);
        }
    }
}

fn q4_0<const PANEL: usize>(rows: &[&[u8; 18]; GROUP], out: &mut [u8; PANEL], group: usize) {
    put_quad(rows, 2, (out, group), (0, 1));
    put_scale(rows, 0, &mut out[PANEL_ROWS * 16..], group);
}

fn q8_0<const PANEL: usize>(rows: &[&[u8; 34]; GROUP], out: &mut [u8; PANEL], group: usize) {
    for half in 0..2 {
        for (word, words) in quad(rows, 2 + half * QUAD).into_iter().enumerate() {
            // Signed bytes plus 128 are unsigned ones.
            put(out, half * 4 + word, group, words.map(|q| q ^ 0x80));
        }
    }
    put_scale(rows, 0, &mut out[PANEL_ROWS * 32..], group);
}

/// Q4_K and Q5_K: `d`, `dmin` and the three words of scales and minima, then all else as it is.
#[inline(always)]
fn q45k<const BYTES: usize, const PANEL: usize>(rows: &[&[u8; BYTES]; GROUP], out: &mut [u8; PANEL], group: usize) {
    let (body, tail) = out.split_at_mut(PANEL_ROWS * (BYTES - 4));
    let [d, words @ ..] = quad(rows, 0);
    let [scales, minima, fours] = words.map(as_words);
    put_halves(tail, 0, group, d);
    // As the layout has them: the low nibbles of four pairs, the four that lie together already, all upper bits.
    let low = std::array::from_fn(|i| scales[i] & 0x0f0f_0f0f | (minima[i] & 0x0f0f_0f0f) << 4);
    let upper = |word: u32, shift: u32| word >> shift & 0x0303_0303;
    let upper = std::array::from_fn(|i| {
        upper(scales[i], 4) | upper(minima[i], 4) << 2 | upper(scales[i], 6) << 4 | upper(minima[i], 6) << 6
    });
    for (unit, words) in [low, fours, upper].into_iter().enumerate() {
        put(body, unit, group, as_bytes(words));
    }
    for (i, from) in (QUAD..BYTES).step_by(QUAD).enumerate() {
        put_quad(rows, from, (&mut *body, group), (3 + i * 4, 1));
    }
}

/// Q6_K: the scales, then of each half of the columns two units of low nibbles and the one of their bit pairs in turn.
#[inline(always)]
fn q6k<const PANEL: usize>(rows: &[&[u8; 210]; GROUP], out: &mut [u8; PANEL], group: usize) {
    let (body, tail) = out.split_at_mut(PANEL_ROWS * 208);
    put_scale(rows, 208, tail, group);
    put_quad(rows, 192, (&mut *body, group), (0, 1));
    for i in 0..8 {
        let (half, part, l) = (i / 4, i % 4 / 2, i % 2 * 4);
        put_quad(rows, i * QUAD, (&mut *body, group), (4 + (half * 8 + l) * 3 + part, 3));
    }
    for i in 0..4 {
        put_quad(rows, 128 + i * QUAD, (&mut *body, group), (4 + i * 12 + 2, 3));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_are_what_the_formats_define() {
        for ty in WeightType::ALL {
            for (n_rows, n_blocks) in [(16, 1), (16, 2), (16, 3), (16, 64), (16, 67), (15, 64), (1, 2)] {
                let cols = ty.block_len() * n_blocks;
                let bytes = n_rows * ty.row_bytes(cols);
                let rows: Vec<u8> = (0..bytes as u64)
                    .map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 29 ^ i.wrapping_mul(0xbf58_476d)) as u8)
                    .collect();
                let (mut want, mut got) = (vec![0xaa; ty.panel_bytes(cols)], vec![0x55; ty.panel_bytes(cols)]);
                // What lies between the last block and the next cache line nobody reads, and nobody needs to write.
                let used = ty.row_bytes(cols) * PANEL_ROWS;
                ty.repack_panel(&rows, cols, &mut want);
                repack_panel(ty, &rows, cols, &mut got, &rows[..rows.len() / 2]);
                assert!(want[..used] == got[..used], "{} of {n_rows} rows of {n_blocks} blocks", ty.name());
            }
        }
    }
}
