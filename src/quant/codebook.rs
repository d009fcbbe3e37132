//! What the codebook types share. Eight (IQ1, IQ2) or four (IQ3) neighbouring elements are one entry of a grid: a short
//! list of patterns of a few levels ([`super::grids`]). IQ2 and IQ3 add a sign for every element.
//!
//! In a panel, what 32 columns of a row need lies in that row's lane of a few units:
//! - the low bytes of its grid indices, in the order of columns, four to a word;
//! - its **signs** in plane order (bit `j` of byte `b` is column `4j + b`). Where the file has seven signs for eight
//!   elements, the eighth making the number of minus signs even, the word holds the seven, and other bits that belong to
//!   these columns in the places of the eighth: bits 1, 3, 5 and 7 of byte 3. There the sums modulo two of the others
//!   must be put before use: with `t` the word without these four bits, `t ^= t << 16`, `t ^= t << 8`, `t ^= t << 1`
//!   leaves them in exactly these places.

use super::bits::{from_planes, to_planes};

/// Places of the eighth signs in a word in the order of columns.
const EIGHTHS: u32 = 0x8080_8080;

/// Four times seven signs, lowest bits first, with four more bits in the places of the eighth signs, in plane order.
pub(super) const fn to_sign_word(sevens: u32, others: u32) -> u32 {
    let signs = sevens & 0x7f | (sevens & 0x7f << 7) << 1 | (sevens & 0x7f << 14) << 2 | (sevens & 0x7f << 21) << 3;
    let others = (others & 1) << 7 | (others & 2) << 14 | (others & 4) << 21 | (others & 8) << 28;
    to_planes(signs | others)
}

/// The inverse of [`to_sign_word`].
pub(super) const fn from_sign_word(word: u32) -> (u32, u32) {
    let columns = from_planes(word);
    let (s, o) = (columns & !EIGHTHS, columns & EIGHTHS);
    let sevens = s & 0x7f | s >> 1 & 0x7f << 7 | s >> 2 & 0x7f << 14 | s >> 3 & 0x7f << 21;
    (sevens, o >> 7 & 1 | o >> 14 & 2 | o >> 21 & 4 | o >> 28 & 8)
}

/// Eight signs from seven.
pub(super) const fn eight_signs(seven: u32) -> u8 {
    (seven as u8 & 0x7f) | (((seven & 0x7f).count_ones() & 1) as u8) << 7
}

/// `scale * level` of the codes of `BITS` bits in a grid entry, negated where a sign is set.
pub(super) fn decode<const BITS: usize>(out: &mut [f32], scale: f32, entry: u16, levels: &[u8], signs: u8) {
    for (j, x) in out.iter_mut().enumerate() {
        let code = entry >> (BITS * j) & ((1 << BITS) - 1);
        let value = scale * f32::from(levels[usize::from(code)]);
        *x = if signs >> j & 1 == 1 { -value } else { value };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sign_words_go_there_and_back_and_tell_their_eighth_signs() {
        let mut state = 1u32;
        for _ in 0..1000 {
            state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
            let (sevens, others) = (state & 0x0fff_ffff, state >> 28);
            let word = to_sign_word(sevens, others);
            assert_eq!(from_sign_word(word), (sevens, others));
            // As the module's comment tells kernels.
            let places = to_planes(EIGHTHS);
            assert_eq!(places, 0xaa00_0000);
            let mut t = word & !places;
            t ^= t << 16;
            t ^= t << 8;
            t ^= t << 1;
            let signs = from_planes(word & !places | t & places);
            for k in 0..4 {
                assert_eq!((signs >> (8 * k)) as u8, eight_signs(sevens >> (7 * k)));
            }
        }
    }
}
