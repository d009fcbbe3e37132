use super::*;

mod layouts;

/// Bytes of SplitMix64 (Steele, Lea and Flood 2014), each number lowest byte first.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let words = (1..=len.div_ceil(8) as u64).flat_map(|i| {
        let mut z = seed.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31).to_le_bytes()
    });
    words.take(len).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn a_panel_row_decodes_to_the_same_bits_as_the_file_row() {
    for format in Format::ALL {
        for (rows, blocks) in [(16, 3), (16, 1), (7, 2), (1, 5), (16, 70), (3, 64)] {
            let cols = blocks * format.block_len();
            let row_bytes = format.row_bytes(cols);
            let file = noise(u64::from(format.tensor_type().id()) * 77 + rows as u64, rows * row_bytes);
            let mut panel = vec![0xaa; format.panel_bytes(cols)];
            format.repack_panel(&file, cols, &mut panel);
            let (mut want, mut got) = (vec![0f32; cols], vec![0f32; cols]);
            for (r, row) in file.chunks_exact(row_bytes).enumerate() {
                format.decode_row(row, &mut want);
                format.decode_panel_row(&panel, r, &mut got);
                assert_eq!(bits(&want), bits(&got), "{} row {r} of {rows}", format.name());
            }
            for r in rows..PANEL_ROWS {
                format.decode_panel_row(&panel, r, &mut got);
                assert!(got.iter().all(|&x| x == 0.0), "{} padding row {r}", format.name());
            }
        }
    }
}

#[test]
fn no_bit_of_a_block_is_lost_in_a_panel() {
    for format in Format::ALL {
        for block in noise(5, 1000 * format.block_bytes()).chunks_exact(format.block_bytes()) {
            assert_eq!(format.there_and_back(block), block, "{}", format.name());
        }
    }
}

#[test]
fn panels_take_the_bytes_of_the_file() {
    for format in Format::ALL {
        assert_eq!(format.panel_bytes(512), 16 * format.row_bytes(512), "{}", format.name());
        assert_eq!(format.matrix_bytes(33, 512), 3 * format.panel_bytes(512));
        let (body, tail) = format.panel_parts();
        assert_eq!(body + tail, PANEL_ROWS * format.block_bytes(), "{}", format.name());
    }
    assert_eq!(WeightType::BF16.panel_bytes(5), 16 * 2 * 6);
    // One block of 17 bytes a row: 272, in whole cache lines.
    assert_eq!(Format::of(TensorType::MXFP4).unwrap().panel_bytes(32), 320);
}

#[test]
fn every_type_of_weights_has_a_format() {
    use TensorType::*;
    for &ty in TensorType::ALL {
        let none = matches!(ty, I8 | I16 | I32 | I64 | F64 | Q8_1 | Q8_K);
        assert_eq!(Format::of(ty).is_none(), none, "{ty}");
    }
    assert!(Format::ALL.is_sorted_by_key(|format| format.tensor_type().id()));
    for ty in WeightType::ALL {
        assert_eq!(WeightType::of(ty.format().tensor_type()), Some(ty));
    }
}

#[test]
fn known_values() {
    // d = 1.0, quants 0..32
    let mut block = vec![0x00, 0x3c];
    block.extend(0..32u8);
    let mut out = [0f32; 32];
    WeightType::Q8_0.decode_row(&block, &mut out);
    assert_eq!(out[31], 31.0);
    let mut block = vec![0x00, 0x40];
    block.extend([0x1f; 16]);
    WeightType::Q4_0.decode_row(&block, &mut out);
    assert_eq!((out[0], out[16]), (14.0, -14.0));
}

const GOLDEN_BLOCKS: usize = 10_000;

/// The blocks of a golden: noise with finite floats, see `tests/golden/README.md`.
fn golden_blocks(golden: &serde_json::Value, odd: &serde_json::Value) -> Vec<u8> {
    let number = |value: &serde_json::Value| usize::try_from(value.as_u64().unwrap()).unwrap();
    let size = number(&golden["block_bytes"]);
    let kind = golden["float"].as_str().unwrap();
    let exponent = if kind == "f16" { 0x7c00u16 } else { 0x7f80 };
    let odd: Vec<u16> = odd[kind].as_array().unwrap().iter().map(|bits| number(bits) as u16).collect();
    let fields: Vec<Vec<usize>> = golden["fields"]
        .as_array()
        .unwrap()
        .iter()
        .map(|field| field.as_array().unwrap().iter().map(number).collect())
        .collect();
    let mut blocks = noise(golden["id"].as_u64().unwrap(), GOLDEN_BLOCKS * size);
    for (i, block) in blocks.chunks_exact_mut(size).enumerate() {
        let was = block.to_vec();
        if let Some(fill) = i.checked_sub(24).and_then(|i| [0x00, 0xff, 0x80, 0x7f].get(i)) {
            block.fill(*fill);
        }
        for (k, nibbles) in fields.iter().enumerate() {
            let nibble = |(n, &at): (usize, &usize)| u16::from(was[at / 2] >> (at % 2 * 4) & 15) << (4 * n);
            let mut float: u16 = nibbles.iter().enumerate().map(nibble).sum();
            if float & exponent == exponent {
                float ^= 0x4000;
            }
            if i < 24 {
                float = odd[(i + 7 * k) % odd.len()];
            }
            for (n, at) in nibbles.iter().enumerate() {
                let (byte, shift) = (&mut block[at / 2], at % 2 * 4);
                *byte = *byte & !(15 << shift) | ((float >> (4 * n) & 15) as u8) << shift;
            }
        }
    }
    blocks
}

/// FNV-1a, with numbers in place of bytes.
fn fnv(numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.fold(0xcbf2_9ce4_8422_2325, |hash, number| (hash ^ number).wrapping_mul(0x100_0000_01b3))
}

#[test]
fn blocks_decode_to_the_bits_of_the_reference() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/quant.json");
    let file: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let goldens = file["types"].as_array().unwrap();
    let mut seen = Vec::new();
    for golden in goldens {
        let name = golden["name"].as_str().unwrap();
        let format = Format::ALL.iter().find(|format| format.name() == name).unwrap();
        assert_eq!(u64::from(format.tensor_type().id()), golden["id"].as_u64().unwrap(), "{name}");
        let (len, bytes) = (format.block_len(), format.block_bytes());
        assert_eq!(
            (Some(len as u64), Some(bytes as u64)),
            (golden["block_len"].as_u64(), golden["block_bytes"].as_u64())
        );
        let blocks = golden_blocks(golden, &file["odd"]);
        let mut values = vec![0f32; GOLDEN_BLOCKS * len];
        format.decode_row(&blocks, &mut values);

        let hex: String = blocks[28 * bytes..][..bytes].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, golden["block"].as_str().unwrap(), "{name}: block 28 is not made as it was");
        let shown: Vec<String> = values[28 * len..][..len].iter().map(|x| format!("{:08x}", x.to_bits())).collect();
        let want: Vec<&str> = (0..len).map(|i| &golden["values"].as_str().unwrap()[8 * i..][..8]).collect();
        assert_eq!(shown, want, "{name}: values of block 28");

        let digests = golden["digests"].as_array().unwrap();
        assert_eq!(digests.len() * 1000, GOLDEN_BLOCKS);
        for (i, (values, want)) in values.chunks_exact(1000 * len).zip(digests).enumerate() {
            let of_block = |values: &[f32]| fnv(values.iter().map(|x| u64::from(x.to_bits())));
            let digest = format!("{:016x}", fnv(values.chunks_exact(len).map(of_block)));
            assert_eq!(digest, want.as_str().unwrap(), "{name}: values of the {i}th thousand blocks");
        }
        seen.push(format.tensor_type());
    }
    assert_eq!(seen, Format::ALL.iter().map(Format::tensor_type).collect::<Vec<_>>());
}
