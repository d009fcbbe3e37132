use super::*;

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn a_panel_row_decodes_to_the_same_bits_as_the_file_row() {
    for ty in WeightType::ALL {
        for (rows, blocks) in [(16, 3), (16, 1), (7, 2), (1, 5)] {
            let cols = blocks * ty.block_len();
            let file = noise(ty as u64 * 77 + rows as u64, rows * ty.row_bytes(cols));
            let mut panel = vec![0xaa; ty.panel_bytes(cols)];
            ty.repack_panel(&file, cols, &mut panel);
            let (mut want, mut got) = (vec![0f32; cols], vec![0f32; cols]);
            for (r, row) in file.chunks_exact(ty.row_bytes(cols)).enumerate() {
                ty.decode_row(row, &mut want);
                ty.decode_panel_row(&panel, r, &mut got);
                let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&want), bits(&got), "{} row {r} of {rows}", ty.name());
            }
            for r in rows..PANEL_ROWS {
                ty.decode_panel_row(&panel, r, &mut got);
                assert!(got.iter().all(|&x| x == 0.0), "{} padding row {r}", ty.name());
            }
        }
    }
}

#[test]
fn panels_take_the_bytes_of_the_file() {
    for ty in WeightType::ALL {
        assert_eq!(ty.panel_bytes(512), 16 * ty.row_bytes(512), "{}", ty.name());
        assert_eq!(ty.matrix_bytes(33, 512), 3 * ty.panel_bytes(512));
    }
    assert_eq!(WeightType::BF16.panel_bytes(5), 16 * 2 * 6);
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
