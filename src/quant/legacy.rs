//! Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0: 32 elements under one f16 scale. Source: the GGUF format as published with ggml.
//!
//! | type | file block | value |
//! |---|---|---|
//! | Q4_0 | `d`, 16 bytes of nibbles | `d * (q - 8)` |
//! | Q4_1 | `d`, `m`, nibbles | `d * q + m` |
//! | Q5_0 | `d`, 4 bytes of fifth bits, nibbles | `d * (q - 16)` |
//! | Q5_1 | `d`, `m`, fifth bits, nibbles | `d * q + m` |
//! | Q8_0 | `d`, 32 x i8 | `d * q` |
//!
//! `d` and `m` are f16. Low nibbles are elements 0..16, high nibbles 16..32; fifth bit `j` is that of element `j`.
//!
//! Panel body: unit `u` of Q8_0 is columns `4u..4u+4`, each quant plus 128 as an unsigned byte; of the others the low
//! nibbles are columns `4u..` and the high nibbles `16+4u..`. Before the nibbles of Q5_0 and Q5_1 lies one unit of
//! fifth bits in plane order (bit `j` of byte `b` is column `4j+b`). Tail: 16 `d`, then 16 `m`.

use super::bits::{f16_at, from_planes, head_first, head_last, to_planes, u32_at};
use super::layout::BlockLayout;

const HALF: usize = 16;

pub(super) const Q4_0: BlockLayout = BlockLayout {
    body: HALF,
    tail: 2,
    field: 2,
    arrange: head_last::<2, 18>,
    restore: head_first::<2, 18>,
    decode: |block, out| decode(block, out, (2, None, 8), 0.0),
};

pub(super) const Q4_1: BlockLayout = BlockLayout {
    body: HALF,
    tail: 2 + 2,
    field: 2,
    arrange: head_last::<4, 20>,
    restore: head_first::<4, 20>,
    decode: |block, out| decode(block, out, (4, None, 0), f16_at(block, 2)),
};

pub(super) const Q5_0: BlockLayout = BlockLayout {
    body: 4 + HALF,
    tail: 2,
    field: 2,
    arrange: arrange_q5::<2, 22>,
    restore: restore_q5::<2, 22>,
    decode: |block, out| decode(block, out, (6, Some(u32_at(block, 2)), 16), 0.0),
};

pub(super) const Q5_1: BlockLayout = BlockLayout {
    body: 4 + HALF,
    tail: 2 + 2,
    field: 2,
    arrange: arrange_q5::<4, 24>,
    restore: restore_q5::<4, 24>,
    decode: |block, out| decode(block, out, (8, Some(u32_at(block, 4)), 0), f16_at(block, 2)),
};

pub(super) const Q8_0: BlockLayout = BlockLayout {
    body: 32,
    tail: 2,
    field: 2,
    arrange: |block, out| {
        head_last::<2, 34>(block, out);
        flip(&mut out[..32]);
    },
    restore: |arranged, block| {
        head_first::<2, 34>(arranged, block);
        flip(&mut block[2..]);
    },
    decode: |block, out| {
        let d = f16_at(block, 0);
        for (x, &q) in out.iter_mut().zip(&block[2..]) {
            *x = d * f32::from(q.cast_signed());
        }
    },
};

/// `d * (q - offset)`, plus `m` where there is no offset; nibbles from byte `at` on.
fn decode(block: &[u8], out: &mut [f32], (at, fifth, offset): (usize, Option<u32>, i8), m: f32) {
    let d = f16_at(block, 0);
    for (i, x) in out.iter_mut().enumerate() {
        let nibble = block[at + i % HALF] >> (i / HALF * 4) & 15;
        let q = nibble | fifth.map_or(0, |bits| (bits >> i & 1) as u8) << 4;
        let product = d * f32::from(q.cast_signed() - offset);
        *x = if offset == 0 { product + m } else { product };
    }
}

/// Signed bytes plus 128 as unsigned ones, and back.
fn flip(bytes: &mut [u8]) {
    bytes.iter_mut().for_each(|q| *q ^= 0x80);
}

fn arrange_q5<const HEAD: usize, const BYTES: usize>(block: &[u8], out: &mut [u8]) {
    head_last::<HEAD, BYTES>(block, out);
    out[..4].copy_from_slice(&to_planes(u32_at(block, HEAD)).to_le_bytes());
}

fn restore_q5<const HEAD: usize, const BYTES: usize>(arranged: &[u8], block: &mut [u8]) {
    head_first::<HEAD, BYTES>(arranged, block);
    block[HEAD..HEAD + 4].copy_from_slice(&from_planes(u32_at(arranged, 0)).to_le_bytes());
}
