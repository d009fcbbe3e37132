//! IQ2_XXS, IQ2_XS and IQ2_S: super-blocks of 256, eight elements from a grid of 8, 25 and 43, with signs. Source: the GGUF
//! format as published with ggml. Value: `d * (s + 1/2) / 4 * level`, signed; `d` is f16, `s` has 4 bits.
//!
//! **IQ2_XXS** file block, 66 bytes: `d`, then for 32 elements 4 grid indices of 8 bits and a word of 4 x 7 signs and `s`.
//! Panel body: for 32 columns a unit of indices and one of signs, which holds `s` in the places of the eighth signs (see
//! [`super::codebook`]), lowest bit first. Tail: 16 `d`.
//!
//! **IQ2_XS** file block, 74 bytes: `d`, 32 half words, one for 8 elements: a grid index of 9 bits and 7 signs; 16 nibbles
//! `s`, one for 16 elements.
//! Panel body: 2 units of `s`: of unit `u` byte `j` the low nibble is group `4u + j`, the high nibble group `8 + 4u + j`;
//! then for 32 columns a unit of indices and one of signs, which holds the ninth bits of the four indices in the places of
//! the eighth signs. Tail: 16 `d`.
//!
//! **IQ2_S** file block, 82 bytes: `d`, 32 low bytes of grid indices, 32 bytes of signs, 8 bytes of 4 x 2 upper bits of
//! indices, 16 nibbles `s`, one for 16 elements.
//! Panel body: 2 units of `s` as above; 2 units of upper bits, byte `j` of unit `u` for the columns `32 (4u + j) ..`; then for
//! 32 columns a unit of indices and one of signs. Tail: 16 `d`.

use super::bits::{f16_at, from_planes, halve_nibbles, pair_nibbles, sized, sized_mut, to_planes, u16_at, u32_at};
use super::codebook::{decode, eight_signs, from_sign_word, to_sign_word};
use super::grids;
use super::layout::{BlockLayout, SUPER};

/// The levels of a grid's codes; the fourth is not used.
const LEVELS: [u8; 4] = [8, 25, 43, 0];

pub(super) const IQ2_XXS: BlockLayout = BlockLayout {
    body: SUPER / 32 * (4 + 4),
    tail: 2,
    field: 2,
    arrange: |block, out| {
        let (block, out) = (sized::<66>(block), sized_mut::<66>(out));
        for (from, to) in block[2..].as_chunks::<8>().0.iter().zip(out.as_chunks_mut::<8>().0) {
            let word = u32_at(from, 4);
            to[..4].copy_from_slice(&from[..4]);
            to[4..].copy_from_slice(&to_sign_word(word, word >> 28).to_le_bytes());
        }
        out[64..].copy_from_slice(&block[..2]);
    },
    restore: |arranged, block| {
        let (arranged, block) = (sized::<66>(arranged), sized_mut::<66>(block));
        for (from, to) in arranged.as_chunks::<8>().0.iter().zip(block[2..].as_chunks_mut::<8>().0) {
            let (signs, s) = from_sign_word(u32_at(from, 4));
            to[..4].copy_from_slice(&from[..4]);
            to[4..].copy_from_slice(&(signs | s << 28).to_le_bytes());
        }
        block[..2].copy_from_slice(&arranged[64..]);
    },
    decode: |block, out| {
        let d = f16_at(block, 0);
        for (k, out) in out.chunks_exact_mut(8).enumerate() {
            let group = &block[2 + k / 4 * 8..];
            let (index, word) = (group[k % 4], u32_at(group, 4));
            let entry = grids::IQ2_XXS[usize::from(index)];
            decode::<2>(out, quarter(d, word >> 28), entry, &LEVELS, eight_signs(word >> (7 * (k % 4))));
        }
    },
};

pub(super) const IQ2_XS: BlockLayout = BlockLayout {
    body: SUPER / 32 + SUPER / 32 * (4 + 4),
    tail: 2,
    field: 2,
    arrange: |block, out| {
        let (block, out) = (sized::<74>(block), sized_mut::<74>(out));
        halve_nibbles(&block[66..], &mut out[..8]);
        for (from, to) in block[2..66].as_chunks::<8>().0.iter().zip(out[8..].as_chunks_mut::<8>().0) {
            let (mut signs, mut ninths) = (0, 0);
            for (k, entry) in from.as_chunks().0.iter().enumerate() {
                let entry = u32::from(u16::from_le_bytes(*entry));
                to[k] = entry as u8;
                signs |= (entry >> 9) << (7 * k);
                ninths |= (entry >> 8 & 1) << k;
            }
            to[4..].copy_from_slice(&to_sign_word(signs, ninths).to_le_bytes());
        }
        out[72..].copy_from_slice(&block[..2]);
    },
    restore: |arranged, block| {
        let (arranged, block) = (sized::<74>(arranged), sized_mut::<74>(block));
        pair_nibbles(&arranged[..8], &mut block[66..]);
        for (from, to) in arranged[8..72].as_chunks::<8>().0.iter().zip(block[2..].as_chunks_mut::<8>().0) {
            let (signs, ninths) = from_sign_word(u32_at(from, 4));
            for k in 0..4 {
                let entry = u32::from(from[k]) | (ninths >> k & 1) << 8 | (signs >> (7 * k) & 0x7f) << 9;
                to[2 * k..][..2].copy_from_slice(&(entry as u16).to_le_bytes());
            }
        }
        block[..2].copy_from_slice(&arranged[72..]);
    },
    decode: |block, out| {
        let d = f16_at(block, 0);
        for (k, out) in out.chunks_exact_mut(8).enumerate() {
            let (word, s) = (u16_at(block, 2 + 2 * k), block[66 + k / 4] >> (k / 2 % 2 * 4) & 15);
            let entry = grids::IQ2_XS[usize::from(word & 511)];
            decode::<2>(out, quarter(d, u32::from(s)), entry, &LEVELS, eight_signs(u32::from(word >> 9)));
        }
    },
};

pub(super) const IQ2_S: BlockLayout = BlockLayout {
    body: SUPER / 32 + SUPER / 32 + SUPER / 32 * (4 + 4),
    tail: 2,
    field: 2,
    arrange: |block, out| {
        let (block, out) = (sized::<82>(block), sized_mut::<82>(out));
        halve_nibbles(&block[74..], &mut out[..8]);
        out[8..16].copy_from_slice(&block[66..74]);
        for (g, to) in out[16..80].as_chunks_mut::<8>().0.iter_mut().enumerate() {
            to[..4].copy_from_slice(&block[2 + 4 * g..][..4]);
            to[4..].copy_from_slice(&to_planes(u32_at(block, 34 + 4 * g)).to_le_bytes());
        }
        out[80..].copy_from_slice(&block[..2]);
    },
    restore: |arranged, block| {
        let (arranged, block) = (sized::<82>(arranged), sized_mut::<82>(block));
        pair_nibbles(&arranged[..8], &mut block[74..]);
        block[66..74].copy_from_slice(&arranged[8..16]);
        for (g, from) in arranged[16..80].as_chunks::<8>().0.iter().enumerate() {
            block[2 + 4 * g..][..4].copy_from_slice(&from[..4]);
            block[34 + 4 * g..][..4].copy_from_slice(&from_planes(u32_at(from, 4)).to_le_bytes());
        }
        block[..2].copy_from_slice(&arranged[80..]);
    },
    decode: |block, out| {
        let d = f16_at(block, 0);
        for (k, out) in out.chunks_exact_mut(8).enumerate() {
            let (upper, s) = (block[66 + k / 4] >> (k % 4 * 2) & 3, block[74 + k / 4] >> (k / 2 % 2 * 4) & 15);
            let entry = grids::IQ2_S[usize::from(block[2 + k]) | usize::from(upper) << 8];
            decode::<2>(out, quarter(d, u32::from(s)), entry, &LEVELS, block[34 + k]);
        }
    },
};

fn quarter(d: f32, s: u32) -> f32 {
    d * (0.5 + s as f32) * 0.25
}
