//! The tables a model's headers are read into: fixed capacities, built in place, filled through `&mut`.

use std::cmp::Ordering;

use heapless::Vec;

use super::error::GgufError;
use super::metadata::{Entry, Metadata};
use crate::quant::TensorType;

/// Metadata keys of one file. Models have 20 to 70; per-layer values are arrays, so the count does not grow with size.
pub const MAX_METADATA: usize = 512;

/// Tensors of one model, all files together. The largest known have about 1,200 (61 layers of 19, or 94 of 12); older
/// conversions with one tensor per expert reach 3,000.
pub const MAX_TENSORS: usize = 4096;

/// Files of a split set. At the usual 50 GB per file, and even at 2 GB, this is beyond any memory brim is built for.
pub const MAX_SPLITS: usize = 256;

// Tensor and file indices are kept as u16.
const _: () = assert!(MAX_TENSORS <= u16::MAX as usize);
const _: () = assert!(MAX_SPLITS <= u16::MAX as usize);

/// One tensor: what it is and where it lies.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Its name; GGUF allows 64 bytes.
    pub name: heapless::String<64>,
    /// Sizes, fastest first: `dims[0]` elements to a row. Unused dimensions are 1.
    pub dims: [u64; 4],
    /// How many dimensions the file gives.
    pub n_dims: u32,
    /// Type of its elements.
    pub ty: TensorType,
    /// First byte, counted from the start of its file.
    pub offset: u64,
    /// Bytes it occupies.
    pub bytes: u64,
    /// Which file of the set it is in, from 0.
    pub file: u16,
}

impl TensorInfo {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Elements of one row.
    pub fn cols(&self) -> u64 {
        self.dims[0]
    }

    /// Rows, all higher dimensions multiplied: of a stack of experts, the rows of all experts.
    pub fn rows(&self) -> u64 {
        self.dims[1] * self.dims[2] * self.dims[3]
    }

    /// All elements.
    pub fn n_elements(&self) -> u64 {
        self.cols() * self.rows()
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> u64 {
        self.bytes / self.rows()
    }

    /// The dimensions the file gives.
    pub fn shape(&self) -> &[u64] {
        &self.dims[..self.n_dims as usize]
    }

    /// First byte after it, counted from the start of its file.
    pub fn end(&self) -> u64 {
        self.offset + self.bytes
    }
}

/// Sorts indices of `tensors` with `compare`: one function for every order, for a sort is a lot of code.
#[inline(never)]
pub fn sort_tensors(order: &mut [u16], tensors: &[TensorInfo], compare: fn(&TensorInfo, &TensorInfo) -> Ordering) {
    order.sort_unstable_by(|&a, &b| compare(&tensors[usize::from(a)], &tensors[usize::from(b)]));
}

/// What one file says about the set it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitClaim {
    /// Its place, from 0.
    pub no: u64,
    /// Files of the set.
    pub count: u64,
    /// Tensors of the whole set.
    pub tensors: u64,
}

/// One file of a model, as its header describes it.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// GGUF version, 2 or 3.
    pub version: u32,
    /// `general.alignment`, or 32.
    pub alignment: u64,
    /// Where the header ends.
    pub header_bytes: u64,
    /// Where tensor data starts: `header_bytes` rounded up to the alignment.
    pub data_start: u64,
    /// Tensors in this file.
    pub tensors_len: usize,
    /// Present if the file belongs to a set of several.
    pub split: Option<SplitClaim>,
}

/// Everything the headers of a model say. Large: lives on the heap, see [`Tables::new_boxed`].
#[derive(Debug)]
pub struct Tables {
    /// Metadata of the first file, which speaks for the set.
    pub(super) metadata: Vec<Entry, MAX_METADATA>,
    /// Metadata of the file being read, if it is a later one.
    pub(super) later_metadata: Vec<Entry, MAX_METADATA>,
    pub(super) tensors: Vec<TensorInfo, MAX_TENSORS>,
    /// Scratch for sorting; after `check_set` the tensors by name.
    pub(super) order: Vec<u16, MAX_TENSORS>,
    pub(super) parts: Vec<Part, MAX_SPLITS>,
}

impl Tables {
    /// Empty tables on the heap. Pages that no entry reaches are never touched.
    #[inline(never)]
    pub fn new_boxed() -> Box<Tables> {
        Box::new(Tables {
            metadata: Vec::new(),
            later_metadata: Vec::new(),
            tensors: Vec::new(),
            order: Vec::new(),
            parts: Vec::new(),
        })
    }

    /// Tensors of all files, in the order of the files.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The files read so far.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The metadata of the first file; `header` are the bytes [`super::parse()`] was given for it, or more.
    pub fn metadata<'a>(&'a self, header: &'a [u8]) -> Metadata<'a> {
        Metadata::new(&self.metadata, header)
    }

    /// The tensor with this name. [`super::check_set`] must have accepted the tables.
    pub fn find(&self, name: &str) -> Option<&TensorInfo> {
        debug_assert_eq!(self.order.len(), self.tensors.len(), "check_set comes first");
        let at = self.order.binary_search_by(|&i| self.tensors[usize::from(i)].name().cmp(name)).ok()?;
        Some(&self.tensors[usize::from(self.order[at])])
    }

    /// Forgets file `file` and all after it, so that it can be read again.
    pub(super) fn rewind(&mut self, file: usize) {
        self.parts.truncate(file);
        let kept = self.parts.iter().map(|p| p.tensors_len).sum();
        self.tensors.truncate(kept);
        self.order.clear();
        self.later_metadata.clear();
        if file == 0 {
            self.metadata.clear();
        }
    }

    /// Sorts the tensors from `first` on with `compare`; the indices are left in `order`.
    pub(super) fn sort_by(&mut self, first: usize, compare: fn(&TensorInfo, &TensorInfo) -> Ordering) {
        self.order.clear();
        self.order.extend((first..self.tensors.len()).map(|i| i as u16));
        sort_tensors(&mut self.order, &self.tensors, compare);
    }

    /// Refuses a name that two tensors from `first` on share; leaves `order` sorted by name.
    pub(super) fn check_names(&mut self, first: usize) -> Result<(), GgufError> {
        self.sort_by(first, |a, b| (a.name(), a.file).cmp(&(b.name(), b.file)));
        for pair in self.order.windows(2) {
            let [a, b] = [&self.tensors[usize::from(pair[0])], &self.tensors[usize::from(pair[1])]];
            if a.name == b.name {
                let name = super::Name::new(b.name());
                return Err(GgufError::TensorDuplicate { name, file: b.file + 1, other_file: a.file + 1 });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_the_size_they_are_planned_with() {
        assert_eq!(size_of::<TensorInfo>(), 136);
        assert_eq!(size_of::<Entry>(), 40);
        assert!(size_of::<Tables>() < 640 << 10, "{} bytes", size_of::<Tables>());
    }

    #[test]
    fn tables_can_be_built_on_an_ordinary_thread() {
        // Whether the compiler builds the box in place is its choice; the default stack of a thread must do either way.
        let thread = std::thread::Builder::new().stack_size(2 << 20);
        let made = thread.spawn(|| Tables::new_boxed().tensors().len()).unwrap();
        assert_eq!(made.join().unwrap(), 0);
    }
}
