//! Opens a model's files and reads their headers; the tensor data stays where it is.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Exit, Result};
use crate::gguf::{self, GgufError, Metadata, Tables, TensorInfo};
use crate::sys::read::{FileId, cached_pages, drop_cached};

/// Largest header. The vocabulary dominates it: 262k tokens with scores, types and 515k merges make 16 MiB.
pub const MAX_HEADER_BYTES: u64 = 64 << 20;

/// Bytes read at first: enough for every later file of a split set and for small vocabularies.
const FIRST_READ_BYTES: u64 = 1 << 20;

/// How much is looked at for what reading a header brings into the page cache: a vocabulary and what is read ahead of it, or
/// where there is something in there already, less.
const NEW_BYTES: [u64; 3] = [64 << 20, 8 << 20, FIRST_READ_BYTES];

#[derive(Debug)]
enum Source {
    File(File),
    Embedded(&'static [u8]),
}

#[derive(Debug)]
struct ModelFile {
    path: PathBuf,
    source: Source,
    bytes: u64,
    /// What it was when it was opened; `None` if embedded.
    id: Option<FileId>,
    /// So many of the first bytes were not in the page cache when the file was opened.
    new_bytes: u64,
}

/// The files of one model, opened, their headers read and checked.
#[derive(Debug)]
pub struct ModelFiles {
    /// As many as the set has, at most [`gguf::MAX_SPLITS`].
    files: Vec<ModelFile>,
    /// Header of the first file, which has the metadata; of the others the tables say all.
    header: Cow<'static, [u8]>,
    tables: Box<Tables>,
}

impl ModelFiles {
    /// Opens the file at `path` and, if it is the first of a split set, the others beside it.
    ///
    /// # Errors
    /// Exit 4: a file is missing, not a regular file, unreadable or not a GGUF model brim accepts.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut tables = Tables::new_boxed();
        let first = ModelFile::open(path)?;
        let header = first.read_header(0, &mut tables)?;
        let count = gguf::set_len(&tables).map_err(|e| first.error(e))?;
        let mut files = vec![first];
        if count > 1 {
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            let names = gguf::sibling_names(name, count).map_err(|e| files[0].error(e))?;
            for (index, name) in names.enumerate().skip(1) {
                let place = index + 1;
                let file = ModelFile::open(&path.with_file_name(name))
                    .map_err(|e| e.at(format_args!("file {place} of {count} of the split set")))?;
                file.read_header(index as u16, &mut tables)?;
                files.push(file);
            }
        }
        Self::checked(files, Cow::Owned(header), tables)
    }

    /// A model inside the binary; `name` stands for its path in messages.
    ///
    /// # Errors
    /// Exit 4 if the bytes are not a GGUF model in one file.
    pub fn embedded(name: &str, bytes: &'static [u8]) -> Result<Self> {
        let mut tables = Tables::new_boxed();
        let len = bytes.len() as u64;
        let source = Source::Embedded(bytes);
        let file = ModelFile { path: PathBuf::from(name), source, bytes: len, id: None, new_bytes: 0 };
        let part = gguf::parse(bytes, len, 0, &mut tables).map_err(|e| file.error(e))?;
        Self::checked(vec![file], Cow::Borrowed(&bytes[..part.header_bytes as usize]), tables)
    }

    fn checked(files: Vec<ModelFile>, header: Cow<'static, [u8]>, mut tables: Box<Tables>) -> Result<Self> {
        gguf::check_set(&mut tables).map_err(|e| files[0].error(e))?;
        Ok(ModelFiles { files, header, tables })
    }

    /// What the headers say.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Metadata of the model.
    pub fn metadata(&self) -> Metadata<'_> {
        self.tables.metadata(&self.header)
    }

    /// All tensors of the set.
    pub fn tensors(&self) -> &[TensorInfo] {
        self.tables.tensors()
    }

    /// Path of the first file, for messages.
    pub fn name(&self) -> std::path::Display<'_> {
        self.path(0).display()
    }

    /// How many files there are.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Never: a model has at least one file.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Path of a file; of an embedded model its name.
    pub fn path(&self, file: u16) -> &Path {
        &self.files[usize::from(file)].path
    }

    /// Size of a file.
    pub fn file_bytes(&self, file: u16) -> u64 {
        self.files[usize::from(file)].bytes
    }

    /// Size of all files.
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().map(|f| f.bytes).sum()
    }

    /// The open file; `None` if the model is embedded.
    pub fn file(&self, file: u16) -> Option<&File> {
        match &self.files[usize::from(file)].source {
            Source::File(file) => Some(file),
            Source::Embedded(_) => None,
        }
    }

    /// What each file was when it was opened, in the order of the set; none for an embedded model.
    pub fn ids(&self) -> impl Iterator<Item = FileId> + '_ {
        self.files.iter().filter_map(|file| file.id)
    }

    /// The header of the first file, as it is there.
    pub fn header_bytes(&self) -> &[u8] {
        &self.header
    }

    /// Makes sure that no file was changed or replaced since it was opened: what was read of it belongs together.
    ///
    /// # Errors
    /// Exit 4 with what has changed.
    pub fn check_unchanged(&self) -> Result<()> {
        self.files.iter().try_for_each(ModelFile::check_unchanged)
    }

    /// Gives back the page cache that reading the headers took, and what the kernel has read ahead.
    pub fn drop_header_cache(&self) {
        for file in &self.files {
            if let Source::File(open) = &file.source {
                drop_cached(open, 0, file.new_bytes);
            }
        }
    }

    /// Reads some bytes of a file as `pread` does.
    ///
    /// # Errors
    /// As `pread`.
    pub fn pread(&self, file: u16, offset: u64, to: &mut [u8]) -> std::io::Result<usize> {
        self.files[usize::from(file)].pread(offset, to)
    }

    /// Fills `to` with the bytes of a file from `offset` on.
    ///
    /// # Errors
    /// Exit 4: the file has become shorter, or a read failed.
    pub fn read_at(&self, file: u16, offset: u64, to: &mut [u8]) -> Result<()> {
        self.files[usize::from(file)].read_at(offset, to)
    }
}

impl ModelFile {
    fn open(path: &Path) -> Result<Self> {
        let failed = |e: std::io::Error| {
            model_error(path, format!("cannot open the model file: {e}: check its path and permissions"))
        };
        // Looked at before it is opened: opening a fifo waits for its writer.
        let kind = std::fs::metadata(path).map_err(failed)?.file_type();
        let found = match () {
            _ if kind.is_file() => None,
            _ if kind.is_dir() => Some("a directory"),
            _ if kind.is_fifo() => Some("a pipe"),
            _ if kind.is_socket() => Some("a socket"),
            _ => Some("a device"),
        };
        if let Some(found) = found {
            return Err(model_error(
                path,
                format!("this is {found}, not a regular file: give the path of a .gguf file"),
            ));
        }
        let file = File::open(path).map_err(failed)?;
        let id = FileId::of(&file).map_err(|e| failed(std::io::Error::from_raw_os_error(e.errno)))?;
        let is_new = |bytes: &u64| cached_pages(&file, 0, *bytes) == Some(0);
        let new_bytes = NEW_BYTES.map(|bytes| bytes.min(id.bytes)).into_iter().find(is_new).unwrap_or(0);
        Ok(ModelFile { path: path.to_owned(), source: Source::File(file), bytes: id.bytes, id: Some(id), new_bytes })
    }

    fn error(&self, error: GgufError) -> Error {
        Error::from(error).at(self.path.display())
    }

    /// Reads and parses the header, at first from the first MiB, then from eight times as much until it suffices: vocabularies of
    /// 150,000 tokens take 6 MiB, and a header that is cut off has been parsed in vain.
    fn read_header(&self, index: u16, tables: &mut Tables) -> Result<Vec<u8>> {
        let mut header = Vec::new();
        let mut want = FIRST_READ_BYTES;
        loop {
            let have = header.len();
            header.resize(want.min(self.bytes) as usize, 0);
            self.read_at(have as u64, &mut header[have..])?;
            match gguf::parse(&header, self.bytes, index, tables) {
                Ok(part) => {
                    header.truncate(part.header_bytes as usize);
                    return Ok(header);
                }
                Err(GgufError::NeedMore { at_least }) if at_least > MAX_HEADER_BYTES => {
                    return Err(self.error(GgufError::HeaderTooLarge { needs: at_least, limit: MAX_HEADER_BYTES }));
                }
                // `at_least` is within the file and beyond what is at hand, so that every round reads more.
                Err(GgufError::NeedMore { at_least }) => want = at_least.max(8 * want).min(MAX_HEADER_BYTES),
                Err(refusal) => return Err(self.error(refusal)),
            }
        }
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        fill(&self.path, offset, to, |rest, at| self.pread(at, rest))
    }

    fn pread(&self, offset: u64, to: &mut [u8]) -> std::io::Result<usize> {
        match &self.source {
            Source::File(file) => file.read_at(to, offset),
            Source::Embedded(bytes) => {
                let from = usize::try_from(offset).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
                let n = to.len().min(from.len());
                to[..n].copy_from_slice(&from[..n]);
                Ok(n)
            }
        }
    }

    fn check_unchanged(&self) -> Result<()> {
        let (Source::File(file), Some(then)) = (&self.source, self.id) else { return Ok(()) };
        let failed = |e| model_error(&self.path, format_args!("the file can no longer be examined: {e}"));
        let now = FileId::of(file).map_err(failed)?;
        let again = "nothing of it can be used; start again once it is in place";
        if now != then {
            let (was, is) = (then.bytes, now.bytes);
            let text = format!("the file changed while it was being loaded (it had {was} bytes, now {is}): {again}");
            return Err(model_error(&self.path, text));
        }
        match FileId::at(&self.path) {
            Ok(named) if named.same_file(&then) => Ok(()),
            Ok(_) => Err(model_error(&self.path, format!("the file was replaced while it was being loaded: {again}"))),
            Err(e) => {
                Err(model_error(&self.path, format!("the file went away while it was being loaded ({e}): {again}")))
            }
        }
    }
}

/// Reads until `to` is full: interrupted reads are repeated, short ones continued, an early end is an error.
pub(super) fn fill(
    path: &Path,
    offset: u64,
    to: &mut [u8],
    mut read: impl FnMut(&mut [u8], u64) -> std::io::Result<usize>,
) -> Result<()> {
    let mut got = 0;
    while got < to.len() {
        match read(&mut to[got..], offset + got as u64) {
            Ok(0) => {
                let wanted = to.len();
                let text = format!(
                    "file is cut off: wanted {wanted} bytes at offset {offset}, got {got}: \
                     it changed while being read, or download it again"
                );
                return Err(model_error(path, text));
            }
            Ok(n) => got += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => {
                let at = offset + got as u64;
                return Err(model_error(path, format!("reading at offset {at} failed: {e}: check the disk")));
            }
        }
    }
    Ok(())
}

pub(super) fn model_error(path: &Path, text: impl fmt::Display) -> Error {
    Error::new(Exit::Model, text.to_string()).at(path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupted_and_short_reads_go_on() {
        let data = b"0123456789";
        let mut calls = 0;
        let mut to = [0; 6];
        fill(Path::new("f"), 2, &mut to, |rest, at| {
            calls += 1;
            if calls % 2 == 1 {
                return Err(ErrorKind::Interrupted.into());
            }
            let n = rest.len().min(4);
            rest[..n].copy_from_slice(&data[at as usize..][..n]);
            Ok(n)
        })
        .unwrap();
        assert_eq!(&to, b"234567");
    }

    #[test]
    fn an_early_end_is_reported_with_its_numbers() {
        let e = fill(Path::new("m.gguf"), 7, &mut [0; 6], |rest, at| Ok(if at == 7 { rest.len() / 2 } else { 0 }));
        let e = e.unwrap_err();
        assert_eq!(e.exit(), Exit::Model);
        assert!(e.to_string().starts_with("m.gguf: file is cut off: wanted 6 bytes at offset 7, got 3"), "{e}");
    }

    #[test]
    fn what_is_no_regular_file_is_refused() {
        for (path, found) in [("/", "a directory"), ("/dev/null", "a device")] {
            let e = ModelFiles::open(path).unwrap_err();
            assert_eq!(e.exit(), Exit::Model);
            assert!(e.to_string().contains(found), "{e}");
        }
        assert_eq!(ModelFiles::open("/nowhere.gguf").unwrap_err().exit(), Exit::Model);
    }

    #[test]
    fn embedded_bytes_are_checked_like_a_file() {
        let e = ModelFiles::embedded("demo", b"GGUF\x03\0\0\0").unwrap_err();
        assert!(e.to_string().starts_with("demo: file is cut off"), "{e}");
    }
}
