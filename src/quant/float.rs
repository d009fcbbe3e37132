//! F32, F16 and BF16: nothing to decode but the number itself.

use super::bits::{f16_at, u16_at, u32_at};
use super::layout::PANEL_ROWS;

pub(super) fn f32(bytes: &[u8]) -> f32 {
    f32::from_bits(u32_at(bytes, 0))
}

pub(super) fn f16(bytes: &[u8]) -> f32 {
    f16_at(bytes, 0)
}

pub(super) fn bf16(bytes: &[u8]) -> f32 {
    half::bf16::from_bits(u16_at(bytes, 0)).to_f32()
}

/// The value of a number's bytes.
pub(super) type Decode = fn(&[u8]) -> f32;

/// Where the number of `(row, col)` lies in a panel whose steps hold `STEP` columns.
fn place<const STEP: usize>(row: usize, col: usize) -> usize {
    (col / STEP * PANEL_ROWS + row) * STEP + col % STEP
}

/// Columns that are moved at a time: the panel is written in whole cache lines while source lines stay in L1.
const COLS: usize = 32;

/// Rows back to back into a panel with `STEP` columns side by side.
pub(super) fn interleave<const SIZE: usize, const STEP: usize>(rows: &[u8], cols: usize, panel: &mut [u8]) {
    let n_rows = rows.len() / (cols * SIZE);
    if n_rows < PANEL_ROWS || !cols.is_multiple_of(STEP) {
        panel.fill(0);
    }
    let (rows, panel) = (rows.as_chunks::<SIZE>().0, panel.as_chunks_mut::<SIZE>().0);
    let whole = panel.as_chunks_mut::<{ COLS * PANEL_ROWS }>().0.iter_mut().take(cols / COLS);
    for (block, panel) in whole.enumerate() {
        for (row, numbers) in rows.chunks_exact(cols).enumerate() {
            let numbers: &[_; COLS] = numbers[block * COLS..].first_chunk().expect("whole blocks");
            for (col, number) in numbers.iter().enumerate() {
                panel[place::<STEP>(row, col)] = *number;
            }
        }
    }
    for (row, numbers) in rows.chunks_exact(cols).enumerate() {
        for col in cols / COLS * COLS..cols {
            panel[place::<STEP>(row, col)] = numbers[col];
        }
    }
}

/// One row of a panel, decoded.
pub(super) fn gather<const SIZE: usize, const STEP: usize>(panel: &[u8], row: usize, out: &mut [f32], decode: Decode) {
    for (col, value) in out.iter_mut().enumerate() {
        *value = decode(&panel[place::<STEP>(row, col) * SIZE..][..SIZE]);
    }
}
