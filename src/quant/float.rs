//! F32, F16 and BF16: nothing to decode but the number itself.

use super::PANEL_ROWS;
use super::bits::{f16_at, u16_at, u32_at};

pub(super) fn f32(bytes: &[u8]) -> f32 {
    f32::from_bits(u32_at(bytes, 0))
}

pub(super) fn f16(bytes: &[u8]) -> f32 {
    f16_at(bytes, 0)
}

pub(super) fn bf16(bytes: &[u8]) -> f32 {
    half::bf16::from_bits(u16_at(bytes, 0)).to_f32()
}

/// Byte offset of `(row, col)` in a panel whose steps hold `step` columns of `SIZE`-byte numbers.
fn offset<const SIZE: usize>(row: usize, col: usize, step: usize) -> usize {
    ((col / step * PANEL_ROWS + row) * step + col % step) * SIZE
}

/// Rows back to back into a panel with `step` columns side by side.
pub(super) fn interleave<const SIZE: usize>(rows: &[u8], cols: usize, step: usize, panel: &mut [u8]) {
    let n_rows = rows.len() / (cols * SIZE);
    if n_rows < PANEL_ROWS || !cols.is_multiple_of(step) {
        panel.fill(0);
    }
    // 16 columns at a time: the panel is written in whole cache lines while 16 source lines stay in L1.
    for block in (0..cols).step_by(16) {
        let end = cols.min(block + 16);
        for row in 0..n_rows {
            for col in block..end {
                let from = (row * cols + col) * SIZE;
                panel[offset::<SIZE>(row, col, step)..][..SIZE].copy_from_slice(&rows[from..from + SIZE]);
            }
        }
    }
}

/// One row of a panel, decoded.
pub(super) fn gather<const SIZE: usize>(
    panel: &[u8],
    row: usize,
    step: usize,
    out: &mut [f32],
    decode: fn(&[u8]) -> f32,
) {
    for (col, value) in out.iter_mut().enumerate() {
        *value = decode(&panel[offset::<SIZE>(row, col, step)..][..SIZE]);
    }
}
