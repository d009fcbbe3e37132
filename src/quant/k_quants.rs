//! Q4_K and Q6_K: super-blocks of 256. Source: the GGUF format as published with ggml.
//!
//! **Q4_K** file block, 144 bytes: `d: f16`, `dmin: f16`, 12 bytes of 6-bit scales and minima for 8 sub-blocks of
//! 32, 128 bytes of nibbles (64 columns per 32 bytes: low nibbles first). Value: `d * sc * q - dmin * m`.
//! Panel body: three scale units, byte `j` of a row's unit being sub-block `j` or `j + 4`:
//! `sc[j] & 15 | (m[j] & 15) << 4`, the same of `j + 4`, and the upper bits
//! `sc[j] >> 4 | m[j] >> 4 << 2 | sc[j+4] >> 4 << 4 | m[j+4] >> 4 << 6`; then 32 units of nibbles.
//! Tail: 16 `d`, 16 `dmin`.
//!
//! **Q6_K** file block, 210 bytes: 128 bytes of low nibbles, 64 bytes of upper bit pairs, 16 x i8 scales for
//! sub-blocks of 16, `d: f16`. Value: `d * sc * (q - 32)`.
//! Panel body: 4 units of scales, 32 of low nibbles, 16 of bit pairs. Tail: 16 `d`.

use super::{PANEL_ROWS, SUPER, UNIT, f16_at, gather_units, interleave_units};

pub(super) const Q4K_BYTES: usize = 2 + 2 + 12 + SUPER / 2;
pub(super) const Q6K_BYTES: usize = SUPER / 2 + SUPER / 4 + SUPER / 16 + 2;
const _: () = assert!(Q4K_BYTES == 144 && Q6K_BYTES == 210);

/// Scale and minimum of sub-block `s` from the 12 packed bytes: four pairs lie in the low six bits of bytes 0..8,
/// the other four have their low nibbles in bytes 8..12 and their upper bits on top of bytes 0..8.
fn scale_min(packed: &[u8], s: usize) -> (u8, u8) {
    match s {
        0..4 => (packed[s] & 63, packed[s + 4] & 63),
        _ => (packed[s + 4] & 15 | packed[s - 4] >> 6 << 4, packed[s + 4] >> 4 | packed[s] >> 6 << 4),
    }
}

/// The inverse of [`scale_min`] for all eight sub-blocks.
fn pack_scale_min(pairs: &[(u8, u8); 8], packed: &mut [u8]) {
    for s in 0..4 {
        packed[s] = pairs[s].0 | pairs[s + 4].0 >> 4 << 6;
        packed[s + 4] = pairs[s].1 | pairs[s + 4].1 >> 4 << 6;
        packed[s + 8] = pairs[s + 4].0 & 15 | pairs[s + 4].1 << 4;
    }
}

pub(super) fn decode_q4k(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    for (s, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_min(&block[4..16], s);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        let quants = &block[16 + s / 2 * 32..][..32];
        for (x, &q) in out.iter_mut().zip(quants) {
            *x = scale * f32::from(q >> (s % 2 * 4) & 15) - min;
        }
    }
}

const Q4K_SCALES: usize = 3 * UNIT;
pub(super) const Q4K_BODY: usize = Q4K_SCALES + 32 * UNIT;
pub(super) const Q4K_TAIL: usize = 4 * PANEL_ROWS;
const _: () = assert!(Q4K_BODY + Q4K_TAIL == PANEL_ROWS * Q4K_BYTES);

pub(super) fn repack_q4k(rows: &[&[u8]; PANEL_ROWS], body: &mut [u8], tail: &mut [u8]) {
    for (r, row) in rows.iter().enumerate() {
        tail[r * 2..][..2].copy_from_slice(&row[..2]);
        tail[(PANEL_ROWS + r) * 2..][..2].copy_from_slice(&row[2..4]);
        for j in 0..4 {
            let ((sc0, m0), (sc1, m1)) = (scale_min(&row[4..16], j), scale_min(&row[4..16], j + 4));
            body[r * 4 + j] = sc0 & 15 | m0 << 4;
            body[UNIT + r * 4 + j] = sc1 & 15 | m1 << 4;
            body[2 * UNIT + r * 4 + j] = sc0 >> 4 | m0 >> 4 << 2 | sc1 >> 4 << 4 | m1 >> 4 << 6;
        }
    }
    interleave_units(rows, 16, 32, &mut body[Q4K_SCALES..]);
}

pub(super) fn unpack_q4k(body: &[u8], tail: &[u8], row: usize, block: &mut [u8]) {
    block[..2].copy_from_slice(&tail[row * 2..][..2]);
    block[2..4].copy_from_slice(&tail[(PANEL_ROWS + row) * 2..][..2]);
    let pairs = std::array::from_fn(|s| {
        let low = body[s / 4 * UNIT + row * 4 + s % 4];
        let high = body[2 * UNIT + row * 4 + s % 4] >> (s / 4 * 4);
        (low & 15 | (high & 3) << 4, low >> 4 | (high >> 2 & 3) << 4)
    });
    pack_scale_min(&pairs, &mut block[4..16]);
    gather_units(&body[Q4K_SCALES..], row, &mut block[16..Q4K_BYTES]);
}

pub(super) fn decode_q6k(block: &[u8], out: &mut [f32]) {
    let (low, rest) = block.split_at(128);
    let (high, scales) = rest.split_at(64);
    let d = f16_at(block, 208);
    for (i, x) in out.iter_mut().enumerate() {
        let (half, quarter, l) = (i / 128, i / 32 % 4, i % 32);
        let nibble = low[half * 64 + quarter % 2 * 32 + l] >> (quarter / 2 * 4) & 15;
        let upper = high[half * 32 + l] >> (quarter * 2) & 3;
        let q = (nibble | upper << 4).cast_signed() - 32;
        *x = d * f32::from(scales[i / 16].cast_signed()) * f32::from(q);
    }
}

const Q6K_LOW: usize = 4 * UNIT;
const Q6K_HIGH: usize = Q6K_LOW + 32 * UNIT;
pub(super) const Q6K_BODY: usize = Q6K_HIGH + 16 * UNIT;
pub(super) const Q6K_TAIL: usize = 2 * PANEL_ROWS;
const _: () = assert!(Q6K_BODY + Q6K_TAIL == PANEL_ROWS * Q6K_BYTES);

pub(super) fn repack_q6k(rows: &[&[u8]; PANEL_ROWS], body: &mut [u8], tail: &mut [u8]) {
    for (r, row) in rows.iter().enumerate() {
        tail[r * 2..][..2].copy_from_slice(&row[208..]);
    }
    interleave_units(rows, 192, 4, body);
    interleave_units(rows, 0, 32, &mut body[Q6K_LOW..]);
    interleave_units(rows, 128, 16, &mut body[Q6K_HIGH..]);
}

pub(super) fn unpack_q6k(body: &[u8], tail: &[u8], row: usize, block: &mut [u8]) {
    gather_units(&body[Q6K_LOW..], row, &mut block[..128]);
    gather_units(&body[Q6K_HIGH..], row, &mut block[128..192]);
    gather_units(body, row, &mut block[192..208]);
    block[208..210].copy_from_slice(&tail[row * 2..][..2]);
}
