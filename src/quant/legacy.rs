//! Q8_0 and Q4_0: 32 elements under one f16 scale.
//!
//! File block: `d: f16`, then the quants: 32 x i8, or 16 bytes whose low nibbles are elements 0..16 and high
//! nibbles 16..32. Value: `d * q` (Q8_0), `d * (q - 8)` (Q4_0). Source: the GGUF format as published with ggml.
//!
//! Panel block: 16 f16 scales, then 4-byte units interleaved: unit `u` of Q8_0 is columns `4u..4u+4`; of Q4_0
//! the low nibbles are columns `4u..` and the high nibbles `16+4u..`.

use super::{GROUP, PANEL_ROWS, f16_at, gather_units, interleave_units};

pub(super) const Q8_0_BYTES: usize = 2 + GROUP;
pub(super) const Q4_0_BYTES: usize = 2 + GROUP / 2;

/// Bytes of the scales in front of a panel block.
const SCALES: usize = 2 * PANEL_ROWS;

pub(super) fn decode_q8_0(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    for (x, &q) in out.iter_mut().zip(&block[2..]) {
        *x = d * f32::from(q.cast_signed());
    }
}

pub(super) fn decode_q4_0(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    let (low, high) = out.split_at_mut(GROUP / 2);
    for ((x, y), &q) in low.iter_mut().zip(high).zip(&block[2..]) {
        *x = d * f32::from((q & 15).cast_signed() - 8);
        *y = d * f32::from((q >> 4).cast_signed() - 8);
    }
}

fn repack(rows: &[&[u8]; PANEL_ROWS], units: usize, out: &mut [u8]) {
    for (scale, row) in out.chunks_exact_mut(2).zip(rows) {
        scale.copy_from_slice(&row[..2]);
    }
    interleave_units(rows, 2, units, &mut out[SCALES..]);
}

pub(super) fn repack_q8_0(rows: &[&[u8]; PANEL_ROWS], out: &mut [u8]) {
    repack(rows, GROUP / 4, out);
}

pub(super) fn repack_q4_0(rows: &[&[u8]; PANEL_ROWS], out: &mut [u8]) {
    repack(rows, GROUP / 8, out);
}

fn unpack(packed: &[u8], row: usize, block: &mut [u8]) {
    block[..2].copy_from_slice(&packed[row * 2..][..2]);
    gather_units(&packed[SCALES..], row, &mut block[2..]);
}

pub(super) fn unpack_q8_0(packed: &[u8], row: usize, block: &mut [u8]) {
    unpack(packed, row, &mut block[..Q8_0_BYTES]);
}

pub(super) fn unpack_q4_0(packed: &[u8], row: usize, block: &mut [u8]) {
    unpack(packed, row, &mut block[..Q4_0_BYTES]);
}
