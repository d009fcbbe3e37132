//! Brings stretches of model files into a buffer: through the page cache or around it, whatever the file system and the
//! cache make of it. Interrupted and short reads go on; what cannot be mended is an error with file, offset and cause.

use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::Io;
use super::chunks::Chunk;
use super::header::{ModelFiles, fill, model_error};
use crate::error::{Error, Result};
use crate::sys::page_size::BASE_PAGE_BYTES;
use crate::sys::read::{Direct, cached_pages, drop_cached};

/// What a buffer must be longer than the longest chunk: reads lie in it as pages do in the file.
pub const SLACK_BYTES: usize = 3 * BASE_PAGE_BYTES;

/// How far behind a chunk the page cache is given back: farther than readers are apart, and than pages of the cache are
/// large.
const DROP_LAG_BYTES: u64 = 32 << 20;

/// The way a read goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Through the page cache.
    Cached,
    /// Around it.
    Direct,
}

/// Positioned reads of a model's files. Tests put faults here.
pub trait Pread: Sync {
    /// As `pread`: some bytes from `offset` on, or none at the end.
    ///
    /// # Errors
    /// The errno of the read.
    fn pread(&self, file: u16, way: Way, offset: u64, to: &mut [u8]) -> io::Result<usize>;
}

/// How much came which way, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Read around the page cache.
    pub direct_bytes: u64,
    /// Copied from the page cache, or read through it.
    pub cached_bytes: u64,
    /// Of the place, in pages that came with their contents.
    pub filled_bytes: u64,
}

/// The files of a model, each open for both ways of reading.
#[derive(Debug)]
struct Opened<'a> {
    files: &'a ModelFiles,
    direct: Vec<Option<Direct>>,
}

impl Pread for Opened<'_> {
    fn pread(&self, file: u16, way: Way, offset: u64, to: &mut [u8]) -> io::Result<usize> {
        match (way, &self.direct[usize::from(file)]) {
            (Way::Direct, Some(direct)) => direct.file.read_at(to, offset),
            _ => self.files.pread(file, offset, to),
        }
    }
}

/// Reads chunks of a model's files.
pub struct Reader<'a> {
    files: &'a ModelFiles,
    source: Source<'a>,
    io: Io,
    /// What direct reads of each file must be aligned to; 0 where there are none.
    align_bytes: Vec<AtomicU64>,
    /// Whether a fallback has been said, so that it is said once.
    said: AtomicBool,
    direct_bytes: AtomicU64,
    cached_bytes: AtomicU64,
}

enum Source<'a> {
    Opened(Opened<'a>),
    Other(&'a dyn Pread),
}

impl<'a> Reader<'a> {
    /// Prepares to read `files`.
    ///
    /// # Errors
    /// Exit 4 where `io` is direct and a file cannot be read so.
    pub fn new(files: &'a ModelFiles, io: Io) -> Result<Reader<'a>> {
        let mut direct = Vec::with_capacity(files.len());
        for index in 0..files.len() {
            // As many files as a set may have: far below u16::MAX.
            let index = index as u16;
            let opened = match files.file(index).filter(|_| io != Io::Buffered) {
                None => None,
                Some(file) => match Direct::open(file, files.path(index)) {
                    Ok(direct) => Some(direct),
                    Err(e) if io == Io::Direct => return Err(no_direct(files, index, e)),
                    Err(e) => {
                        log::info!("{}: {e}: reading through the page cache", files.path(index).display());
                        None
                    }
                },
            };
            direct.push(opened);
        }
        let align_bytes = direct.iter().map(|d| d.as_ref().map_or(0, |d| d.align_bytes as u64)).collect();
        Ok(Reader::over(files, io, Source::Opened(Opened { files, direct }), align_bytes))
    }

    /// Reads through `source` instead, which can read around the cache with this alignment, 0 if not.
    pub fn through(files: &'a ModelFiles, io: Io, source: &'a dyn Pread, align_bytes: u64) -> Reader<'a> {
        Reader::over(files, io, Source::Other(source), vec![align_bytes; files.len()])
    }

    fn over(files: &'a ModelFiles, io: Io, source: Source<'a>, align_bytes: Vec<u64>) -> Reader<'a> {
        Reader {
            files,
            source,
            io,
            align_bytes: align_bytes.into_iter().map(AtomicU64::new).collect(),
            said: AtomicBool::new(false),
            direct_bytes: AtomicU64::new(0),
            cached_bytes: AtomicU64::new(0),
        }
    }

    /// How much of each chunk is in the page cache already, before anything is read: whole chunks are copied from there, and
    /// what was there stays.
    pub fn find_cached(&self, chunks: &[Chunk<'_>]) -> Vec<Found> {
        let whole: Vec<Found> = (0..self.files.len()).map(|file| self.found(file as u16)).collect();
        let found = |chunk: &Chunk<'_>| match (whole[usize::from(chunk.file)], self.files.file(chunk.file)) {
            (Found::Some, Some(file)) => {
                Found::of(cached_pages(file, chunk.bytes.start, chunk.len() as u64), pages(&chunk.bytes))
            }
            (whole, _) => whole,
        };
        chunks.iter().map(found).collect()
    }

    fn found(&self, file: u16) -> Found {
        let bytes = self.files.file_bytes(file);
        match self.files.file(file) {
            None => Found::All,
            Some(file) => Found::of(cached_pages(file, 0, bytes), pages(&(0..bytes))),
        }
    }

    /// Whether a chunk is best read piece by piece: copied from the page cache, each piece is still in L2 when it is
    /// repacked.
    pub fn is_copied(&self, chunk: &Chunk<'_>, cached: bool) -> bool {
        cached && self.align_for(chunk.file, cached) == 0
    }

    fn align_for(&self, file: u16, cached: bool) -> usize {
        match self.io {
            Io::Auto if cached => 0,
            Io::Buffered => 0,
            // At most a page.
            _ => self.align_bytes[usize::from(file)].load(Ordering::Relaxed) as usize,
        }
    }

    /// Reads `bytes` of a file, all or part of a chunk, into `buffer`, which is [`SLACK_BYTES`] longer, and returns them.
    ///
    /// # Errors
    /// Exit 4 with file, offset and cause.
    pub fn read<'b>(&self, file: u16, bytes: &Range<u64>, cached: bool, buffer: &'b mut [u8]) -> Result<&'b [u8]> {
        // A chunk fits the buffer.
        let len = (bytes.end - bytes.start) as usize;
        let align = self.align_for(file, cached);
        if align > 0 {
            match self.read_direct(file, bytes, align, buffer) {
                Ok(place) => {
                    self.direct_bytes.fetch_add(len as u64, Ordering::Relaxed);
                    return Ok(&buffer[place]);
                }
                // The file system has taken O_DIRECT at open and does not want it now.
                Err(Stop::Refused(_)) if self.io == Io::Auto => {
                    self.align_bytes[usize::from(file)].store(0, Ordering::Relaxed);
                    if !self.said.swap(true, Ordering::Relaxed) {
                        let path = self.files.path(file).display();
                        log::info!("{path}: the file system refuses direct reads; reading through the page cache");
                    }
                }
                Err(Stop::Refused(cause)) => return Err(no_direct(self.files, file, cause)),
                Err(Stop::Failed(error)) => return Err(error),
            }
        }
        // At the same place in a page as in the file: the kernel's copy is half as fast between places that differ.
        let at = buffer.as_ptr().align_offset(BASE_PAGE_BYTES) + bytes.start as usize % BASE_PAGE_BYTES;
        let to = &mut buffer[at..][..len];
        self.fill(file, bytes.start, to)?;
        self.cached_bytes.fetch_add(len as u64, Ordering::Relaxed);
        Ok(to)
    }

    /// Gives back the page cache that reading a chunk took, which was not there before. What other threads are about to
    /// read ahead of it stays, and what lies across the ends of chunks goes with a later one: `first` is where the stretch
    /// of the file begins that was not there.
    pub fn drop_behind(&self, chunk: &Chunk<'_>, first: u64) {
        let end = chunk.bytes.start.saturating_sub(DROP_LAG_BYTES);
        let start = first.max(end.saturating_sub(2 * DROP_LAG_BYTES));
        let used = self.align_for(chunk.file, false) == 0;
        if let Some(file) = self.files.file(chunk.file).filter(|_| used && start < end) {
            drop_cached(file, start, end - start);
        }
    }

    /// The chunk with what lies around it up to the boundaries; returns where in the buffer the chunk is.
    fn read_direct(&self, file: u16, bytes: &Range<u64>, align: usize, buffer: &mut [u8]) -> Read {
        let buffer_at = buffer.as_ptr().align_offset(BASE_PAGE_BYTES);
        let start = bytes.start / align as u64 * align as u64;
        let end = bytes.end.next_multiple_of(align as u64);
        let before = (bytes.start - start) as usize;
        let need = before + (bytes.end - bytes.start) as usize;
        let to = &mut buffer[buffer_at..][..(end - start) as usize];
        let mut got = 0;
        while got < need {
            match self.pread(file, Way::Direct, start + got as u64, &mut to[got..]) {
                Ok(n) if got + n >= need => break,
                Ok(n) => {
                    // A short read may end anywhere, the next must begin on a boundary; what is left of nothing is asked
                    // for through the cache, which also tells whether the file ends here.
                    let next = (got + n) / align * align;
                    if next == got {
                        let at = start + got as u64;
                        self.fill(file, at, &mut to[got..need]).map_err(Stop::Failed)?;
                        break;
                    }
                    got = next;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::InvalidInput => return Err(Stop::Refused(e)),
                Err(e) => return Err(Stop::Failed(self.failed(file, start + got as u64, &e))),
            }
        }
        Ok(buffer_at + before..buffer_at + need)
    }

    fn fill(&self, file: u16, offset: u64, to: &mut [u8]) -> Result<()> {
        fill(self.files.path(file), offset, to, |rest, at| self.pread(file, Way::Cached, at, rest))
    }

    fn pread(&self, file: u16, way: Way, offset: u64, to: &mut [u8]) -> io::Result<usize> {
        match &self.source {
            Source::Opened(opened) => opened.pread(file, way, offset, to),
            Source::Other(other) => other.pread(file, way, offset, to),
        }
    }

    fn failed(&self, file: u16, offset: u64, cause: &io::Error) -> Error {
        model_error(self.files.path(file), format_args!("reading at offset {offset} failed: {cause}: check the disk"))
    }

    /// Gives back the page cache of chunks that have been read through it and of which nothing was there before, once all are
    /// read.
    pub fn tidy(&self, chunks: &[(u16, Range<u64>)], found: &[Found]) {
        let brought = chunks
            .iter()
            .zip(found)
            .filter(|((file, _), found)| **found == Found::None && self.align_for(*file, false) == 0);
        let brought: Vec<_> = brought.map(|(chunk, _)| chunk).collect();
        for run in brought.chunk_by(|a, b| a.0 == b.0 && b.1.start - a.1.end < 2 * BASE_PAGE_BYTES as u64) {
            let (first, last) = (run[0], run[run.len() - 1]);
            if let Some(file) = self.files.file(first.0) {
                // With the pages at its ends, of which nothing was there either.
                let page = BASE_PAGE_BYTES as u64;
                let start = first.1.start / page * page;
                drop_cached(file, start, last.1.end.next_multiple_of(page) - start);
            }
        }
    }

    /// What has been read so far.
    pub fn traffic(&self) -> Traffic {
        Traffic {
            direct_bytes: self.direct_bytes.load(Ordering::Relaxed),
            cached_bytes: self.cached_bytes.load(Ordering::Relaxed),
            filled_bytes: 0,
        }
    }
}

/// How much of a stretch is in the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing, or the kernel does not say.
    None,
    /// A part.
    Some,
    /// All of it.
    All,
}

impl Found {
    fn of(cached: Option<u64>, pages: u64) -> Found {
        match cached {
            None | Some(0) => Found::None,
            Some(cached) if cached >= pages => Found::All,
            Some(_) => Found::Some,
        }
    }
}

/// Where in the buffer the bytes are.
type Read = std::result::Result<Range<usize>, Stop>;

/// Why a read ended early.
enum Stop {
    /// The file system has no direct reads after all.
    Refused(io::Error),
    Failed(Error),
}

/// Pages that a stretch touches.
fn pages(bytes: &Range<u64>) -> u64 {
    let page = BASE_PAGE_BYTES as u64;
    bytes.end.div_ceil(page) - bytes.start / page
}

fn no_direct(files: &ModelFiles, file: u16, cause: impl std::fmt::Display) -> Error {
    let text = format_args!("{cause}: the file system cannot read around the page cache; use --io auto or buffered");
    model_error(files.path(file), text)
}
