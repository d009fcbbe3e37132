//! IQ4_NL and IQ4_XS: four bits choose one of 16 values that lie closer around zero. Source: the GGUF format as published
//! with ggml. `d` is f16.
//!
//! **IQ4_NL** file block, 18 bytes: `d`, 16 bytes of nibbles: low elements 0..16, high 16..32. Value: `d * VALUES[q]`.
//! Panel body: 4 units of nibbles: of unit `u` the low ones are columns `4u..`, the high ones `16+4u..`. Tail: 16 `d`.
//!
//! **IQ4_XS** file block, 136 bytes: `d`, a half word of 8 upper bit pairs of scales, 8 low nibbles of scales, for every 32
//! elements 16 bytes of nibbles as above. Value: `d * (sc - 32) * VALUES[q]`.
//! Panel body: a unit of the low nibbles of scales: of byte `j` the low nibble is group `j`, the high nibble group `4 + j`;
//! 32 units of quants, 8 for 64 columns: of unit `u` the low nibbles are columns `64 (u / 8) + 4 (u % 8) ..`, the high
//! nibbles those 32 further. Tail: 16 `d`; 16 half words of the upper bit pairs: pair `4 (g % 2) + g / 2` is group `g`. (With
//! `t = h | h << 14`, the bytes of `t << 4 & 0x30303030` top the scales of groups 0..4, of `t & 0x30303030` those of 4..8.)

use super::bits::{f16_at, halve_nibbles, head_first, head_last, pair_nibbles, sized, sized_mut, u16_at};
use super::layout::{BlockLayout, SUPER};

/// The values of the 16 codes.
pub(crate) const VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

pub(super) const IQ4_NL: BlockLayout = BlockLayout {
    body: 16,
    tail: 2,
    field: 2,
    arrange: head_last::<2, 18>,
    restore: head_first::<2, 18>,
    decode: |block, out| decode(&block[2..], f16_at(block, 0), out),
};

pub(super) const IQ4_XS: BlockLayout = BlockLayout {
    body: SUPER / 64 + SUPER / 2,
    tail: 2 + 2,
    field: 2,
    arrange: arrange_iq4xs,
    restore: restore_iq4xs,
    decode: |block, out| {
        let (d, upper) = (f16_at(block, 0), u16_at(block, 2));
        let groups = block[8..].chunks_exact(16).zip(out.chunks_exact_mut(32));
        for (g, (nibbles, out)) in groups.enumerate() {
            let scale = block[4 + g / 2] >> (g % 2 * 4) & 15 | ((upper >> (2 * g) & 3) as u8) << 4;
            decode(nibbles, d * f32::from(scale.cast_signed() - 32), out);
        }
    },
};

fn decode(nibbles: &[u8], scale: f32, out: &mut [f32]) {
    for (i, x) in out.iter_mut().enumerate() {
        *x = scale * f32::from(VALUES[usize::from(nibbles[i % 16] >> (i / 16 * 4) & 15)]);
    }
}

/// Moves the eight bit pairs of a half word: pair `from(g)` becomes pair `to(g)`.
fn move_pairs(word: u16, from: fn(usize) -> usize, to: fn(usize) -> usize) -> u16 {
    (0..8).map(|g| (word >> (2 * from(g)) & 3) << (2 * to(g))).sum()
}

fn by_group(g: usize) -> usize {
    g
}

fn in_panel(g: usize) -> usize {
    4 * (g % 2) + g / 2
}

fn arrange_iq4xs(block: &[u8], out: &mut [u8]) {
    let (block, out) = (sized::<136>(block), sized_mut::<136>(out));
    halve_nibbles(&block[4..8], &mut out[..4]);
    for (from, to) in block[8..].as_chunks::<32>().0.iter().zip(out[4..].as_chunks_mut::<32>().0) {
        for i in 0..16 {
            to[i] = from[i] & 15 | from[16 + i] << 4;
            to[16 + i] = from[i] >> 4 | from[16 + i] & 0xf0;
        }
    }
    out[132..134].copy_from_slice(&block[..2]);
    out[134..].copy_from_slice(&move_pairs(u16_at(block, 2), by_group, in_panel).to_le_bytes());
}

fn restore_iq4xs(arranged: &[u8], block: &mut [u8]) {
    let (arranged, block) = (sized::<136>(arranged), sized_mut::<136>(block));
    block[..2].copy_from_slice(&arranged[132..134]);
    block[2..4].copy_from_slice(&move_pairs(u16_at(arranged, 134), in_panel, by_group).to_le_bytes());
    pair_nibbles(&arranged[..4], &mut block[4..8]);
    for (from, to) in arranged[4..132].as_chunks::<32>().0.iter().zip(block[8..].as_chunks_mut::<32>().0) {
        for i in 0..16 {
            to[i] = from[i] & 15 | from[16 + i] << 4;
            to[16 + i] = from[i] >> 4 | from[16 + i] & 0xf0;
        }
    }
}
