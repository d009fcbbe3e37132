//! F32, F16 and BF16: nothing to decode but the number itself.

use super::{PANEL_ROWS, WeightType};

/// One number of a float type.
pub(super) fn decode(ty: WeightType, bytes: &[u8]) -> f32 {
    match ty {
        WeightType::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        WeightType::F16 => half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        _ => half::bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
    }
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
pub(super) fn gather<const SIZE: usize>(panel: &[u8], row: usize, step: usize, out: &mut [f32], ty: WeightType) {
    for (col, value) in out.iter_mut().enumerate() {
        *value = decode(ty, &panel[offset::<SIZE>(row, col, step)..][..SIZE]);
    }
}
