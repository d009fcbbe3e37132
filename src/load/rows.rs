//! Single rows of a tensor, read from its file when they are needed: an embedding table that stays on the disk.

use std::fmt;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;

use super::header::{ModelFiles, model_error};
use crate::error::{Error, Exit, Result};
use crate::gguf::TensorInfo;
use crate::sys::read;

/// A row that could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowError {
    /// The row.
    pub row: usize,
    /// Where it was read, in the file.
    pub offset: u64,
    /// The errno; 0 where the file has become shorter.
    pub errno: i32,
}

impl fmt::Display for RowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RowError { row, offset, errno } = self;
        write!(f, "reading row {row} of the embedding table at offset {offset} of the model file failed: ")?;
        match errno {
            0 => f.write_str("the file ends there; it was changed"),
            errno => write!(f, "{}", std::io::Error::from_raw_os_error(*errno)),
        }
    }
}

impl std::error::Error for RowError {}

impl From<RowError> for Error {
    fn from(error: RowError) -> Self {
        Error::new(Exit::Model, error)
    }
}

/// The tables that were left in the file.
#[derive(Debug, Default)]
pub struct Tables {
    /// The embedding.
    pub embedding: Option<Rows>,
    /// That of every layer.
    pub per_layer: Option<Rows>,
}

/// The rows of one tensor.
#[derive(Debug)]
pub struct Rows {
    file: File,
    offset: u64,
    row_bytes: usize,
}

impl Rows {
    /// The rows of `tensor`, which is not in an embedded model.
    ///
    /// # Errors
    /// Exit 4: the file cannot be kept open.
    pub fn open(files: &ModelFiles, tensor: &TensorInfo) -> Result<Rows> {
        let path = files.path(tensor.file);
        let file = files.file(tensor.file).ok_or_else(|| model_error(path, "an embedded model has no file"))?;
        let file = file.try_clone().map_err(|e| model_error(path, e))?;
        read::expect_random(&file);
        // A row of a tensor that was checked against its file: far below any address space.
        Ok(Rows { file, offset: tensor.offset, row_bytes: tensor.row_bytes() as usize })
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// Fills `to` with the bytes of a row from `from` on. Neither allocates nor waits for anything but the disk.
    ///
    /// # Errors
    /// A [`RowError`].
    pub fn read(&self, row: usize, from: usize, to: &mut [u8]) -> std::result::Result<(), RowError> {
        let start = self.offset + (row * self.row_bytes + from) as u64;
        let mut got = 0;
        while got < to.len() {
            let offset = start + got as u64;
            match self.file.read_at(&mut to[got..], offset) {
                Ok(0) => return Err(RowError { row, offset, errno: 0 }),
                Ok(n) => got += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(RowError { row, offset, errno: e.raw_os_error().unwrap_or(libc::EIO) }),
            }
        }
        Ok(())
    }

    /// Asks the kernel to read a row ahead of its use.
    pub fn prefetch(&self, row: usize) {
        read::read_ahead(&self.file, self.offset + (row * self.row_bytes) as u64, self.row_bytes as u64);
    }
}
