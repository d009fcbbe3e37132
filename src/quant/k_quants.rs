//! Q2_K to Q6_K: super-blocks of 256 with integer scales of their sub-blocks. Source: the GGUF format as published with
//! ggml. `d` and `dmin` are f16; bits and bit pairs of four or eight sub-blocks share a byte, the first lowest.
//!
//! **Q2_K** file block, 84 bytes: 16 bytes of scales (low nibble) and minima (high) of sub-blocks of 16, 64 bytes of bit
//! pairs (128 columns per 32 bytes: 32 for each pair), `d`, `dmin`. Value: `d * sc * q - dmin * m`.
//! Panel body: 4 units of scales and minima, 16 of bit pairs. Tail: 16 `d`, 16 `dmin`.
//!
//! **Q3_K** file block, 110 bytes: 32 bytes of upper bits (32 columns for each bit), 64 bytes of bit pairs as above, 12
//! bytes of 6-bit scales of sub-blocks of 16, `d`. Of the scales, sub-blocks 0..8 have the low nibbles of bytes 0..8 and
//! 8..16 the high ones; bit pair `i` of byte `8 + j` tops sub-block `4i + j`. Value: `d * (sc - 32) * (q - 4)`.
//! Panel body: 8 units of upper bits, 16 of bit pairs, 3 of scales. Tail: 16 `d`.
//!
//! **Q4_K** file block, 144 bytes: `d`, `dmin`, 12 bytes of 6-bit scales and minima for 8 sub-blocks of 32, 128 bytes of
//! nibbles (64 columns per 32 bytes: low nibbles first). Value: `d * sc * q - dmin * m`.
//! Panel body: three scale units, byte `j` of a row's unit being sub-block `j` or `j + 4`:
//! `sc[j] & 15 | (m[j] & 15) << 4`, the same of `j + 4`, and the upper bits
//! `sc[j] >> 4 | m[j] >> 4 << 2 | sc[j+4] >> 4 << 4 | m[j+4] >> 4 << 6`; then 32 units of nibbles.
//! Tail: 16 `d`, 16 `dmin`.
//!
//! **Q5_K** file block, 176 bytes: as Q4_K, with 32 bytes of fifth bits (32 columns for each bit) before the nibbles.
//! Panel body: three scale units as above, 8 of fifth bits, 32 of nibbles. Tail: 16 `d`, 16 `dmin`.
//!
//! **Q6_K** file block, 210 bytes: 128 bytes of low nibbles, 64 bytes of upper bit pairs, 16 x i8 scales for
//! sub-blocks of 16, `d`. Value: `d * sc * (q - 32)`.
//! Panel body: 4 units of scales, then 16 times two units of low nibbles, 32 columns apart, and the unit of their bit pairs,
//! in the order in which they are multiplied. Tail: 16 `d`.

use super::bits::{f16_at, same, sized, sized_mut, u32_at};
use super::layout::{BlockLayout, SUPER};

pub(super) const Q2_K: BlockLayout = BlockLayout {
    body: SUPER / 16 + SUPER / 4,
    tail: 2 + 2,
    field: 2,
    arrange: same::<84>,
    restore: same::<84>,
    decode: decode_q2k,
};

pub(super) const Q3_K: BlockLayout = BlockLayout {
    body: SUPER / 8 + SUPER / 4 + 12,
    tail: 2,
    field: 2,
    arrange: same::<110>,
    restore: same::<110>,
    decode: decode_q3k,
};

pub(super) const Q4_K: BlockLayout = BlockLayout {
    body: 12 + SUPER / 2,
    tail: 2 + 2,
    field: 2,
    arrange: arrange_q45k::<144>,
    restore: restore_q45k::<144>,
    decode: |block, out| decode_q45k(block, None, &block[16..], out),
};

pub(super) const Q5_K: BlockLayout = BlockLayout {
    body: 12 + SUPER / 8 + SUPER / 2,
    tail: 2 + 2,
    field: 2,
    arrange: arrange_q45k::<176>,
    restore: restore_q45k::<176>,
    decode: |block, out| decode_q45k(block, Some(&block[16..48]), &block[48..], out),
};

pub(super) const Q6_K: BlockLayout = BlockLayout {
    body: SUPER / 16 + SUPER / 2 + SUPER / 4,
    tail: 2,
    field: 2,
    arrange: |block, out| {
        let (block, out) = (sized::<210>(block), sized_mut::<210>(out));
        out[..16].copy_from_slice(&block[192..208]);
        for (words, from) in out[16..208].as_chunks_mut::<12>().0.iter_mut().zip(q6k_words()) {
            for (word, from) in words.as_chunks_mut::<4>().0.iter_mut().zip(from) {
                *word = sized(&block[from..][..4]).to_owned();
            }
        }
        out[208..].copy_from_slice(&block[208..]);
    },
    restore: |arranged, block| {
        let (arranged, block) = (sized::<210>(arranged), sized_mut::<210>(block));
        for (words, to) in arranged[16..208].as_chunks::<12>().0.iter().zip(q6k_words()) {
            for (word, to) in words.as_chunks::<4>().0.iter().zip(to) {
                block[to..][..4].copy_from_slice(word);
            }
        }
        block[192..208].copy_from_slice(&arranged[..16]);
        block[208..].copy_from_slice(&arranged[208..]);
    },
    decode: decode_q6k,
};

/// Where the file block has the words that follow each other in the panel.
fn q6k_words() -> impl Iterator<Item = [usize; 3]> {
    (0..16).map(|i| {
        let (half, l) = (i / 8, i % 8);
        [half * 64 + l * 4, half * 64 + 32 + l * 4, 128 + half * 32 + l * 4]
    })
}

/// Bit pair of column `i`: halves of 128 columns in 32 bytes each.
fn pair(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3
}

/// Bit of column `i`: eight times 32 columns in 32 bytes.
fn bit(bytes: &[u8], i: usize) -> u8 {
    bytes[i % 32] >> (i / 32) & 1
}

fn decode_q2k(block: &[u8], out: &mut [f32]) {
    let (scales, pairs) = block.split_at(16);
    let (d, dmin) = (f16_at(block, 80), f16_at(block, 82));
    for (i, x) in out.iter_mut().enumerate() {
        let (scale, min) = (scales[i / 16] & 15, scales[i / 16] >> 4);
        *x = d * f32::from(scale) * f32::from(pair(pairs, i)) - dmin * f32::from(min);
    }
}

fn decode_q3k(block: &[u8], out: &mut [f32]) {
    let (upper, rest) = block.split_at(32);
    let (pairs, scales) = rest.split_at(64);
    let d = f16_at(block, 108);
    for (i, x) in out.iter_mut().enumerate() {
        let s = i / 16;
        let scale = scales[s % 8] >> (s / 8 * 4) & 15 | (scales[8 + s % 4] >> (s / 4 * 2) & 3) << 4;
        let q = pair(pairs, i) | bit(upper, i) << 2;
        *x = d * f32::from(scale.cast_signed() - 32) * f32::from(q.cast_signed() - 4);
    }
}

/// Scale and minimum of sub-block `s` from the 12 packed bytes of Q4_K and Q5_K: four pairs lie in the low six bits of
/// bytes 0..8, the other four have their low nibbles in bytes 8..12 and their upper bits on top of bytes 0..8.
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

fn decode_q45k(block: &[u8], fifth: Option<&[u8]>, nibbles: &[u8], out: &mut [f32]) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    for (s, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_min(&block[4..16], s);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        for (l, x) in out.iter_mut().enumerate() {
            let nibble = nibbles[s / 2 * 32 + l] >> (s % 2 * 4) & 15;
            let q = nibble | fifth.map_or(0, |bits| bits[l] >> s & 1) << 4;
            *x = scale * f32::from(q) - min;
        }
    }
}

/// The three words of scales and minima: [`scale_min`] of four sub-blocks at a time, byte `j` of a word being that of
/// sub-block `j` or `j + 4`.
fn scale_words<const BYTES: usize>(block: &[u8; BYTES]) -> [u32; 3] {
    let [scales, minima, fours] = [4, 8, 12].map(|at| u32_at(block, at));
    let upper = |word: u32, shift: u32| word >> shift & 0x0303_0303;
    let low = scales & 0x0f0f_0f0f | (minima & 0x0f0f_0f0f) << 4;
    [low, fours, upper(scales, 4) | upper(minima, 4) << 2 | upper(scales, 6) << 4 | upper(minima, 6) << 6]
}

fn arrange_q45k<const BYTES: usize>(block: &[u8], out: &mut [u8]) {
    let (block, out) = (sized::<BYTES>(block), sized_mut::<BYTES>(out));
    for (word, out) in scale_words(block).iter().zip(out.as_chunks_mut::<4>().0) {
        *out = word.to_le_bytes();
    }
    out[12..BYTES - 4].copy_from_slice(&block[16..]);
    out[BYTES - 4..].copy_from_slice(&block[..4]);
}

fn restore_q45k<const BYTES: usize>(arranged: &[u8], block: &mut [u8]) {
    let (arranged, block) = (sized::<BYTES>(arranged), sized_mut::<BYTES>(block));
    block[..4].copy_from_slice(&arranged[BYTES - 4..]);
    block[16..].copy_from_slice(&arranged[12..BYTES - 4]);
    let pairs = std::array::from_fn(|s| {
        let (low, high) = (arranged[s], arranged[8 + s % 4] >> (s / 4 * 4));
        (low & 15 | (high & 3) << 4, low >> 4 | (high >> 2 & 3) << 4)
    });
    pack_scale_min(&pairs, &mut block[4..16]);
}

fn decode_q6k(block: &[u8], out: &mut [f32]) {
    let (low, rest) = block.split_at(128);
    let (high, scales) = rest.split_at(64);
    let d = f16_at(block, 208);
    for (i, x) in out.iter_mut().enumerate() {
        let nibble = low[i / 128 * 64 + i % 64] >> (i / 64 % 2 * 4) & 15;
        let q = (nibble | pair(high, i) << 4).cast_signed() - 32;
        *x = d * f32::from(scales[i / 16].cast_signed()) * f32::from(q);
    }
}
