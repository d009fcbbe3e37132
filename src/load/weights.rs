//! Reads tensors straight into their final places with several threads, repacking on the way: file -> thread's buffer ->
//! page. No second copy of the weights ever exists. A thread repacks while others read.

use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use super::Io;
use super::chunks::{CHUNK_BYTES, Item, chunk_bytes, cut};
use super::digest::Digests;
use super::header::ModelFiles;
use super::reader::{Found, Pread, Reader, SLACK_BYTES, Traffic};
use super::stage::FillPages;
use super::threads::{Failure, Load, Work, first_new, runs};
use crate::error::{Error, Exit, Result};
use crate::kernels::Kernels;
use crate::sys::cpu;

pub use super::digest::Sha256Bytes;
pub use super::threads::{Job, Populate};

/// Threads that read: one stops at each read, so more of them than CPUs keep the disk busy while others repack, and the more
/// buffers there are the longer it is until one is read into again, which is slower while its lines are in a cache. (A virtual
/// disk, two CPUs, of what direct reads give: 8 threads 71 to 77 %, 16 threads 80 to 86, 32 threads 92, 48 and 64 threads 94.)
const READERS: std::ops::RangeInclusive<usize> = 16..=48;

/// Stretches that each of more threads than the fewest has to read.
const READER_CHUNKS: usize = 8;

/// Neighbouring chunks that a thread copies from the page cache: pages are handed over whole but at the ends.
const RUN: usize = 16;

/// Threads that read through the page cache what is not there yet: with more, the kernel reads ahead for all of them and
/// gets nowhere.
const READERS_CACHED: usize = 6;

/// Stack of a loader thread; its buffer lies elsewhere.
const STACK_BYTES: usize = 256 << 10;

/// How a load is done. What is not said is the plainest: as fast as the page cache and the disk let it, into memory that is
/// all there.
pub struct Loader<'a> {
    kernels: &'a Kernels,
    buffers: Vec<&'a mut [u8]>,
    io: Io,
    cpus: &'a [usize],
    populate: &'a Populate<'a>,
    populate_buffers: &'a Populate<'a>,
    filling: Option<&'a dyn FillPages>,
    meanwhile: Vec<Job<'a>>,
    sha256: &'a [Option<Sha256Bytes>],
    done: Option<&'a AtomicU64>,
    source: Option<(&'a dyn Pread, u64)>,
}

impl<'a> Loader<'a> {
    /// Repacks with `kernels`, and reads into `buffers`: [`buffer_bytes`] for each thread. Those that were used are cleared
    /// in the end.
    pub fn new(kernels: &'a Kernels, buffers: impl IntoIterator<Item = &'a mut [u8]>) -> Loader<'a> {
        Loader {
            kernels,
            buffers: buffers.into_iter().collect(),
            io: Io::Auto,
            cpus: &[],
            populate: &|_| Ok(()),
            populate_buffers: &|_| Ok(()),
            filling: None,
            meanwhile: Vec::new(),
            sha256: &[],
            done: None,
            source: None,
        }
    }

    /// Which way files are read.
    #[must_use]
    pub fn io(self, io: Io) -> Self {
        Loader { io, ..self }
    }

    /// The CPUs that its threads may run on; all that the process may use if there are none.
    #[must_use]
    pub fn cpus(self, cpus: &'a [usize]) -> Self {
        Loader { cpus, ..self }
    }

    /// What brings the pages below a stretch of the place.
    #[must_use]
    pub fn populate(self, populate: &'a Populate<'a>) -> Self {
        Loader { populate, ..self }
    }

    /// What brings the pages below a buffer.
    #[must_use]
    pub fn populate_buffers(self, populate_buffers: &'a Populate<'a>) -> Self {
        Loader { populate_buffers, ..self }
    }

    /// What brings pages of the place with their contents, copied from the page cache, where that is possible.
    #[must_use]
    pub fn filling(self, filling: Option<&'a dyn FillPages>) -> Self {
        Loader { filling, ..self }
    }

    /// What is to be done meanwhile.
    #[must_use]
    pub fn meanwhile(self, meanwhile: Vec<Job<'a>>) -> Self {
        Loader { meanwhile, ..self }
    }

    /// The SHA-256 that each file must have, where it is known; none at all if none is.
    #[must_use]
    pub fn sha256(self, sha256: &'a [Option<Sha256Bytes>]) -> Self {
        Loader { sha256, ..self }
    }

    /// Where the bytes are counted that are in their place.
    #[must_use]
    pub fn done(self, done: &'a AtomicU64) -> Self {
        Loader { done: Some(done), ..self }
    }

    /// What reads the files instead of the system, with this alignment: faults for tests.
    #[must_use]
    pub fn source(self, source: &'a dyn Pread, align_bytes: u64) -> Self {
        Loader { source: Some((source, align_bytes)), ..self }
    }
}

/// Threads that load as fast as can be, given the workers of the engine and the bytes of weights.
pub fn readers(workers: usize, weights_bytes: usize) -> usize {
    (weights_bytes / READER_CHUNKS / CHUNK_BYTES).clamp(*READERS.start(), *READERS.end()).max(workers)
}

/// Bytes of buffer each thread needs, given the longest row of any tensor and how much there is to share among `readers`.
pub fn buffer_bytes(row_bytes_max: usize, total_bytes: u64, readers: usize) -> usize {
    (chunk_bytes(row_bytes_max, total_bytes, readers) + SLACK_BYTES).next_multiple_of(64)
}

impl<'a> Loader<'a> {
    /// Loads all items.
    ///
    /// # Errors
    /// The first failed read, naming file and offset; a file that changed meanwhile; what a job returns.
    pub fn load(mut self, files: &ModelFiles, items: Vec<Item<'_>>) -> Result<Traffic> {
        let uncounted = AtomicU64::new(0);
        let buffers = std::mem::take(&mut self.buffers);
        let each = buffers.iter().map(|buffer| buffer.len()).min().unwrap_or(0);
        let sizes: Vec<u64> = (0..files.len()).map(|file| files.file_bytes(file as u16)).collect();
        let chunks = cut(items, each - SLACK_BYTES, (!self.sha256.is_empty()).then_some(&sizes));
        let reader = match self.source {
            None => Reader::new(files, self.io)?,
            Some((source, align)) => Reader::through(files, self.io, source, align),
        };
        files.drop_header_cache();
        let found = reader.find_cached(&chunks);
        let stretches: Vec<_> = chunks.iter().map(|chunk| (chunk.file, chunk.bytes.clone())).collect();
        // Nobody waits for a disk where all is copied: then more threads than CPUs only push each other out of L2.
        let copied = self.io != Io::Direct && mostly_cached(&found);
        let digests = (!self.sha256.is_empty()).then(|| Digests::new(self.sha256));
        let in_runs = copied && digests.is_none();
        let may_fill = |filling: &&dyn FillPages| in_runs && each >= filling.page_bytes() && filling.begin();
        let load = Load {
            files,
            kernels: self.kernels,
            reader,
            first_new: first_new(&stretches, &found),
            found,
            digests,
            populate: self.populate,
            populate_buffers: self.populate_buffers,
            filling: self.filling.filter(may_fill),
            done: self.done.unwrap_or(&uncounted),
            work: Mutex::new(Work::new(runs(chunks, if in_runs { RUN } else { 1 }), self.meanwhile)),
            failure: Failure::default(),
            filled_bytes: AtomicU64::new(0),
        };
        let readers = buffers.len();
        let threads = match self.io {
            _ if copied && !self.cpus.is_empty() => self.cpus.len().min(readers),
            Io::Buffered => READERS_CACHED.max(self.cpus.len()).min(readers),
            _ => readers,
        };
        run(&load, buffers, threads, self.cpus)?;
        let Load { reader, found, failure, filled_bytes, .. } = load;
        if let Some(error) = failure.into_error() {
            // A file that shrinks is found by a read first: what has become of it says more.
            return Err(match files.check_unchanged() {
                Err(changed) if error.exit() == Exit::Model => changed.also(&error),
                _ => error,
            });
        }
        files.check_unchanged()?;
        reader.tidy(&stretches, &found);
        Ok(Traffic { filled_bytes: filled_bytes.into_inner(), ..reader.traffic() })
    }
}

/// Does all the work of `load` in `threads` threads, each with a buffer of its own.
fn run(load: &Load<'_, '_>, buffers: Vec<&mut [u8]>, threads: usize, cpus: &[usize]) -> Result<()> {
    // A thread that fills pages puts them together in a second one.
    let threads = if load.filling.is_some() { threads.min(buffers.len() / 2) } else { threads };
    let mut buffers = buffers.into_iter();
    std::thread::scope(|scope| {
        for index in 0..threads.max(1) {
            let Some(buffer) = buffers.next() else { break };
            let stage = load.filling.and_then(|_| buffers.next()).unwrap_or_default();
            let thread = std::thread::Builder::new().name(format!("load-{index}")).stack_size(STACK_BYTES);
            let started = thread.spawn_scoped(scope, move || {
                // An optimisation: where it cannot be had, the threads run where their parent may.
                let _ = if cpus.is_empty() { Ok(()) } else { cpu::confine_to(cpus) };
                load.work(buffer, stage);
            });
            if let Err(e) = started {
                load.give_up();
                return Err(Error::thread(e));
            }
        }
        Ok(())
    })
}

/// Does jobs with a thread for each of `cpus`, where there is nothing to load meanwhile.
///
/// # Errors
/// What a job returns.
pub fn run_jobs(jobs: Vec<Job<'_>>, cpus: &[usize]) -> Result<()> {
    let jobs = Mutex::new(jobs.into_iter());
    let failure: Mutex<Option<Error>> = Mutex::new(None);
    let work = || {
        while let Some(job) = jobs.lock().ok().and_then(|mut jobs| jobs.next()) {
            if let (Err(error), Ok(mut failure)) = (job(), failure.lock()) {
                failure.get_or_insert(error);
                return;
            }
        }
    };
    std::thread::scope(|scope| {
        // All of it is work for a CPU; this thread is one of them, and alone where there are no others to be had.
        for index in 1..cpus.len() {
            let thread = std::thread::Builder::new().name(format!("ready-{index}")).stack_size(STACK_BYTES);
            let confined = move || {
                // As in `run`: its parent may be the pinned one of a model that runs already.
                let _ = cpu::confine_to(cpus);
                work();
            };
            if thread.spawn_scoped(scope, confined).is_err() {
                break;
            }
        }
        work();
    });
    match failure.into_inner() {
        Ok(Some(error)) => Err(error),
        _ => Ok(()),
    }
}

/// Whether all but a few chunks, as the first beside a header that has been dropped, are in the page cache.
fn mostly_cached(found: &[Found]) -> bool {
    found.iter().filter(|&&found| found == Found::All).count() * 16 > found.len() * 15
}
