//! MXFP4 and NVFP4: 4-bit floats E2M1 under an 8-bit scale. Sources: the OCP microscaling formats (MX) specification 1.0,
//! and the GGUF format as published with ggml, which stores twice the E2M1 values as integers and halves the scale.
//!
//! **MXFP4** file block, 17 bytes: `e`, an E8M0 exponent; 16 bytes of codes, low nibbles elements 0..16 and high nibbles
//! 16..32. Value: `2^(e - 128) * VALUES[q]`; 255, a NaN in the specification, is an exponent like any other in ggml.
//! Panel body: 4 units of codes: of unit `u` the low nibbles are columns `4u..`, the high nibbles `16+4u..`. Tail: 16 `e`.
//!
//! **NVFP4** file block, 36 bytes: 4 scales `s` in E4M3 without sign, one for every 16 elements; 4 x 8 bytes of codes, low
//! nibbles elements 0..8 and high nibbles 8..16. Value: `s / 2 * VALUES[q]`.
//! Panel body: 8 units of codes: of unit `u` the low nibbles are columns `16 (u / 2) + 4 (u % 2) ..`, the high nibbles
//! those 8 further. Tail: one unit of scales, byte `i` of a row's word being that of columns `16i..`.

use super::bits::{head_first, head_last};
use super::layout::BlockLayout;

/// Twice the values of E2M1.
pub(crate) const VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

pub(super) const MXFP4: BlockLayout = BlockLayout {
    body: 16,
    tail: 1,
    field: 1,
    arrange: head_last::<1, 17>,
    restore: head_first::<1, 17>,
    decode: decode_mxfp4,
};

pub(super) const NVFP4: BlockLayout = BlockLayout {
    body: 32,
    tail: 4,
    field: 4,
    arrange: head_last::<4, 36>,
    restore: head_first::<4, 36>,
    decode: decode_nvfp4,
};

/// `2^(e - 128)`: subnormal for the two smallest exponents.
fn half_e8m0(e: u8) -> f32 {
    f32::from_bits(match e {
        0 | 1 => 0x0020_0000 << e,
        _ => u32::from(e - 1) << 23,
    })
}

/// Half the value of an E4M3 number without sign: bias 7; 127, the NaN, is zero in ggml, which ignores bit 7 otherwise.
fn half_e4m3(s: u8) -> f32 {
    if s == 0x7f {
        return 0.0;
    }
    // Exponent and mantissa where a float has them: too small by 2^(127 - 7), of which one is the half. Exact.
    f32::from_bits(u32::from(s & 0x7f) << 20) * f32::from_bits((127 + 119) << 23)
}

fn decode_mxfp4(block: &[u8], out: &mut [f32]) {
    let d = half_e8m0(block[0]);
    for (i, x) in out.iter_mut().enumerate() {
        let q = block[1 + i % 16] >> (i / 16 * 4) & 15;
        *x = d * f32::from(VALUES[usize::from(q)]);
    }
}

fn decode_nvfp4(block: &[u8], out: &mut [f32]) {
    for (i, x) in out.iter_mut().enumerate() {
        let q = block[4 + i / 16 * 8 + i % 8] >> (i % 16 / 8 * 4) & 15;
        *x = half_e4m3(block[i / 16]) * f32::from(VALUES[usize::from(q)]);
    }
}
