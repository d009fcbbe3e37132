//! The panel layouts as kernels read them: every value from words of one lane, by shift, mask and table.

use super::{bits, noise};
use crate::quant::{Format, PANEL_ROWS, TensorType, UNIT, fp4, grids, iq4};

/// A row of a panel block.
struct Lane<'a> {
    body: &'a [u8],
    tail: &'a [u8],
    row: usize,
}

impl Lane<'_> {
    /// The row's word of a unit.
    fn word(&self, unit: usize) -> u32 {
        u32::from_le_bytes(*self.body[unit * UNIT + self.row * 4..].first_chunk().unwrap())
    }

    /// The row's field `i` of half words in the tail.
    fn half(&self, i: usize) -> u32 {
        u32::from(u16::from_le_bytes(*self.tail[(i * PANEL_ROWS + self.row) * 2..].first_chunk().unwrap()))
    }

    fn f16(&self, i: usize) -> f32 {
        half::f16::from_bits(self.half(i) as u16).to_f32()
    }
}

/// Byte `i` of a word.
fn byte(word: u32, i: usize) -> u32 {
    word >> (8 * i) & 0xff
}

/// The word of signs with the eighth ones made, and the four bits that were in their places.
fn eighths(word: u32) -> (u32, u32) {
    let places = 0xaa00_0000;
    let mut t = word & !places;
    t ^= t << 16;
    t ^= t << 8;
    t ^= t << 1;
    let mut others = word >> 25 & 0x55;
    others = (others | others >> 1) & 0x33;
    (word & !places | t & places, (others | others >> 2) & 0x0f)
}

fn code<const BITS: usize>(entry: u16, i: usize) -> usize {
    usize::from(entry >> (BITS * i) & ((1 << BITS) - 1))
}

/// The value of one column of a block. A flat table, longer than a screen: a line or two for each format.
fn value(ty: TensorType, lane: &Lane<'_>, col: usize) -> f32 {
    // Of the columns: vector and byte in it; half of 256, quarter of that, and vector in that; vector in 32.
    let (u, b) = (col / 4, col % 4);
    let (h, p, l) = (col / 128, col / 32 % 4, col % 32 / 4);
    let (group, sub) = (col / 32, col / 16);
    let w = |unit: usize| lane.word(unit);
    let d = if ty == TensorType::MXFP4 { f32::NAN } else { lane.f16(0) };
    let d1 = || lane.f16(1);
    let int = |x: u32| x as f32;
    let nibble = |first: usize| byte(w(first + u % 4) >> (4 * (u / 4)), b) & 15;
    let fifth = || (byte(w(0) >> u, b) & 1) << 4;
    let pair = |first: usize| byte(w(first + 8 * h + l) >> (2 * p), b) & 3;
    let quant4 = |first: usize| byte(w(first + 8 * (col / 64) + l) >> (4 * (group % 2)), b) & 15;
    let scale_min = || {
        let (low, top) = (byte(w(group / 4), group % 4), byte(w(2), group % 4) >> (4 * (group / 4)));
        (low & 15 | (top & 3) << 4, low >> 4 | (top >> 2 & 3) << 4)
    };
    let with_min = |q: u32| d * int(scale_min().0) * int(q) - d1() * int(scale_min().1);
    // Four-bit scales of 16 groups in two units, of eight in one.
    let scale16 = || byte(w(sub / 4 % 2) >> (4 * (sub / 8)), sub % 4) & 15;
    let sign = |signs: u32, x: f32| if byte(signs >> l, b) & 1 == 1 { -x } else { x };
    // Eight columns of an entry of IQ1 and IQ2, four of IQ3.
    let k = col % 32 / 8;
    let iq2 = |entry: u16, signs: u32, s: u32| {
        sign(signs, d * (0.5 + s as f32) * 0.25 * [8.0, 25.0, 43.0, 0.0][code::<2>(entry, col % 8)])
    };
    match ty {
        TensorType::Q4_0 => d * (int(nibble(0)) - 8.0),
        TensorType::Q4_1 => d * int(nibble(0)) + d1(),
        TensorType::Q5_0 => d * (int(nibble(1) | fifth()) - 16.0),
        TensorType::Q5_1 => d * int(nibble(1) | fifth()) + d1(),
        TensorType::Q8_0 => d * (int(byte(w(u), b)) - 128.0),
        TensorType::Q2_K => {
            let scale = byte(w(sub / 4), sub % 4);
            d * int(scale & 15) * int(pair(4)) - d1() * int(scale >> 4)
        }
        TensorType::Q3_K => {
            let (i, j) = (sub / 4, sub % 4);
            let scale = byte(w(24 + i % 2) >> (4 * (i / 2)), j) & 15 | (byte(w(26) >> (2 * i), j) & 3) << 4;
            let q = pair(8) | (byte(w(l) >> (4 * h + p), b) & 1) << 2;
            d * (int(scale) - 32.0) * (int(q) - 4.0)
        }
        TensorType::Q4_K => with_min(quant4(3)),
        TensorType::Q5_K => with_min(quant4(11) | (byte(w(3 + l) >> group, b) & 1) << 4),
        TensorType::Q6_K => {
            let first = 4 + 3 * (8 * h + l);
            let low = byte(w(first + p % 2) >> (4 * (p / 2)), b) & 15;
            let upper = byte(w(first + 2) >> (2 * p), b) & 3;
            let scale = byte(w(sub / 4), sub % 4) as u8;
            d * f32::from(scale.cast_signed()) * (int(low | upper << 4) - 32.0)
        }
        TensorType::IQ4_NL => d * f32::from(iq4::VALUES[nibble(0) as usize]),
        TensorType::IQ4_XS => {
            let tops = lane.half(1) | lane.half(1) << 14;
            let top = if group < 4 { tops << 4 } else { tops } & 0x3030_3030;
            let scale = byte(w(0) >> (4 * (group / 4)), group % 4) & 15 | byte(top, group % 4);
            d * (int(scale) - 32.0) * f32::from(iq4::VALUES[quant4(1) as usize])
        }
        TensorType::IQ1_S => {
            let more = w(8 + group / 2) >> (16 * (group % 2));
            let index = byte(w(group), k) | (more >> (3 * k) & 7) << 8;
            let delta = if more >> 15 & 1 == 1 { -0.125 } else { 0.125 };
            let level = code::<2>(grids::IQ1[index as usize], col % 8) as f32 - 1.0;
            d * int(2 * (more >> 12 & 7) + 1) * (level + delta)
        }
        TensorType::IQ1_M => {
            let (i, j) = (sub / 4, sub % 4);
            let more = w(9 + group / 2) >> (16 * (group % 2) + 4 * k);
            let index = byte(w(1 + group), k) | (more & 7) << 8;
            let tops = lane.half(1) | lane.half(1) << 12;
            let s = byte(w(0) >> (2 * i), j) & 3 | (byte(tops >> i, j) & 1) << 2;
            let delta = if more >> 3 & 1 == 1 { -0.125 } else { 0.125 };
            let level = code::<2>(grids::IQ1[index as usize], col % 8) as f32 - 1.0;
            d * int(2 * s + 1) * (level + delta)
        }
        TensorType::IQ2_XXS => {
            let (signs, s) = eighths(w(2 * group + 1));
            iq2(grids::IQ2_XXS[byte(w(2 * group), k) as usize], signs, s)
        }
        TensorType::IQ2_XS => {
            let (signs, ninths) = eighths(w(3 + 2 * group));
            let index = byte(w(2 + 2 * group), k) | (ninths >> k & 1) << 8;
            iq2(grids::IQ2_XS[index as usize], signs, scale16())
        }
        TensorType::IQ2_S => {
            let upper = byte(w(2 + group / 4), group % 4) >> (2 * k) & 3;
            let index = byte(w(4 + 2 * group), k) | upper << 8;
            iq2(grids::IQ2_S[index as usize], w(5 + 2 * group), scale16())
        }
        TensorType::IQ3_XXS => {
            let (signs, s) = eighths(w(3 * group + 2));
            let entry = grids::IQ3_XXS[byte(w(3 * group + l / 4), l % 4) as usize];
            let level = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0][code::<4>(entry, b)];
            sign(signs, d * (0.5 + s as f32) * 0.5 * level)
        }
        TensorType::IQ3_S => {
            let s = byte(w(0) >> (4 * (group / 4)), group % 4) & 15;
            let ninth = byte(w(1 + group / 4), group % 4) >> l & 1;
            let index = byte(w(3 + 3 * group + l / 4), l % 4) | ninth << 8;
            let level = 2 * code::<4>(grids::IQ3_S[index as usize], b) + 1;
            sign(w(5 + 3 * group), d * int(2 * s + 1) * level as f32)
        }
        TensorType::TQ1_0 => {
            let (unit, n) = match u {
                0..40 => (u % 8, u / 8),
                40..60 => (8 + u % 4, (u - 40) / 4),
                _ => (12, u - 60),
            };
            let fraction = (byte(w(unit), b) * 3u32.pow(n as u32)) & 0xff;
            d * (int(u32::from(fraction >= 86) + u32::from(fraction >= 171)) - 1.0)
        }
        TensorType::TQ2_0 => d * (int(pair(0)) - 1.0),
        TensorType::MXFP4 => {
            let e = u32::from(lane.tail[lane.row]);
            let scale = f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e - 1) << 23 });
            scale * f32::from(fp4::VALUES[nibble(0) as usize])
        }
        TensorType::NVFP4 => {
            let scales = u32::from_le_bytes(*lane.tail[lane.row * 4..].first_chunk().unwrap());
            let s = match byte(scales, sub) & 0x7f {
                0x7f if byte(scales, sub) == 0x7f => 0.0,
                s => f32::from_bits(s << 20) * 2f32.powi(119),
            };
            let q = byte(w(2 * sub + u % 2) >> (4 * (u / 2 % 2)), b) & 15;
            s * f32::from(fp4::VALUES[q as usize])
        }
        TensorType::Q1_0 => d * (2.0 * int(byte(w(group) >> l, b) & 1) - 1.0),
        TensorType::Q2_0 => d * (int(byte(w(2 * group + u % 2) >> (2 * (l / 2)), b) & 3) - 1.0),
        _ => unreachable!("{ty} has no blocks"),
    }
}

#[test]
fn lanes_of_a_panel_hold_what_the_documents_say() {
    for format in Format::ALL.iter().filter(|format| format.block_len() > 1) {
        let (len, n_blocks) = (format.block_len(), 8);
        let cols = n_blocks * len;
        let file = noise(99, PANEL_ROWS * format.row_bytes(cols));
        let mut panel = vec![0; format.panel_bytes(cols)];
        format.repack_panel(&file, cols, &mut panel);
        let (body, tail) = format.panel_parts();
        let mut want = vec![0f32; cols];
        for (row, bytes) in file.chunks_exact(format.row_bytes(cols)).enumerate() {
            format.decode_row(bytes, &mut want);
            for (block, (both, want)) in panel.chunks_exact(body + tail).zip(want.chunks_exact(len)).enumerate() {
                let (body, tail) = both.split_at(body);
                if want.iter().any(|x| x.is_nan()) {
                    continue; // Random scales may not be numbers; their NaNs have no certain bits.
                }
                let lane = Lane { body, tail, row };
                let got: Vec<f32> = (0..len).map(|col| value(format.tensor_type(), &lane, col)).collect();
                assert_eq!(bits(&got), bits(want), "{} row {row} block {block}", format.name());
            }
        }
    }
}
