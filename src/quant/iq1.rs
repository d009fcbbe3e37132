//! IQ1_S and IQ1_M: super-blocks of 256, eight elements from a grid of -1, 0 and 1, all shifted up or down by 1/8. Source:
//! the GGUF format as published with ggml. Value: `d * (2 s + 1) * (level + 1/8)`, or `- 1/8` where the shift bit is set.
//!
//! **IQ1_S** file block, 50 bytes: `d: f16`, 32 low bytes of grid indices, 8 half words, one for 32 elements: 4 x 3 upper
//! bits of indices, 3 bits `s`, the shift bit.
//! Panel body: 8 units of index bytes, one for 32 columns; 4 units of half words, one for 64. Tail: 16 `d`.
//!
//! **IQ1_M** file block, 56 bytes: 32 low bytes of grid indices; 32 nibbles, one for 8 elements: 3 upper bits of the index
//! and the shift bit; 4 half words of scales, one for 64 elements: 4 x 3 bits `s`, one for 16 elements, and a nibble of
//! `d: f16`, lowest first.
//! Panel body: a unit of the lower two bits of `s`: bit pair `i` of byte `j` is group `4i + j`; 8 units of index bytes as
//! above; 4 units of nibbles, one for 64 columns. Tail: 16 `d`; 16 half words of the upper bits of `s`: bit
//! `8 (j % 2) + 4 (j / 2) + i` is group `4i + j`. (With `t = h | h << 12`, `t >> i & 0x01010101` holds bits of four groups
//! as bytes.)

use super::bits::{f16_at, head_first, head_last, sized, sized_mut, u16_at};
use super::grids::IQ1;
use super::layout::{BlockLayout, SUPER};

pub(super) const IQ1_S: BlockLayout = BlockLayout {
    body: SUPER / 8 + SUPER / 16,
    tail: 2,
    field: 2,
    arrange: head_last::<2, 50>,
    restore: head_first::<2, 50>,
    decode: decode_iq1s,
};

pub(super) const IQ1_M: BlockLayout = BlockLayout {
    body: 4 + SUPER / 8 + SUPER / 16,
    tail: 2 + 2,
    field: 2,
    arrange: arrange_iq1m,
    restore: restore_iq1m,
    decode: decode_iq1m,
};

fn decode(out: &mut [f32], scale: f32, index: u16, shift_down: bool) {
    let (entry, delta) = (IQ1[usize::from(index)], if shift_down { -0.125 } else { 0.125 });
    for (j, x) in out.iter_mut().enumerate() {
        *x = scale * (f32::from(entry >> (2 * j) & 3) - 1.0 + delta);
    }
}

fn decode_iq1s(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    for (k, out) in out.chunks_exact_mut(8).enumerate() {
        let more = u16_at(block, 34 + k / 4 * 2);
        let index = u16::from(block[2 + k]) | (more >> (k % 4 * 3) & 7) << 8;
        decode(out, d * f32::from(2 * (more >> 12 & 7) + 1), index, more >> 15 == 1);
    }
}

/// The three-bit scale of a group of 16, and the f16, from the four half words of scales.
fn scale(words: &[u8], group: usize) -> u16 {
    u16_at(words, group / 4 * 2) >> (group % 4 * 3) & 7
}

fn scattered_f16(words: &[u8]) -> u16 {
    (0..4).map(|i| u16_at(words, i * 2) >> 12 << (4 * i)).sum()
}

fn decode_iq1m(block: &[u8], out: &mut [f32]) {
    let scales = &block[48..56];
    let d = half::f16::from_bits(scattered_f16(scales)).to_f32();
    for (k, out) in out.chunks_exact_mut(8).enumerate() {
        let more = block[32 + k / 2] >> (k % 2 * 4) & 15;
        let index = u16::from(block[k]) | u16::from(more & 7) << 8;
        decode(out, d * f32::from(2 * scale(scales, k / 2) + 1), index, more >> 3 == 1);
    }
}

/// Place of the upper bit of a group's scale in the half word of the tail.
fn upper_bit(group: usize) -> usize {
    let (i, j) = (group / 4, group % 4);
    8 * (j % 2) + 4 * (j / 2) + i
}

fn arrange_iq1m(block: &[u8], out: &mut [u8]) {
    let (block, out) = (sized::<56>(block), sized_mut::<56>(out));
    let scales = &block[48..56];
    let (mut low, mut upper) = ([0u8; 4], 0);
    for group in 0..16 {
        let s = scale(scales, group);
        low[group % 4] |= (s as u8 & 3) << (group / 4 * 2);
        upper |= (s >> 2) << upper_bit(group);
    }
    out[..4].copy_from_slice(&low);
    out[4..52].copy_from_slice(&block[..48]);
    out[52..54].copy_from_slice(&scattered_f16(scales).to_le_bytes());
    out[54..].copy_from_slice(&upper.to_le_bytes());
}

fn restore_iq1m(arranged: &[u8], block: &mut [u8]) {
    let (arranged, block) = (sized::<56>(arranged), sized_mut::<56>(block));
    block[..48].copy_from_slice(&arranged[4..52]);
    let (d, upper) = (u16_at(arranged, 52), u16_at(arranged, 54));
    for (i, word) in block[48..].as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let mut bits = d >> (4 * i) << 12;
        for (j, low) in arranged[..4].iter().enumerate() {
            let s = u16::from(low >> (2 * i) & 3) | (upper >> upper_bit(4 * i + j) & 1) << 2;
            bits |= s << (3 * j);
        }
        *word = bits.to_le_bytes();
    }
}
