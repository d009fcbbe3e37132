//! Q1_0 and Q2_0: one or two bits under an f16 scale. Source: the GGUF format as published with ggml.
//!
//! **Q1_0** file block, 18 bytes: `d`, bits of 128 elements, lowest first. Value: `d` where the bit is set, else `-d`.
//! Panel body: 4 units of 32 columns in plane order: bit `j` of byte `b` of unit `u` is column `32u + 4j + b`.
//! Tail: 16 `d`.
//!
//! **Q2_0** file block, 18 bytes: `d`, bit pairs of 64 elements, lowest first. Value: `d * (q - 1)`.
//! Panel body: 4 units, two for 32 columns: bit pair `w` of byte `b` of unit `u` is column
//! `32 (u / 2) + 8w + 4 (u % 2) + b`. Tail: 16 `d`.

use super::bits::{
    f16_at, from_planes, head_first, head_last, map_words, sized, sized_mut, to_planes, transpose_codes,
};
use super::layout::BlockLayout;

pub(super) const Q1_0: BlockLayout = BlockLayout {
    body: 128 / 8,
    tail: 2,
    field: 2,
    arrange: |block, out| {
        let (block, out) = (sized::<18>(block), sized_mut::<18>(out));
        head_last::<2, 18>(block, out);
        map_words(&block[2..], out, to_planes);
    },
    restore: |arranged, block| {
        let (arranged, block) = (sized::<18>(arranged), sized_mut::<18>(block));
        head_first::<2, 18>(arranged, block);
        map_words(arranged, &mut block[2..], from_planes);
    },
    decode: decode_q1_0,
};

pub(super) const Q2_0: BlockLayout = BlockLayout {
    body: 64 / 4,
    tail: 2,
    field: 2,
    arrange: |block, out| {
        let (block, out) = (sized::<18>(block), sized_mut::<18>(out));
        head_last::<2, 18>(block, out);
        for u in 0..4 {
            let bytes = std::array::from_fn(|w| block[2 + u / 2 * 8 + 2 * w + u % 2]);
            out[u * 4..][..4].copy_from_slice(&transpose_codes(u32::from_le_bytes(bytes)).to_le_bytes());
        }
    },
    restore: |arranged, block| {
        let (arranged, block) = (sized::<18>(arranged), sized_mut::<18>(block));
        head_first::<2, 18>(arranged, block);
        for (u, word) in arranged.as_chunks().0.iter().enumerate() {
            for (w, byte) in transpose_codes(u32::from_le_bytes(*word)).to_le_bytes().into_iter().enumerate() {
                block[2 + u / 2 * 8 + 2 * w + u % 2] = byte;
            }
        }
    },
    decode: decode_q2_0,
};

fn decode_q1_0(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    for (i, x) in out.iter_mut().enumerate() {
        *x = if block[2 + i / 8] >> (i % 8) & 1 == 1 { d } else { -d };
    }
}

fn decode_q2_0(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    for (i, x) in out.iter_mut().enumerate() {
        let q = block[2 + i / 4] >> (i % 4 * 2) & 3;
        *x = d * (f32::from(q) - 1.0);
    }
}
