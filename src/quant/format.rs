//! The table of weight formats: what a block is, what it decodes to, and how 16 rows of blocks lie in a panel.

use std::fmt;

use super::float::Decode;
use super::layout::{BlockLayout, PANEL_ROWS, UNIT};
use super::types::TensorType;
use super::{float, fp4, iq1, iq2, iq3, iq4, k_quants, legacy, low_bit, ternary};

/// Largest block of any format, in bytes (one row).
const BLOCK_BYTES_MAX: usize = 256;

/// Bytes of one row in a unit.
const WORD: usize = UNIT / PANEL_ROWS;

/// The order of numbers or blocks in a panel.
enum Order {
    /// Numbers, `step` columns of each row in turn.
    Steps {
        step: usize,
        decode: Decode,
        interleave: fn(&[u8], usize, &mut [u8]),
        gather: fn(&[u8], usize, &mut [f32], Decode),
    },
    /// Blocks: the body and the tail of each in turn.
    Blocks(BlockLayout),
}

/// A weight format: one row of the table [`Format::ALL`].
pub struct Format {
    ty: TensorType,
    short: &'static str,
    order: Order,
}

impl fmt::Debug for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Format({})", self.name())
    }
}

impl Format {
    /// Every format, by rising id.
    pub const ALL: &'static [Format] = &[
        Format::steps::<4, 1>(TensorType::F32, "f32", float::f32),
        Format::steps::<2, 1>(TensorType::F16, "f16", float::f16),
        Format::blocks(TensorType::Q4_0, "q4_0", legacy::Q4_0),
        Format::blocks(TensorType::Q4_1, "q4_1", legacy::Q4_1),
        Format::blocks(TensorType::Q5_0, "q5_0", legacy::Q5_0),
        Format::blocks(TensorType::Q5_1, "q5_1", legacy::Q5_1),
        Format::blocks(TensorType::Q8_0, "q8_0", legacy::Q8_0),
        Format::blocks(TensorType::Q2_K, "q2k", k_quants::Q2_K),
        Format::blocks(TensorType::Q3_K, "q3k", k_quants::Q3_K),
        Format::blocks(TensorType::Q4_K, "q4k", k_quants::Q4_K),
        Format::blocks(TensorType::Q5_K, "q5k", k_quants::Q5_K),
        Format::blocks(TensorType::Q6_K, "q6k", k_quants::Q6_K),
        Format::blocks(TensorType::IQ2_XXS, "iq2xxs", iq2::IQ2_XXS),
        Format::blocks(TensorType::IQ2_XS, "iq2xs", iq2::IQ2_XS),
        Format::blocks(TensorType::IQ3_XXS, "iq3xxs", iq3::IQ3_XXS),
        Format::blocks(TensorType::IQ1_S, "iq1s", iq1::IQ1_S),
        Format::blocks(TensorType::IQ4_NL, "iq4nl", iq4::IQ4_NL),
        Format::blocks(TensorType::IQ3_S, "iq3s", iq3::IQ3_S),
        Format::blocks(TensorType::IQ2_S, "iq2s", iq2::IQ2_S),
        Format::blocks(TensorType::IQ4_XS, "iq4xs", iq4::IQ4_XS),
        Format::blocks(TensorType::IQ1_M, "iq1m", iq1::IQ1_M),
        Format::steps::<2, 2>(TensorType::BF16, "bf16", float::bf16),
        Format::blocks(TensorType::TQ1_0, "tq1_0", ternary::TQ1_0),
        Format::blocks(TensorType::TQ2_0, "tq2_0", ternary::TQ2_0),
        Format::blocks(TensorType::MXFP4, "mxfp4", fp4::MXFP4),
        Format::blocks(TensorType::NVFP4, "nvfp4", fp4::NVFP4),
        Format::blocks(TensorType::Q1_0, "q1_0", low_bit::Q1_0),
        Format::blocks(TensorType::Q2_0, "q2_0", low_bit::Q2_0),
    ];

    const fn steps<const SIZE: usize, const STEP: usize>(ty: TensorType, short: &'static str, decode: Decode) -> Self {
        assert!(ty.block_len() == 1 && ty.block_bytes() == SIZE);
        let (interleave, gather) = (float::interleave::<SIZE, STEP>, float::gather::<SIZE, STEP>);
        Format { ty, short, order: Order::Steps { step: STEP, decode, interleave, gather } }
    }

    const fn blocks(ty: TensorType, short: &'static str, layout: BlockLayout) -> Self {
        assert!(layout.body + layout.tail == ty.block_bytes() && ty.block_bytes() <= BLOCK_BYTES_MAX);
        assert!(layout.body.is_multiple_of(WORD) && layout.tail > 0 && layout.tail.is_multiple_of(layout.field));
        assert!(matches!(layout.field, 1 | 2 | 4) && layout.body.is_multiple_of(layout.field));
        Format { ty, short, order: Order::Blocks(layout) }
    }

    /// The format of a GGUF tensor type; `None` for integers, 64-bit floats and types of activations.
    pub const fn of(ty: TensorType) -> Option<&'static Self> {
        let mut i = 0;
        while i < Format::ALL.len() {
            if Format::ALL[i].ty as u32 == ty as u32 {
                return Some(&Format::ALL[i]);
            }
            i += 1;
        }
        None
    }

    /// The tensor type.
    pub const fn tensor_type(&self) -> TensorType {
        self.ty
    }

    /// The name in GGUF tools, e.g. `Q4_K`.
    pub const fn name(&self) -> &'static str {
        self.ty.name()
    }

    /// The name inside kernel names, e.g. `q4k`.
    pub const fn short(&self) -> &'static str {
        self.short
    }

    /// Elements of a block.
    pub const fn block_len(&self) -> usize {
        self.ty.block_len()
    }

    /// Bytes of a block of one row.
    pub const fn block_bytes(&self) -> usize {
        self.ty.block_bytes()
    }

    /// Bytes of one row of `cols` elements in the file.
    ///
    /// # Panics
    /// If `cols` is not a multiple of the block.
    pub const fn row_bytes(&self, cols: usize) -> usize {
        assert!(cols.is_multiple_of(self.block_len()));
        cols / self.block_len() * self.block_bytes()
    }

    /// Bytes of one panel of `cols` columns: whole cache lines.
    pub const fn panel_bytes(&self, cols: usize) -> usize {
        let cols = match self.order {
            Order::Steps { step, .. } => cols.next_multiple_of(step),
            Order::Blocks(_) => cols,
        };
        (PANEL_ROWS * self.row_bytes(cols)).next_multiple_of(64)
    }

    /// Bytes of the body and of the tail of a panel block.
    pub const fn panel_parts(&self) -> (usize, usize) {
        match &self.order {
            Order::Steps { .. } => (PANEL_ROWS * self.block_bytes(), 0),
            Order::Blocks(layout) => (PANEL_ROWS * layout.body, PANEL_ROWS * layout.tail),
        }
    }

    /// Bytes of a matrix of `rows` x `cols` in panels.
    pub const fn matrix_bytes(&self, rows: usize, cols: usize) -> usize {
        rows.div_ceil(PANEL_ROWS) * self.panel_bytes(cols)
    }

    /// Repacks up to 16 file rows, `rows` holding them back to back, into one panel. This is the definition, used for rows
    /// beyond the matrix and for rare types; kernels do the same faster.
    ///
    /// # Panics
    /// If `rows` is not 1 to 16 whole rows or `panel` not exactly one panel.
    pub fn repack_panel(&self, rows: &[u8], cols: usize, panel: &mut [u8]) {
        let row_bytes = self.row_bytes(cols);
        assert_eq!(panel.len(), self.panel_bytes(cols));
        assert!(rows.len().is_multiple_of(row_bytes) && (1..=PANEL_ROWS).contains(&(rows.len() / row_bytes)));
        let layout = match &self.order {
            Order::Steps { interleave, .. } => return interleave(rows, cols, panel),
            Order::Blocks(layout) => layout,
        };
        let (bytes, n_rows) = (self.block_bytes(), rows.len() / row_bytes);
        let (body, tail) = self.panel_parts();
        let mut arranged = [[0; BLOCK_BYTES_MAX]; PANEL_ROWS];
        for row in &mut arranged[n_rows..] {
            (layout.arrange)(&[0; BLOCK_BYTES_MAX][..bytes], &mut row[..bytes]);
        }
        for (b, block) in panel.chunks_exact_mut(body + tail).enumerate() {
            let (body, tail) = block.split_at_mut(body);
            for (row, arranged) in rows.chunks_exact(row_bytes).zip(&mut arranged) {
                (layout.arrange)(&row[b * bytes..][..bytes], &mut arranged[..bytes]);
            }
            interleave::<WORD>(&arranged, 0, body);
            match layout.field {
                1 => interleave::<1>(&arranged, layout.body, tail),
                2 => interleave::<2>(&arranged, layout.body, tail),
                _ => interleave::<4>(&arranged, layout.body, tail),
            }
        }
    }

    /// Decodes one file row into f32.
    ///
    /// # Panics
    /// If the lengths do not belong together.
    pub fn decode_row(&self, row: &[u8], out: &mut [f32]) {
        assert_eq!(row.len(), self.row_bytes(out.len()));
        let blocks = row.chunks_exact(self.block_bytes());
        match &self.order {
            Order::Steps { decode, .. } => blocks.zip(out).for_each(|(number, x)| *x = decode(number)),
            Order::Blocks(layout) => {
                let out = out.chunks_exact_mut(self.block_len());
                blocks.zip(out).for_each(|(block, out)| (layout.decode)(block, out));
            }
        }
    }

    /// Decodes row `row` of a panel into f32: the look-up in a tied embedding.
    ///
    /// # Panics
    /// If the lengths do not belong together.
    pub fn decode_panel_row(&self, panel: &[u8], row: usize, out: &mut [f32]) {
        assert!(row < PANEL_ROWS);
        assert_eq!(panel.len(), self.panel_bytes(out.len()));
        let layout = match &self.order {
            Order::Steps { gather, decode, .. } => return gather(panel, row, out, *decode),
            Order::Blocks(layout) => layout,
        };
        let bytes = self.block_bytes();
        let (mut arranged, mut block) = ([0; BLOCK_BYTES_MAX], [0; BLOCK_BYTES_MAX]);
        let (body, tail) = self.panel_parts();
        for (both, out) in panel.chunks_exact(body + tail).zip(out.chunks_exact_mut(self.block_len())) {
            let (body, tail) = both.split_at(body);
            let (words, fields) = arranged[..bytes].split_at_mut(layout.body);
            gather(body, row, WORD, words);
            gather(tail, row, layout.field, fields);
            (layout.restore)(&arranged[..bytes], &mut block[..bytes]);
            (layout.decode)(&block[..bytes], out);
        }
    }

    /// A file block arranged for a panel, and restored from that: for tests of single formats.
    #[cfg(test)]
    pub(super) fn there_and_back(&self, block: &[u8]) -> Vec<u8> {
        let Order::Blocks(layout) = &self.order else { return block.to_vec() };
        let (mut arranged, mut back) = (vec![0xaa; block.len()], vec![0x55; block.len()]);
        (layout.arrange)(block, &mut arranged);
        (layout.restore)(&arranged, &mut back);
        back
    }
}

/// Moves pieces of `N` bytes of 16 arranged rows, from byte `from` on, side by side: piece `i` of row `r` goes to
/// `(i * 16 + r) * N`.
fn interleave<const N: usize>(rows: &[[u8; BLOCK_BYTES_MAX]; PANEL_ROWS], from: usize, out: &mut [u8]) {
    let pieces = out.as_chunks_mut::<N>().0.as_chunks_mut::<PANEL_ROWS>().0;
    for (i, pieces) in (from / N..BLOCK_BYTES_MAX / N).zip(pieces) {
        for (piece, row) in pieces.iter_mut().zip(rows) {
            *piece = row.as_chunks::<N>().0[i];
        }
    }
}

/// The inverse of [`interleave`] for one row.
fn gather(pieces: &[u8], row: usize, n: usize, out: &mut [u8]) {
    for (i, piece) in out.chunks_exact_mut(n).enumerate() {
        piece.copy_from_slice(&pieces[(i * PANEL_ROWS + row) * n..][..n]);
    }
}
