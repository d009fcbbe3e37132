//! Cuts what is to be loaded into stretches of the files: long enough to keep a disk busy, in the order of the files, each
//! with the places that its bytes go to. No I/O.

use std::ops::Range;

use crate::bytes;
use crate::gguf::TensorInfo;
use crate::kernels::Kernels;
use crate::quant::{PANEL_ROWS, WeightType};
use crate::sys::page_size::HugeSize;

/// Bytes of a stretch at most: a huge page, what is left of the one before, and a unit of 16 long rows.
pub const CHUNK_BYTES: usize = PAGE_BYTES + TURN_BYTES + (256 << 10);

/// Stretches end where a page of this size is full, so that no two threads wait for the same page to be cleared.
const PAGE_BYTES: usize = HugeSize::M2.bytes();

/// But not before they have this many bytes.
const TURN_BYTES: usize = 256 << 10;

/// Bytes that are copied from the page cache and repacked at a time: they stay in L2 in between.
pub const STEP_BYTES: usize = 512 << 10;

/// Bytes of no use that are read along rather than begin another stretch.
const GAP_BYTES_MAX: u64 = 64 << 10;

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
    Panels(WeightType),
    /// The file's bytes.
    Bytes,
    /// Decoded to f32.
    Vector(WeightType),
}

impl ItemForm {
    /// Bytes of the file that are laid down at once, and bytes of the place that they become.
    fn unit_bytes(self, cols: usize, row_bytes: usize) -> (usize, usize) {
        match self {
            ItemForm::Panels(ty) => (PANEL_ROWS * row_bytes, ty.panel_bytes(cols)),
            ItemForm::Bytes => (row_bytes, row_bytes),
            ItemForm::Vector(_) => (row_bytes, cols * 4),
        }
    }
}

/// Whole units of one item, one after another in the file and in their place.
pub struct Piece<'a> {
    /// First byte in the file.
    pub offset: u64,
    /// Bytes in the file; the last unit of a matrix may be short.
    pub file_bytes: usize,
    unit_bytes: (usize, usize),
    cols: usize,
    form: ItemForm,
    /// Where it goes.
    pub place: &'a mut [u8],
}

impl<'a> Piece<'a> {
    /// Cuts off what comes after the first `bytes`, or after the first unit if that is longer.
    pub fn split_off(&mut self, bytes: usize) -> Option<Piece<'a>> {
        let units = (bytes / self.unit_bytes.0).max(1);
        let taken = units * self.unit_bytes.0;
        if taken >= self.file_bytes {
            return None;
        }
        let (place, rest) = std::mem::take(&mut self.place).split_at_mut(units * self.unit_bytes.1);
        self.place = place;
        let (offset, file_bytes) = (self.offset + taken as u64, self.file_bytes - taken);
        self.file_bytes = taken;
        Some(Piece { offset, file_bytes, place: rest, ..*self })
    }

    /// Which bytes of the file it is made of.
    pub fn bytes(&self) -> Range<u64> {
        self.offset..self.offset + self.file_bytes as u64
    }

    /// Lays down the bytes of the file; `far` if they have not been through a cache yet.
    pub fn lay_down(&mut self, kernels: &Kernels, from: &[u8], far: bool) {
        let place = std::mem::take(&mut self.place);
        self.lay_down_at(place, kernels, from, far);
        self.place = place;
    }

    /// The same somewhere else, with as much room.
    pub fn lay_down_at(&self, place: &mut [u8], kernels: &Kernels, from: &[u8], far: bool) {
        let (in_bytes, out_bytes) = self.unit_bytes;
        match self.form {
            ItemForm::Bytes => place.copy_from_slice(from),
            ItemForm::Vector(ty) => ty.decode_row(from, bytes::cast_mut(place)),
            ItemForm::Panels(ty) => {
                let next = from.chunks(in_bytes).skip(1).map(|next| if far { next } else { &[] });
                let panels = place.chunks_exact_mut(out_bytes);
                for ((rows, panel), next) in from.chunks(in_bytes).zip(panels).zip(next.chain([&[][..]])) {
                    kernels.repack(ty, (rows, next), self.cols, panel);
                }
            }
        }
    }
}

/// A stretch of one file and what is in it.
pub struct Chunk<'a> {
    /// The file, as [`TensorInfo::file`].
    pub file: u16,
    /// Which bytes of it.
    pub bytes: Range<u64>,
    /// What is in it, in the order of the file.
    pub pieces: Vec<Piece<'a>>,
}

impl Chunk<'_> {
    /// How many bytes it has.
    pub fn len(&self) -> usize {
        // A chunk fits a buffer.
        (self.bytes.end - self.bytes.start) as usize
    }

    /// Never: a chunk has at least one byte.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// Bytes of a chunk at most, given the longest row of any tensor and how much there is to share among `readers`.
pub fn chunk_bytes(row_bytes_max: usize, total_bytes: u64, readers: usize) -> usize {
    let share = usize::try_from(total_bytes).unwrap_or(usize::MAX).div_ceil(readers);
    share.min(CHUNK_BYTES).max(PANEL_ROWS * row_bytes_max)
}

/// Cuts `items` into chunks of at most `limit_bytes`. With `whole`, the sizes of the files, chunks cover every byte of every
/// file, so that the files can be hashed on the way.
///
/// # Panics
/// If a unit of 16 rows is longer than a chunk.
pub fn cut<'a>(mut items: Vec<Item<'a>>, limit_bytes: usize, whole: Option<&[u64]>) -> Vec<Chunk<'a>> {
    items.sort_unstable_by_key(|item| (item.tensor.file, item.tensor.offset, item.rows.start));
    let mut cutter = Cutter { chunks: Vec::new(), open: None, limit: limit_bytes as u64, whole };
    if whole.is_some() {
        cutter.begin_file(0);
    }
    for Item { tensor, rows, form, place } in items {
        let (cols, row_bytes) = (tensor.cols() as usize, tensor.row_bytes() as usize);
        let unit_bytes = form.unit_bytes(cols, row_bytes);
        assert!(unit_bytes.0 <= limit_bytes, "a unit of {} bytes exceeds a chunk", unit_bytes.0);
        let mut offset = tensor.offset + (row_bytes * rows.start) as u64;
        let mut file_bytes = row_bytes * rows.len();
        let mut rest = place;
        while file_bytes > 0 {
            let room = cutter.room(tensor.file, offset, unit_bytes.0.min(file_bytes));
            let page_units = (PAGE_BYTES - rest.as_ptr().addr() % PAGE_BYTES).div_ceil(unit_bytes.1);
            let units = (room / unit_bytes.0).clamp(1, page_units);
            let taken = file_bytes.min(units * unit_bytes.0);
            let (place, tail) = rest.split_at_mut(taken.div_ceil(unit_bytes.0) * unit_bytes.1);
            rest = tail;
            cutter.push(Piece { offset, file_bytes: taken, unit_bytes, cols, form, place });
            if units == page_units {
                cutter.page_is_full();
            }
            offset += taken as u64;
            file_bytes -= taken;
        }
        assert!(rest.is_empty(), "the place is as long as the item");
    }
    cutter.finish()
}

struct Cutter<'a, 'w> {
    chunks: Vec<Chunk<'a>>,
    open: Option<Chunk<'a>>,
    limit: u64,
    whole: Option<&'w [u64]>,
}

impl<'a> Cutter<'a, '_> {
    fn begin_file(&mut self, file: u16) {
        self.open = Some(Chunk { file, bytes: 0..0, pieces: Vec::new() });
    }

    /// Closes the open chunk and begins the next where it ends, or at `at` if gaps need not be covered.
    fn turn(&mut self, at: u64) {
        if let Some(chunk) = self.open.take() {
            let next = if self.whole.is_some() { chunk.bytes.end } else { at };
            self.open = Some(Chunk { file: chunk.file, bytes: next..next, pieces: Vec::new() });
            if !chunk.is_empty() {
                self.chunks.push(chunk);
            }
        }
    }

    /// Covers the bytes of the open file up to `to`, in chunks without pieces where they are many.
    fn cover(&mut self, to: u64) {
        while let Some(open) = self.open.as_mut() {
            open.bytes.end = to.min(open.bytes.start + self.limit).max(open.bytes.end);
            if open.bytes.end >= to {
                return;
            }
            self.turn(to);
        }
    }

    /// Opens the chunk that a unit at `offset` goes to and returns how many bytes it has room for from there on.
    fn room(&mut self, file: u16, offset: u64, unit_bytes: usize) -> usize {
        while self.open.as_ref().is_some_and(|open| open.file != file) {
            let next = self.open.as_ref().map_or(file, |open| open.file + 1);
            self.end_file();
            if self.whole.is_some() { self.begin_file(next) } else { self.open = None }
        }
        if self.open.is_none() {
            self.open = Some(Chunk { file, bytes: offset..offset, pieces: Vec::new() });
        }
        let end_of = |open: &Option<Chunk<'_>>| open.as_ref().map_or(offset, |open| open.bytes.end);
        match self.whole {
            Some(_) => self.cover(offset),
            None if offset - end_of(&self.open) > GAP_BYTES_MAX => self.turn(offset),
            None => {}
        }
        let start = self.open.as_ref().map_or(offset, |open| open.bytes.start);
        if offset + unit_bytes as u64 > start + self.limit {
            self.turn(offset);
        }
        let start = self.open.as_ref().map_or(offset, |open| open.bytes.start);
        // At most the limit, which is a usize.
        (start + self.limit).saturating_sub(offset) as usize
    }

    fn push(&mut self, piece: Piece<'a>) {
        if let Some(open) = self.open.as_mut() {
            open.bytes.end = piece.offset + piece.file_bytes as u64;
            open.pieces.push(piece);
        }
    }

    /// Ends the open chunk with the page that has been filled, unless it is short.
    fn page_is_full(&mut self) {
        if let Some(open) = self.open.as_ref().filter(|open| open.len() >= TURN_BYTES) {
            self.turn(open.bytes.end);
        }
    }

    fn end_file(&mut self) {
        if let (Some(sizes), Some(file)) = (self.whole, self.open.as_ref().map(|open| open.file)) {
            self.cover(sizes[usize::from(file)]);
        }
        if let Some(chunk) = self.open.take().filter(|chunk| !chunk.is_empty()) {
            self.chunks.push(chunk);
        }
    }

    fn finish(mut self) -> Vec<Chunk<'a>> {
        self.end_file();
        if let Some(sizes) = self.whole {
            let last = self.chunks.last().map_or(0, |chunk| usize::from(chunk.file));
            for file in last + 1..sizes.len() {
                // As many files as a set may have: far below u16::MAX.
                self.begin_file(file as u16);
                self.end_file();
            }
        }
        self.chunks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::TensorType;

    fn tensor(file: u16, offset: u64, cols: u64, rows: u64) -> TensorInfo {
        let (dims, bytes) = ([cols, rows, 1, 1], cols * rows * 4);
        TensorInfo { name: heapless::String::new(), dims, n_dims: 2, ty: TensorType::F32, offset, bytes, file }
    }

    /// Cuts F32 matrices `(file, offset, cols, rows)` and returns `(file, from, to, pieces)` of every chunk.
    fn ranges(shapes: &[(u16, u64, u64, u64)], limit: usize, whole: Option<&[u64]>) -> Vec<(u16, u64, u64, usize)> {
        let tensors: Vec<TensorInfo> = shapes.iter().map(|&(f, o, c, r)| tensor(f, o, c, r)).collect();
        let mut places: Vec<Vec<u8>> = tensors
            .iter()
            .map(|t| vec![0; WeightType::F32.matrix_bytes(t.rows() as usize, t.cols() as usize)])
            .collect();
        let items = tensors.iter().zip(&mut places).map(|(tensor, place)| Item {
            tensor,
            rows: 0..tensor.rows() as usize,
            form: ItemForm::Panels(WeightType::F32),
            place,
        });
        let chunks = cut(items.collect(), limit, whole);
        for chunk in &chunks {
            assert!(chunk.len() <= limit && !chunk.is_empty());
            let mut at = chunk.bytes.start;
            for piece in &chunk.pieces {
                assert!(piece.offset >= at, "pieces are in order and do not overlap");
                at = piece.offset + piece.file_bytes as u64;
            }
            assert!(at <= chunk.bytes.end);
        }
        let file_bytes: usize = chunks.iter().flat_map(|c| &c.pieces).map(|p| p.file_bytes).sum();
        assert_eq!(file_bytes as u64, tensors.iter().map(|t| t.bytes).sum::<u64>(), "every byte exactly once");
        chunks.iter().map(|c| (c.file, c.bytes.start, c.bytes.end, c.pieces.len())).collect()
    }

    #[test]
    fn small_tensors_share_a_chunk_and_large_ones_are_cut_between_units() {
        // A unit of 4 columns is 256 bytes.
        assert_eq!(ranges(&[(0, 1000, 4, 16), (0, 1256, 4, 3)], 1024, None), [(0, 1000, 1304, 2)]);
        let want = [(0, 64, 1088, 1), (0, 1088, 2112, 1), (0, 2112, 2128, 1)];
        assert_eq!(ranges(&[(0, 64, 4, 129)], 1030, None), want);
        let far = [(0, 0, 4, 16), (0, 1 << 20, 4, 16), (1, 32, 4, 1)];
        let want = [(0, 0, 256, 1), (0, 1 << 20, (1 << 20) + 256, 1), (1, 32, 48, 1)];
        assert_eq!(ranges(&far, 1 << 16, None), want);
        assert_eq!(ranges(&[], 100, None), []);
    }

    #[test]
    fn a_whole_file_is_covered_without_a_gap() {
        for shapes in [
            &[(0, 500, 4, 17), (0, 3000, 4, 16), (2, 10, 4, 1)][..],
            &[(1, 0, 4, 40)][..],
            &[(0, 2, 4, 16), (0, 258, 4, 16), (0, 514, 4, 16)][..],
            &[][..],
        ] {
            let sizes = [7000, 4001, 555, 1];
            let found = ranges(shapes, 300, Some(&sizes));
            let mut next = (0, 0);
            for (file, from, to, _) in found {
                assert_eq!((file, from), next, "{shapes:?}");
                next = if to == sizes[usize::from(file)] { (file + 1, 0) } else { (file, to) };
            }
            assert_eq!(next, (4, 0), "{shapes:?}");
        }
    }

    #[test]
    fn chunks_are_no_larger_than_there_is_work() {
        assert_eq!(chunk_bytes(100, 1 << 40, 8), CHUNK_BYTES);
        assert_eq!(chunk_bytes(100, 80_000, 8), 10_000);
        assert_eq!(chunk_bytes(1 << 20, 80_000, 8), 16 << 20);
        assert_eq!(chunk_bytes(100, 0, 8), 1600);
    }
}
