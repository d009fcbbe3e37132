//! TQ1_0 and TQ2_0: values -1, 0, 1 (TQ2_0 can also hold 2) times one f16 per 256. Source: the GGUF format as published
//! with ggml. Value: `d * (q - 1)`.
//!
//! **TQ1_0** file block, 54 bytes: 52 bytes of ternary digits, five (the last four bytes: four) to a byte, `d`. A byte is
//! a fraction of 256: digit `n` is `(byte * 3^n mod 256) * 3 >> 8`. Digit `n` is column `32n + l` of byte `l` in the first
//! 32 bytes, column `160 + 16n + l` of byte `32 + l`, column `240 + 4n + l` of byte `48 + l`.
//! Panel body: the 13 words of digits as 13 units: digit `n` of a unit is always four neighbouring columns. Tail: 16 `d`.
//!
//! **TQ2_0** file block, 66 bytes: 64 bytes of bit pairs (128 columns per 32 bytes, 32 for each pair), `d`.
//! Panel body: 16 units of bit pairs. Tail: 16 `d`.

use super::bits::{f16_at, same};
use super::layout::{BlockLayout, SUPER};

pub(super) const TQ1_0: BlockLayout = BlockLayout {
    body: 32 + 16 + 4,
    tail: 2,
    field: 2,
    arrange: same::<54>,
    restore: same::<54>,
    decode: decode_tq1_0,
};

pub(super) const TQ2_0: BlockLayout =
    BlockLayout { body: SUPER / 4, tail: 2, field: 2, arrange: same::<66>, restore: same::<66>, decode: decode_tq2_0 };

fn decode_tq1_0(block: &[u8], out: &mut [f32]) {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    let d = f16_at(block, 52);
    for (i, x) in out.iter_mut().enumerate() {
        let (byte, n) = match i {
            0..160 => (i % 32, i / 32),
            160..240 => (32 + i % 16, (i - 160) / 16),
            _ => (48 + i % 4, (i - 240) / 4),
        };
        let fraction = block[byte].wrapping_mul(POWERS[n]);
        *x = d * (f32::from((u16::from(fraction) * 3) >> 8) - 1.0);
    }
}

fn decode_tq2_0(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 64);
    for (i, x) in out.iter_mut().enumerate() {
        let q = block[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
        *x = d * (f32::from(q) - 1.0);
    }
}
