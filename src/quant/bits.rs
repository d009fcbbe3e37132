//! Moves of bits and nibbles between the order of a file block and that of a panel.

/// A block as an array: what is copied in a repack has a size that the compiler knows, and is not a call.
pub(super) fn sized<const N: usize>(block: &[u8]) -> &[u8; N] {
    block.try_into().expect("a whole block")
}

/// The same for writing.
pub(super) fn sized_mut<const N: usize>(block: &mut [u8]) -> &mut [u8; N] {
    block.try_into().expect("a whole block")
}

/// Little-endian word at `at`.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Little-endian half word at `at`.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// The f16 at `at`.
pub(super) fn f16_at(bytes: &[u8], at: usize) -> f32 {
    half::f16::from_bits(u16_at(bytes, at)).to_f32()
}

/// Swaps the bits of `mask` with those `shift` above them.
const fn swap(x: u32, shift: u32, mask: u32) -> u32 {
    let t = (x ^ x >> shift) & mask;
    x ^ t ^ t << shift
}

/// Even bits into the lower half, odd ones into the upper.
const fn unshuffle(x: u32) -> u32 {
    let x = swap(swap(x, 1, 0x2222_2222), 2, 0x0c0c_0c0c);
    swap(swap(x, 4, 0x00f0_00f0), 8, 0x0000_ff00)
}

/// The inverse of [`unshuffle`].
const fn shuffle(x: u32) -> u32 {
    let x = swap(swap(x, 8, 0x0000_ff00), 4, 0x00f0_00f0);
    swap(swap(x, 2, 0x0c0c_0c0c), 1, 0x2222_2222)
}

/// One bit for each of 32 columns in **plane order**: bit `j` of byte `b` is column `4 j + b`, so that
/// `word >> j & 0x01010101` holds the bits of columns `4 j .. 4 j + 4`, each in its byte. From the order of columns.
pub(super) const fn to_planes(columns: u32) -> u32 {
    unshuffle(unshuffle(columns))
}

/// The inverse of [`to_planes`].
pub(super) const fn from_planes(planes: u32) -> u32 {
    shuffle(shuffle(planes))
}

/// Rewrites every word of `from`, in the order of `to`.
pub(super) fn map_words(from: &[u8], to: &mut [u8], map: fn(u32) -> u32) {
    for (from, to) in from.as_chunks().0.iter().zip(to.as_chunks_mut().0) {
        *to = map(u32::from_le_bytes(*from)).to_le_bytes();
    }
}

/// Transposes a word of 4 x 4 two-bit codes: code `w` of byte `b` becomes code `b` of byte `w`.
pub(super) const fn transpose_codes(x: u32) -> u32 {
    swap(swap(x, 6, 0x00cc_00cc), 12, 0x0000_f0f0)
}

/// Nibbles of neighbours to nibbles of halves: value `2 i` lies in the low nibble of byte `i` and `2 i + 1` in the high
/// one; then value `i` lies in the low nibble of byte `i`, and the value half their number further in the high one.
pub(super) fn halve_nibbles(from: &[u8], to: &mut [u8]) {
    let value = |i: usize| from[i / 2] >> (i % 2 * 4) & 15;
    for (i, byte) in to.iter_mut().enumerate() {
        *byte = value(i) | value(from.len() + i) << 4;
    }
}

/// The inverse of [`halve_nibbles`].
pub(super) fn pair_nibbles(from: &[u8], to: &mut [u8]) {
    let value = |i: usize| from[i % from.len()] >> (i / from.len() * 4) & 15;
    for (i, byte) in to.iter_mut().enumerate() {
        *byte = value(2 * i) | value(2 * i + 1) << 4;
    }
}

/// A block that a panel takes as it is.
pub(super) fn same<const BYTES: usize>(from: &[u8], to: &mut [u8]) {
    *sized_mut::<BYTES>(to) = *sized(from);
}

/// A block of `BYTES` with its first `HEAD` bytes last.
pub(super) fn head_last<const HEAD: usize, const BYTES: usize>(block: &[u8], out: &mut [u8]) {
    let (block, out) = (sized::<BYTES>(block), sized_mut::<BYTES>(out));
    out[..BYTES - HEAD].copy_from_slice(&block[HEAD..]);
    out[BYTES - HEAD..].copy_from_slice(&block[..HEAD]);
}

/// The inverse of [`head_last`].
pub(super) fn head_first<const HEAD: usize, const BYTES: usize>(arranged: &[u8], block: &mut [u8]) {
    let (arranged, block) = (sized::<BYTES>(arranged), sized_mut::<BYTES>(block));
    block[..HEAD].copy_from_slice(&arranged[BYTES - HEAD..]);
    block[HEAD..].copy_from_slice(&arranged[..BYTES - HEAD]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_hold_four_columns_side_by_side() {
        for column in 0..32 {
            assert_eq!(to_planes(1 << column), 1 << (column % 4 * 8 + column / 4), "column {column}");
            assert_eq!(from_planes(to_planes(1 << column)), 1 << column, "column {column}");
        }
    }

    #[test]
    fn codes_are_transposed() {
        for (byte, code) in (0..4).flat_map(|byte| (0..4).map(move |code| (byte, code))) {
            for bits in 1..4u32 {
                assert_eq!(transpose_codes(bits << (8 * byte + 2 * code)), bits << (8 * code + 2 * byte));
            }
        }
    }

    #[test]
    fn nibbles_of_halves() {
        let (mut halves, mut pairs) = ([0; 4], [0; 4]);
        halve_nibbles(&[0x10, 0x32, 0x54, 0x76], &mut halves);
        assert_eq!(halves, [0x40, 0x51, 0x62, 0x73]);
        pair_nibbles(&halves, &mut pairs);
        assert_eq!(pairs, [0x10, 0x32, 0x54, 0x76]);
    }
}
