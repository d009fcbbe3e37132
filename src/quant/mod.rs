//! Block layouts of the weight types: one file per family, with the file's layout, the scalar decode that
//! defines its meaning, and the repacked panel layout that every kernel reads.
//!
//! # Panels
//! A weight matrix `[rows, cols]` is stored as panels of [`PANEL_ROWS`] rows. Inside a panel the columns run
//! in steps; each step holds the same few columns of all 16 rows side by side, so that one vector load feeds
//! 16 row sums and no horizontal add is ever needed:
//! - integer types: units of 64 bytes = 16 rows x 4 bytes (`vpdpbusd` order); the bodies of all blocks back to
//!   back, whole cache lines each, then their tails: the f16 scales;
//! - F32 and F16: 16 rows x 1 column;
//! - BF16: 16 rows x 2 columns (`vdpbf16ps` order).
//!
//! A panel takes the bytes its 16 rows take in the file, in whole cache lines. Rows beyond the matrix decode to zero.

mod float;
mod k_quants;
mod legacy;
pub mod types;

pub use types::TensorType;

/// Rows of a panel: the f32 lanes of one 512-bit vector, or of two 256-bit ones.
pub const PANEL_ROWS: usize = 16;

/// Columns that share one int8 activation scale, or eight: the unit in which integer kernels walk a row.
pub const GROUP: usize = 32;

/// Bytes of a unit: the same four bytes of every row of a panel.
pub const UNIT: usize = 4 * PANEL_ROWS;

/// Columns of a super-block of the k-quants.
pub const SUPER: usize = 256;

/// Largest block of any weight type, in bytes (one row).
const BLOCK_BYTES_MAX: usize = 256;

/// The weight types that have kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum WeightType {
    /// 32-bit float.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    BF16,
    /// 8-bit, one f16 scale per 32.
    Q8_0,
    /// 4-bit, one f16 scale per 32, offset 8.
    Q4_0,
    /// 4-bit, super-blocks of 256 with 6-bit scales and minima per 32.
    Q4K,
    /// 6-bit, super-blocks of 256 with 8-bit scales per 16, offset 32.
    Q6K,
}

impl WeightType {
    /// Every weight type, in the order of the kernel tables.
    pub const ALL: [WeightType; 7] = [
        WeightType::F32,
        WeightType::F16,
        WeightType::BF16,
        WeightType::Q8_0,
        WeightType::Q4_0,
        WeightType::Q4K,
        WeightType::Q6K,
    ];

    /// The weight type of a GGUF tensor type; `None` if it has no kernels here.
    pub fn of(ty: TensorType) -> Option<Self> {
        Some(match ty {
            TensorType::F32 => WeightType::F32,
            TensorType::F16 => WeightType::F16,
            TensorType::BF16 => WeightType::BF16,
            TensorType::Q8_0 => WeightType::Q8_0,
            TensorType::Q4_0 => WeightType::Q4_0,
            TensorType::Q4_K => WeightType::Q4K,
            TensorType::Q6_K => WeightType::Q6K,
            _ => return None,
        })
    }

    /// The name in GGUF tools, e.g. `Q4_K`.
    pub const fn name(self) -> &'static str {
        match self {
            WeightType::F32 => "F32",
            WeightType::F16 => "F16",
            WeightType::BF16 => "BF16",
            WeightType::Q8_0 => "Q8_0",
            WeightType::Q4_0 => "Q4_0",
            WeightType::Q4K => "Q4_K",
            WeightType::Q6K => "Q6_K",
        }
    }

    /// The name inside kernel names, e.g. `q4k`.
    pub const fn short(self) -> &'static str {
        match self {
            WeightType::F32 => "f32",
            WeightType::F16 => "f16",
            WeightType::BF16 => "bf16",
            WeightType::Q8_0 => "q8_0",
            WeightType::Q4_0 => "q4_0",
            WeightType::Q4K => "q4k",
            WeightType::Q6K => "q6k",
        }
    }

    /// Elements of a block.
    pub const fn block_len(self) -> usize {
        match self {
            WeightType::F32 | WeightType::F16 | WeightType::BF16 => 1,
            WeightType::Q8_0 | WeightType::Q4_0 => GROUP,
            WeightType::Q4K | WeightType::Q6K => SUPER,
        }
    }

    /// Bytes of a block of one row.
    pub const fn block_bytes(self) -> usize {
        match self {
            WeightType::F32 => 4,
            WeightType::F16 | WeightType::BF16 => 2,
            WeightType::Q8_0 => legacy::Q8_0_BYTES,
            WeightType::Q4_0 => legacy::Q4_0_BYTES,
            WeightType::Q4K => k_quants::Q4K_BYTES,
            WeightType::Q6K => k_quants::Q6K_BYTES,
        }
    }

    /// Bytes of one row of `cols` elements in the file.
    ///
    /// # Panics
    /// If `cols` is no multiple of the block.
    pub const fn row_bytes(self, cols: usize) -> usize {
        assert!(cols.is_multiple_of(self.block_len()));
        cols / self.block_len() * self.block_bytes()
    }

    /// Bytes of one panel of `cols` columns: whole cache lines.
    pub const fn panel_bytes(self, cols: usize) -> usize {
        let cols = if matches!(self, WeightType::BF16) { cols.next_multiple_of(2) } else { cols };
        (PANEL_ROWS * self.row_bytes(cols)).next_multiple_of(64)
    }

    /// Bytes of the body and of the tail of a panel block.
    pub const fn panel_parts(self) -> (usize, usize) {
        match self {
            WeightType::F32 | WeightType::F16 | WeightType::BF16 => (PANEL_ROWS * self.block_bytes(), 0),
            WeightType::Q8_0 => (legacy::Q8_0_BODY, legacy::TAIL),
            WeightType::Q4_0 => (legacy::Q4_0_BODY, legacy::TAIL),
            WeightType::Q4K => (k_quants::Q4K_BODY, k_quants::Q4K_TAIL),
            WeightType::Q6K => (k_quants::Q6K_BODY, k_quants::Q6K_TAIL),
        }
    }

    /// Bytes of a matrix of `rows` x `cols` in panels.
    pub const fn matrix_bytes(self, rows: usize, cols: usize) -> usize {
        rows.div_ceil(PANEL_ROWS) * self.panel_bytes(cols)
    }

    /// Repacks up to 16 file rows, `rows` holding them back to back, into one panel.
    ///
    /// # Panics
    /// If `rows` is not 1 to 16 whole rows or `panel` not exactly one panel.
    pub fn repack_panel(self, rows: &[u8], cols: usize, panel: &mut [u8]) {
        let row_bytes = self.row_bytes(cols);
        assert_eq!(panel.len(), self.panel_bytes(cols));
        assert!(rows.len().is_multiple_of(row_bytes) && (1..=PANEL_ROWS).contains(&(rows.len() / row_bytes)));
        match self {
            WeightType::F32 => float::interleave::<4>(rows, cols, 1, panel),
            WeightType::F16 => float::interleave::<2>(rows, cols, 1, panel),
            WeightType::BF16 => float::interleave::<2>(rows, cols, 2, panel),
            _ => {
                let (bytes, n_rows) = (self.block_bytes(), rows.len() / row_bytes);
                const ZEROS: [u8; BLOCK_BYTES_MAX] = [0; BLOCK_BYTES_MAX];
                let (body, tail) = self.panel_parts();
                let (bodies, tails) = panel.split_at_mut(cols / self.block_len() * body);
                let parts = bodies.chunks_exact_mut(body).zip(tails.chunks_exact_mut(tail));
                for (b, (body, tail)) in parts.enumerate() {
                    let blocks: [&[u8]; PANEL_ROWS] = std::array::from_fn(|r| match r < n_rows {
                        true => &rows[r * row_bytes + b * bytes..][..bytes],
                        false => &ZEROS[..bytes],
                    });
                    match self {
                        WeightType::Q8_0 => legacy::repack_q8_0(&blocks, body, tail),
                        WeightType::Q4_0 => legacy::repack_q4_0(&blocks, body, tail),
                        WeightType::Q4K => k_quants::repack_q4k(&blocks, body, tail),
                        _ => k_quants::repack_q6k(&blocks, body, tail),
                    }
                }
            }
        }
    }

    /// Decodes one file row into f32.
    ///
    /// # Panics
    /// If the lengths do not belong together.
    pub fn decode_row(self, row: &[u8], out: &mut [f32]) {
        assert_eq!(row.len(), self.row_bytes(out.len()));
        let blocks = row.chunks_exact(self.block_bytes()).zip(out.chunks_exact_mut(self.block_len()));
        for (block, out) in blocks {
            self.decode_block(block, out);
        }
    }

    /// Decodes row `row` of a panel into f32: the look-up in a tied embedding.
    ///
    /// # Panics
    /// If the lengths do not belong together.
    pub fn decode_panel_row(self, panel: &[u8], row: usize, out: &mut [f32]) {
        assert!(row < PANEL_ROWS);
        assert_eq!(panel.len(), self.panel_bytes(out.len()));
        match self {
            WeightType::F32 => float::gather::<4>(panel, row, 1, out, self),
            WeightType::F16 => float::gather::<2>(panel, row, 1, out, self),
            WeightType::BF16 => float::gather::<2>(panel, row, 2, out, self),
            _ => {
                let bytes = self.block_bytes();
                let mut block = [0u8; BLOCK_BYTES_MAX];
                let (body, tail) = self.panel_parts();
                let (bodies, tails) = panel.split_at(out.len() / self.block_len() * body);
                let parts = bodies.chunks_exact(body).zip(tails.chunks_exact(tail));
                for ((body, tail), out) in parts.zip(out.chunks_exact_mut(self.block_len())) {
                    match self {
                        WeightType::Q8_0 => legacy::unpack_q8_0(body, tail, row, &mut block),
                        WeightType::Q4_0 => legacy::unpack_q4_0(body, tail, row, &mut block),
                        WeightType::Q4K => k_quants::unpack_q4k(body, tail, row, &mut block),
                        _ => k_quants::unpack_q6k(body, tail, row, &mut block),
                    }
                    self.decode_block(&block[..bytes], out);
                }
            }
        }
    }

    fn decode_block(self, block: &[u8], out: &mut [f32]) {
        match self {
            WeightType::F32 | WeightType::F16 | WeightType::BF16 => out[0] = float::decode(self, block),
            WeightType::Q8_0 => legacy::decode_q8_0(block, out),
            WeightType::Q4_0 => legacy::decode_q4_0(block, out),
            WeightType::Q4K => k_quants::decode_q4k(block, out),
            WeightType::Q6K => k_quants::decode_q6k(block, out),
        }
    }
}

/// Reads a little-endian f16 at `at`.
fn f16_at(bytes: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Moves the 4-byte units of 16 rows into vector order: unit `u` of row `r` goes to `(u * 16 + r) * 4`.
fn interleave_units(rows: &[&[u8]; PANEL_ROWS], from: usize, units: usize, out: &mut [u8]) {
    for (u, step) in out[..units * 64].chunks_exact_mut(64).enumerate() {
        for (r, unit) in step.chunks_exact_mut(4).enumerate() {
            unit.copy_from_slice(&rows[r][from + u * 4..][..4]);
        }
    }
}

/// The inverse of [`interleave_units`] for one row.
fn gather_units(packed: &[u8], row: usize, out: &mut [u8]) {
    for (u, unit) in out.chunks_exact_mut(4).enumerate() {
        unit.copy_from_slice(&packed[(u * PANEL_ROWS + row) * 4..][..4]);
    }
}

#[cfg(test)]
mod tests;
