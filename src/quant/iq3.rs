//! IQ3_XXS and IQ3_S: super-blocks of 256, four elements from a grid of eight levels, with signs. Source: the GGUF format
//! as published with ggml. `d` is f16, `s` has 4 bits for 32 elements.
//!
//! **IQ3_XXS** file block, 98 bytes: `d`, 64 grid indices of 8 bits, 8 words of 4 x 7 signs and `s`. Levels: 4, 12, 20, 28, 36,
//! 44, 52, 62. Value: `d * (s + 1/2) / 2 * level`, signed.
//! Panel body: for 32 columns two units of indices and one of signs, which holds `s` in the places of the eighth signs (see
//! [`super::codebook`]), lowest bit first. Tail: 16 `d`.
//!
//! **IQ3_S** file block, 110 bytes: `d`, 64 low bytes of grid indices, 64 ninth bits of indices, 32 bytes of signs, 8 nibbles
//! `s`. Levels: 1, 3, .. 15. Value: `d * (2 s + 1) * level`, signed.
//! Panel body: a unit of `s`: of byte `j` the low nibble is group `j`, the high nibble group `4 + j`; 2 units of ninth bits,
//! byte `j` of unit `u` for the columns `32 (4u + j) ..`; then for 32 columns two units of indices and one of signs.
//! Tail: 16 `d`.

use super::bits::{f16_at, from_planes, halve_nibbles, pair_nibbles, sized, sized_mut, to_planes, u32_at};
use super::codebook::{decode, eight_signs, from_sign_word, to_sign_word};
use super::grids;
use super::layout::{BlockLayout, SUPER};

const LEVELS_XXS: [u8; 8] = [4, 12, 20, 28, 36, 44, 52, 62];
const LEVELS_S: [u8; 8] = [1, 3, 5, 7, 9, 11, 13, 15];

pub(super) const IQ3_XXS: BlockLayout = BlockLayout {
    body: SUPER / 32 * (8 + 4),
    tail: 2,
    field: 2,
    arrange: |block, out| {
        let (block, out) = (sized::<98>(block), sized_mut::<98>(out));
        for (g, to) in out.as_chunks_mut::<12>().0.iter_mut().enumerate() {
            let word = u32_at(block, 66 + 4 * g);
            to[..8].copy_from_slice(&block[2 + 8 * g..][..8]);
            to[8..].copy_from_slice(&to_sign_word(word, word >> 28).to_le_bytes());
        }
        out[96..].copy_from_slice(&block[..2]);
    },
    restore: |arranged, block| {
        let (arranged, block) = (sized::<98>(arranged), sized_mut::<98>(block));
        for (g, from) in arranged.as_chunks::<12>().0.iter().enumerate() {
            let (signs, s) = from_sign_word(u32_at(from, 8));
            block[2 + 8 * g..][..8].copy_from_slice(&from[..8]);
            block[66 + 4 * g..][..4].copy_from_slice(&(signs | s << 28).to_le_bytes());
        }
        block[..2].copy_from_slice(&arranged[96..]);
    },
    decode: |block, out| {
        let d = f16_at(block, 0);
        for (k, out) in out.chunks_exact_mut(4).enumerate() {
            let word = u32_at(block, 66 + k / 8 * 4);
            let signs = eight_signs(word >> (k / 2 % 4 * 7)) >> (k % 2 * 4);
            let entry = grids::IQ3_XXS[usize::from(block[2 + k])];
            decode::<4>(out, d * (0.5 + (word >> 28) as f32) * 0.5, entry, &LEVELS_XXS, signs);
        }
    },
};

pub(super) const IQ3_S: BlockLayout = BlockLayout {
    body: SUPER / 64 + SUPER / 32 + SUPER / 32 * (8 + 4),
    tail: 2,
    field: 2,
    arrange: |block, out| {
        let (block, out) = (sized::<110>(block), sized_mut::<110>(out));
        halve_nibbles(&block[106..], &mut out[..4]);
        out[4..12].copy_from_slice(&block[66..74]);
        for (g, to) in out[12..108].as_chunks_mut::<12>().0.iter_mut().enumerate() {
            to[..8].copy_from_slice(&block[2 + 8 * g..][..8]);
            to[8..].copy_from_slice(&to_planes(u32_at(block, 74 + 4 * g)).to_le_bytes());
        }
        out[108..].copy_from_slice(&block[..2]);
    },
    restore: |arranged, block| {
        let (arranged, block) = (sized::<110>(arranged), sized_mut::<110>(block));
        pair_nibbles(&arranged[..4], &mut block[106..]);
        block[66..74].copy_from_slice(&arranged[4..12]);
        for (g, from) in arranged[12..108].as_chunks::<12>().0.iter().enumerate() {
            block[2 + 8 * g..][..8].copy_from_slice(&from[..8]);
            block[74 + 4 * g..][..4].copy_from_slice(&from_planes(u32_at(from, 8)).to_le_bytes());
        }
        block[..2].copy_from_slice(&arranged[108..]);
    },
    decode: |block, out| {
        let d = f16_at(block, 0);
        for (k, out) in out.chunks_exact_mut(4).enumerate() {
            let (ninth, s) = (block[66 + k / 8] >> (k % 8) & 1, block[106 + k / 16] >> (k / 8 % 2 * 4) & 15);
            let entry = grids::IQ3_S[usize::from(block[2 + k]) | usize::from(ninth) << 8];
            decode::<4>(out, d * f32::from(2 * s + 1), entry, &LEVELS_S, block[74 + k / 2] >> (k % 2 * 4));
        }
    },
};
