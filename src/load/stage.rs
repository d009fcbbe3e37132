//! Assembles a page in a buffer before the page exists, so that it is placed together with its contents and the kernel need
//! not clear it. What a reader lays down goes into the buffer for as long as it continues where the last piece ended; a full
//! page is handed over. The ends of a stretch share their pages with other writers: these pages are populated, and copied to.

use super::chunks::Piece;
use crate::error::Result;
use crate::kernels::Kernels;

/// Pages of the place that are not there yet and come with their contents.
pub trait FillPages: Sync {
    /// From here on each page has to be filled or populated before it is touched; whether that can be had.
    fn begin(&self) -> bool;
    /// Bytes of a page.
    fn page_bytes(&self) -> usize;
    /// Brings the page that `places` lie in, in their order, with the contents of `page`, which has zeros elsewhere.
    ///
    /// # Errors
    /// There is no page.
    fn fill(&self, places: &mut [&mut [u8]], page: &[u8]) -> Result<()>;
    /// Brings the pages below `bytes` that are not there yet.
    ///
    /// # Errors
    /// There is no page.
    fn populate(&self, bytes: &mut [u8]) -> Result<()>;
}

/// Bytes of the region between two tensors, at most: they are aligned to less.
const GAP_BYTES_MAX: usize = 4096;

/// A page, or two ends of neighbouring ones, on the way to its place.
pub struct Stage<'s, 'a> {
    filling: &'s dyn FillPages,
    /// A page and what goes beyond it.
    buffer: &'s mut [u8],
    /// What of the buffer is filled. It begins where a page does.
    begin: usize,
    end: usize,
    places: Vec<&'a mut [u8]>,
    /// Address after the last place.
    next: usize,
    filled_bytes: u64,
}

impl<'s, 'a> Stage<'s, 'a> {
    /// A stage of at least a page of `filling`.
    pub fn new(filling: &'s dyn FillPages, buffer: &'s mut [u8]) -> Stage<'s, 'a> {
        assert!(buffer.len() >= filling.page_bytes(), "a stage of {} bytes", buffer.len());
        Stage { filling, buffer, begin: 0, end: 0, places: Vec::new(), next: 0, filled_bytes: 0 }
    }

    /// Lays down a piece, sooner or later.
    ///
    /// # Errors
    /// No page for it.
    pub fn lay_down(&mut self, mut piece: Piece<'a>, kernels: &Kernels, bytes: &[u8]) -> Result<()> {
        let page_bytes = self.filling.page_bytes();
        let (address, len) = (piece.place.as_ptr().addr(), piece.place.len());
        let gap = address.wrapping_sub(self.next);
        if self.places.is_empty() || gap > GAP_BYTES_MAX || self.end + gap >= page_bytes {
            self.flush()?;
            (self.begin, self.end) = (address % page_bytes, address % page_bytes);
        } else {
            self.buffer[self.end..self.end + gap].fill(0);
            self.end += gap;
        }
        let Some(stage) = self.buffer.get_mut(self.end..self.end + len) else {
            // A unit of rows that is longer than there is room beyond a page.
            self.flush()?;
            self.filling.populate(piece.place)?;
            piece.lay_down(kernels, bytes, false);
            return Ok(());
        };
        piece.lay_down_at(stage, kernels, bytes, false);
        self.end += len;
        self.next = address + len;
        self.places.push(piece.place);
        while self.end >= page_bytes {
            self.turn()?;
        }
        Ok(())
    }

    /// Hands over the page that is full.
    fn turn(&mut self) -> Result<()> {
        let page_bytes = self.filling.page_bytes();
        let beyond = self.end - page_bytes;
        let mut rest = None;
        if let Some(last) = self.places.pop() {
            let within = last.len().saturating_sub(beyond);
            let (this, next) = last.split_at_mut(within);
            self.places.push(this);
            rest = Some(next).filter(|next| !next.is_empty());
        }
        match self.begin {
            0 => {
                self.filling.fill(&mut self.places, &self.buffer[..page_bytes])?;
                self.filled_bytes += page_bytes as u64;
            }
            _ => self.copy()?,
        }
        self.places.clear();
        self.places.extend(rest);
        self.buffer.copy_within(page_bytes..self.end, 0);
        (self.begin, self.end) = (0, beyond);
        Ok(())
    }

    /// Bytes of whole pages that were handed over.
    pub fn filled_bytes(&self) -> u64 {
        self.filled_bytes
    }

    /// Hands over what there is.
    ///
    /// # Errors
    /// No page for it.
    pub fn flush(&mut self) -> Result<()> {
        self.copy()?;
        self.places.clear();
        Ok(())
    }

    fn copy(&mut self) -> Result<()> {
        let page_bytes = self.filling.page_bytes();
        for place in &mut self.places {
            let at = place.as_ptr().addr() % page_bytes;
            self.filling.populate(place)?;
            place.copy_from_slice(&self.buffer[at..at + place.len()]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::chunks::{Chunk, Item, ItemForm, cut};
    use super::*;
    use crate::gguf::TensorInfo;
    use crate::kernels::available;
    use crate::quant::{TensorType, WeightType};
    use crate::sys::fill::Fill;
    use crate::sys::map::Mapping;
    use crate::sys::page_size::BASE_PAGE_BYTES as PAGE;

    /// Ordinary pages, which are filled as huge ones are.
    struct Small(Fill);

    impl FillPages for Small {
        fn begin(&self) -> bool {
            self.0.begin()
        }
        fn page_bytes(&self) -> usize {
            PAGE
        }
        fn fill(&self, places: &mut [&mut [u8]], page: &[u8]) -> Result<()> {
            Ok(self.0.fill(places, page)?)
        }
        fn populate(&self, bytes: &mut [u8]) -> Result<()> {
            Ok(self.0.populate(bytes)?)
        }
    }

    /// Bytes of a chunk at most.
    const CHUNK: usize = 3 * PAGE;

    /// An F32 matrix: columns, rows, and bytes that are left free before it.
    type Matrix = (u64, u64, usize);

    fn bytes_of((cols, rows, _): &Matrix) -> usize {
        WeightType::F32.matrix_bytes(*rows as usize, *cols as usize)
    }

    /// One file after the other, one place after the other.
    fn infos(matrices: &[Matrix]) -> Vec<TensorInfo> {
        let mut offset = 0;
        let info = |&(cols, rows, _): &Matrix| {
            let (dims, bytes) = ([cols, rows, 1, 1], cols * rows * 4);
            offset += bytes;
            let name = heapless::String::new();
            TensorInfo { name, dims, n_dims: 2, ty: TensorType::F32, offset: offset - bytes, bytes, file: 0 }
        };
        matrices.iter().map(info).collect()
    }

    fn chunks<'a>(matrices: &[Matrix], infos: &'a [TensorInfo], region: &'a mut [u8]) -> Vec<Chunk<'a>> {
        let (mut rest, mut items) = (region, Vec::new());
        for (matrix, tensor) in matrices.iter().zip(infos) {
            let (place, tail) = rest[matrix.2..].split_at_mut(bytes_of(matrix));
            rest = tail;
            let (rows, form) = (0..tensor.rows() as usize, ItemForm::Panels(WeightType::F32));
            items.push(Item { tensor, rows, form, place });
        }
        cut(items, CHUNK, None)
    }

    /// Every piece through a stage of `room` bytes, a new one for every `run` chunks, and then piece by piece.
    fn check(matrices: &[Matrix], room: usize, run: usize) {
        let (infos, kernels) = (infos(matrices), available().last().unwrap());
        let len = matrices.iter().map(|matrix| matrix.2 + bytes_of(matrix)).sum::<usize>();
        let file: Vec<u8> =
            (0..infos.iter().map(|info| info.bytes).sum::<u64>()).map(|i| (i % 251) as u8 + 1).collect();
        let bytes = |piece: &Piece<'_>| &file[piece.offset as usize..][..piece.file_bytes];

        let mut mapping = Mapping::ordinary(len.next_multiple_of(PAGE)).unwrap();
        mapping.advise_small();
        let fill = Fill::of(mapping.bytes_mut(), PAGE).map(Small);
        let Some(filling) = fill.filter(Small::begin) else {
            return eprintln!("SKIPPED: no userfaultfd");
        };
        // Out of order, as threads are.
        let mut all: Vec<_> = chunks(matrices, &infos, &mut mapping.bytes_mut()[..len]);
        let mut runs = Vec::new();
        while !all.is_empty() {
            runs.push(all.split_off(all.len().saturating_sub(run)));
        }
        for run in runs {
            let mut buffer = vec![0xee; room];
            let mut stage = Stage::new(&filling, &mut buffer);
            for piece in run.into_iter().flat_map(|chunk| chunk.pieces) {
                let bytes = bytes(&piece);
                stage.lay_down(piece, kernels, bytes).unwrap();
            }
            stage.flush().unwrap();
        }
        drop(filling);

        let mut want = Mapping::ordinary(len.next_multiple_of(PAGE)).unwrap();
        for mut piece in
            chunks(matrices, &infos, &mut want.bytes_mut()[..len]).into_iter().flat_map(|chunk| chunk.pieces)
        {
            let bytes = bytes(&piece);
            piece.lay_down(kernels, bytes, false);
        }
        assert!(want.bytes().iter().filter(|&&byte| byte != 0).count() >= file.len());
        assert!(mapping.bytes() == want.bytes(), "{matrices:?}, {room} bytes of stage, {run} chunks to a run");
    }

    #[test]
    fn pages_hold_what_was_laid_down() {
        // Units of 1 KiB that fill pages; some that do not; gaps, small and large; rows longer than the room of a stage.
        let plain: &[Matrix] = &[(16, 1600, 0)];
        let odd: &[Matrix] = &[(4, 30, 64), (20, 500, 0), (12, 16, 32), (36, 170, 128), (4, 1, 8192), (28, 333, 64)];
        let long: &[Matrix] = &[(8, 100, 0), (160, 48, 0), (8, 100, 0)];
        for matrices in [plain, odd, long] {
            for room in [PAGE + 16 * 20 * 4, 2 * PAGE, 5 * PAGE] {
                for run in [1, 3, 100] {
                    check(matrices, room, run);
                }
            }
        }
    }
}
