//! Reads tensors straight into their final places, repacking on the way: file -> worker's buffer -> page. No second
//! copy of the weights ever exists.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::header::ModelFiles;
use crate::bytes;
use crate::error::{Error, Result};
use crate::gguf::TensorInfo;
use crate::kernels::{Grid, Team};
use crate::quant::PANEL_ROWS;

/// Bytes a worker asks for at a time: large enough to keep a disk busy, small enough to stay in L2 until repacked.
const CHUNK_BYTES: usize = 1 << 20;

/// One tensor, or some of its rows, on the way to its place.
pub struct Item<'a> {
    /// Where it comes from.
    pub tensor: &'a TensorInfo,
    /// Which of its rows.
    pub rows: Range<usize>,
    /// How it is laid down: into panels, row by row as it is, or as one f32 vector.
    pub form: ItemForm,
    /// Its place, exactly.
    pub place: &'a mut [u8],
}

/// How an [`Item`] is laid down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemForm {
    /// Panels of 16 rows of the weight type.
    Panels(crate::quant::WeightType),
    /// The file's bytes.
    Bytes,
    /// Decoded to f32.
    Vector(crate::quant::WeightType),
}

/// Bytes of buffer each worker needs, given the longest row of any tensor.
pub const fn buffer_bytes(row_bytes_max: usize) -> usize {
    let panel = PANEL_ROWS * row_bytes_max;
    if panel > CHUNK_BYTES { panel } else { CHUNK_BYTES }
}

/// Loads all items with all workers of `team`; `done` counts the bytes read, for a progress bar.
///
/// # Errors
/// The first failed read, naming file and offset.
pub fn load(
    files: &ModelFiles,
    items: Vec<Item<'_>>,
    team: &dyn Team,
    buffers: &mut [u8],
    done: &AtomicU64,
) -> Result<()> {
    let each = buffers.len() / team.size();
    let buffers: Vec<Mutex<&mut [u8]>> = buffers.chunks_exact_mut(each).map(Mutex::new).collect();
    let failure: Mutex<Option<Error>> = Mutex::new(None);
    let failed = AtomicBool::new(false);
    for item in items {
        let Item { tensor, rows, form, place } = item;
        let cols = tensor.cols() as usize;
        let first = tensor.row_bytes() * rows.start as u64;
        let n_rows_bytes = tensor.row_bytes() * rows.len() as u64;
        // A unit is what is laid down at once, `in_bytes` of the file becoming `out_bytes` of the place.
        let (in_bytes, out_bytes) = match form {
            ItemForm::Panels(ty) => (PANEL_ROWS * ty.row_bytes(cols), ty.panel_bytes(cols)),
            ItemForm::Bytes => (place.len() / rows.len(), place.len() / rows.len()),
            ItemForm::Vector(ty) => (ty.row_bytes(cols), cols * 4),
        };
        let units = place.len() / out_bytes;
        let at_once = (each / in_bytes).clamp(1, (units / team.size()).max(1));
        let grid = Grid::new(place, (1, units * out_bytes, units * out_bytes), (1, at_once * out_bytes));
        team.run(&|worker| {
            let Ok(mut buffer) = buffers[worker].lock() else { return };
            while let Some(mut block) = grid.next() {
                if failed.load(Ordering::Relaxed) {
                    return;
                }
                let from = (block.col0 / out_bytes * in_bytes) as u64;
                let n_bytes = (n_rows_bytes - from).min((block.cols / out_bytes * in_bytes) as u64) as usize;
                let offset = tensor.offset + first + from;
                let out = block.row(0);
                let result = match form {
                    ItemForm::Bytes => files.read_at(tensor.file, offset, &mut out[..n_bytes]),
                    _ => files.read_at(tensor.file, offset, &mut buffer[..n_bytes]),
                };
                if let Err(error) = result {
                    failed.store(true, Ordering::Relaxed);
                    if let Ok(mut failure) = failure.lock() {
                        failure.get_or_insert(error);
                    }
                    return;
                }
                match form {
                    ItemForm::Bytes => {}
                    ItemForm::Vector(ty) => ty.decode_row(&buffer[..n_bytes], bytes::cast_mut(out)),
                    ItemForm::Panels(ty) => {
                        for (rows, panel) in buffer[..n_bytes].chunks(in_bytes).zip(out.chunks_exact_mut(out_bytes)) {
                            ty.repack_panel(rows, cols, panel);
                        }
                    }
                }
                done.fetch_add(n_bytes as u64, Ordering::Relaxed);
            }
        });
    }
    match failure.into_inner() {
        Ok(Some(error)) => Err(error),
        _ => Ok(()),
    }
}
