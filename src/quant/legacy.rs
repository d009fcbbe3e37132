//! Q8_0 and Q4_0: 32 elements under one f16 scale.
//!
//! File block: `d: f16`, then the quants: 32 x i8, or 16 bytes whose low nibbles are elements 0..16 and high
//! nibbles 16..32. Value: `d * q` (Q8_0), `d * (q - 8)` (Q4_0). Source: the GGUF format as published with ggml.
//!
//! Panel body: unit `u` of Q8_0 is columns `4u..4u+4`, each quant plus 128 as an unsigned byte; of Q4_0 the low
//! nibbles are columns `4u..` and the high nibbles `16+4u..`. Tail: 16 `d`.

use super::{GROUP, PANEL_ROWS, UNIT, f16_at, gather_units, interleave_units};

pub(super) const Q8_0_BYTES: usize = 2 + GROUP;
pub(super) const Q4_0_BYTES: usize = 2 + GROUP / 2;

pub(super) const Q8_0_BODY: usize = GROUP / 4 * UNIT;
pub(super) const Q4_0_BODY: usize = GROUP / 8 * UNIT;
pub(super) const TAIL: usize = 2 * PANEL_ROWS;
const _: () = assert!(Q8_0_BODY + TAIL == PANEL_ROWS * Q8_0_BYTES && Q4_0_BODY + TAIL == PANEL_ROWS * Q4_0_BYTES);

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

/// Signed bytes plus 128 as unsigned ones, and back.
fn flip(bytes: &mut [u8]) {
    bytes.iter_mut().for_each(|q| *q ^= 0x80);
}

fn repack(rows: &[&[u8]; PANEL_ROWS], body: &mut [u8], tail: &mut [u8]) {
    for (scale, row) in tail.chunks_exact_mut(2).zip(rows) {
        scale.copy_from_slice(&row[..2]);
    }
    interleave_units(rows, 2, body.len() / UNIT, body);
}

pub(super) fn repack_q8_0(rows: &[&[u8]; PANEL_ROWS], body: &mut [u8], tail: &mut [u8]) {
    repack(rows, body, tail);
    flip(body);
}

pub(super) fn repack_q4_0(rows: &[&[u8]; PANEL_ROWS], body: &mut [u8], tail: &mut [u8]) {
    repack(rows, body, tail);
}

fn unpack(body: &[u8], tail: &[u8], row: usize, block: &mut [u8]) {
    block[..2].copy_from_slice(&tail[row * 2..][..2]);
    gather_units(body, row, &mut block[2..]);
}

pub(super) fn unpack_q8_0(body: &[u8], tail: &[u8], row: usize, block: &mut [u8]) {
    unpack(body, tail, row, &mut block[..Q8_0_BYTES]);
    flip(&mut block[2..Q8_0_BYTES]);
}

pub(super) fn unpack_q4_0(body: &[u8], tail: &[u8], row: usize, block: &mut [u8]) {
    unpack(body, tail, row, &mut block[..Q4_0_BYTES]);
}
