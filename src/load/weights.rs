//! Reads tensors straight into their final places with several threads, repacking on the way: file -> thread's buffer ->
//! page. No second copy of the weights ever exists. A thread repacks while others read.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::Io;
use super::chunks::{CHUNK_BYTES, Item, Piece, STEP_BYTES, chunk_bytes, cut};
use super::digest::Digests;
use super::header::ModelFiles;
use super::reader::{Found, Pread, Reader, SLACK_BYTES, Traffic};
use super::stage::{Filling, Stage};
use crate::error::{Error, Exit, Result};
use crate::kernels::Kernels;
use crate::sys::cpu;

pub use super::digest::Sha256Bytes;

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

/// Something to be done while the weights are being read, such as clearing the pages of the KV cache.
pub type Job<'a> = Box<dyn FnOnce() -> Result<()> + Send + 'a>;

/// How a load is done.
pub struct Loading<'a> {
    /// What repacks.
    pub kernels: &'a Kernels,
    /// Which way files are read.
    pub io: Io,
    /// CPUs the loader's threads may run on; all that the process may use if empty.
    pub cpus: &'a [usize],
    /// [`buffer_bytes`] for each thread. Those that were used are cleared in the end.
    pub buffers: Vec<&'a mut [u8]>,
    /// Makes the pages below a buffer present, before it is used.
    pub populate_buffer: &'a (dyn Fn(&mut [u8]) -> Result<()> + Sync),
    /// Makes the pages below a stretch of the place present, before it is written.
    pub populate: &'a (dyn Fn(&mut [u8]) -> Result<()> + Sync),
    /// Brings pages of the place with what is copied from the page cache, where that is possible.
    pub filling: Option<&'a dyn Filling>,
    /// What is to be done meanwhile.
    pub meanwhile: Vec<Job<'a>>,
    /// The SHA-256 that each file must have, if it is known; empty if none is.
    pub sha256: &'a [Option<Sha256Bytes>],
    /// Counts the bytes that are in their place, for a progress bar.
    pub done: &'a AtomicU64,
    /// Reads the files instead of the system, with this alignment: faults for tests.
    pub source: Option<(&'a dyn Pread, u64)>,
}

/// Threads that load as fast as can be, given the workers of the engine and the bytes of weights.
pub fn readers(workers: usize, weights_bytes: usize) -> usize {
    (weights_bytes / READER_CHUNKS / CHUNK_BYTES).clamp(*READERS.start(), *READERS.end()).max(workers)
}

/// Bytes of buffer each thread needs, given the longest row of any tensor and how much there is to share among `readers`.
pub fn buffer_bytes(row_bytes_max: usize, total_bytes: u64, readers: usize) -> usize {
    (chunk_bytes(row_bytes_max, total_bytes, readers) + SLACK_BYTES).next_multiple_of(64)
}

/// Loads all items.
///
/// # Errors
/// The first failed read, naming file and offset; a file that changed meanwhile; what a job returns.
pub fn load(files: &ModelFiles, items: Vec<Item<'_>>, loading: Loading<'_>) -> Result<Traffic> {
    let Loading { kernels, io, cpus, buffers, populate_buffer, populate, filling, meanwhile, sha256, done, source } =
        loading;
    let readers = buffers.len();
    let each = buffers.iter().map(|buffer| buffer.len()).min().unwrap_or(0);
    let sizes: Vec<u64> = (0..files.len()).map(|file| files.file_bytes(file as u16)).collect();
    let chunks = cut(items, each - SLACK_BYTES, (!sha256.is_empty()).then_some(&sizes));
    let reader = match source {
        None => Reader::new(files, io)?,
        Some((source, align)) => Reader::through(files, io, source, align),
    };
    files.drop_header_cache();
    let found = reader.find_cached(&chunks);
    let stretches: Vec<_> = chunks.iter().map(|chunk| (chunk.file, chunk.bytes.clone())).collect();
    // Nobody waits for a disk where all is copied: then more threads than CPUs only push each other out of L2.
    let copied = io != Io::Direct && mostly_cached(&found);
    let threads = match io {
        _ if copied && !cpus.is_empty() => cpus.len().min(readers),
        Io::Buffered => READERS_CACHED.max(cpus.len()).min(readers),
        _ => readers,
    };
    let first_new = first_new(&stretches, &found);
    let digests = (!sha256.is_empty()).then(|| Digests::new(sha256));
    let failure: Mutex<Option<Error>> = Mutex::new(None);
    let failed = AtomicBool::new(false);
    let filled_bytes = AtomicU64::new(0);
    let in_runs = copied && digests.is_none();
    let filling = filling.filter(|filling| in_runs && each >= filling.page_bytes() && filling.begin());
    let work = Mutex::new(Work::new(runs(chunks, if in_runs { RUN } else { 1 }), meanwhile));
    let put = |piece: &mut Piece<'_>, bytes: &[u8], far: bool| -> Result<()> {
        match filling {
            Some(filling) => filling.populate(piece.place)?,
            None => populate(piece.place)?,
        }
        piece.lay_down(kernels, bytes, far);
        done.fetch_add(piece.file_bytes as u64, Ordering::Relaxed);
        Ok(())
    };
    let one = |buffer: &mut [u8], stage_buffer: &mut [u8]| -> Result<()> {
        populate_buffer(buffer)?;
        populate_buffer(stage_buffer)?;
        let mut stage = filling.map(|filling| Stage::new(filling, stage_buffer));
        while !failed.load(Ordering::Relaxed) {
            let next = work.lock().ok().and_then(|mut work| work.next());
            let run = match next {
                None => break,
                Some(Step::Job(job)) => {
                    job()?;
                    continue;
                }
                Some(Step::Run(run)) => run,
            };
            for (index, mut chunk) in run {
                let (file, cached) = (chunk.file, found[index] == Found::All);
                if digests.is_none() && reader.is_copied(&chunk, cached) {
                    for piece in std::mem::take(&mut chunk.pieces) {
                        let mut rest = Some(piece);
                        while let Some(mut piece) = rest {
                            rest = piece.split_off(STEP_BYTES);
                            let bytes = reader.read(file, &piece.bytes(), cached, buffer)?;
                            let Some(stage) = &mut stage else {
                                put(&mut piece, bytes, false)?;
                                continue;
                            };
                            done.fetch_add(piece.file_bytes as u64, Ordering::Relaxed);
                            stage.lay_down(piece, kernels, bytes)?;
                        }
                    }
                    continue;
                }
                let bytes = reader.read(file, &chunk.bytes, cached, buffer)?;
                for piece in &mut chunk.pieces {
                    // Inside the chunk, whose bytes these are.
                    let from = (piece.offset - chunk.bytes.start) as usize;
                    put(piece, &bytes[from..][..piece.file_bytes], true)?;
                }
                if let Some(digests) = &digests {
                    digests.add(files, index, &chunk, bytes, &|| failed.load(Ordering::Relaxed))?;
                }
                if found[index] == Found::None {
                    reader.drop_behind(&chunk, first_new[index]);
                }
            }
            if let Some(stage) = &mut stage {
                stage.flush()?;
            }
        }
        filled_bytes.fetch_add(stage.map_or(0, |stage| stage.filled_bytes()), Ordering::Relaxed);
        buffer.fill(0);
        stage_buffer.fill(0);
        Ok(())
    };
    let run = |buffer: &mut [u8], stage: &mut [u8]| {
        if let Err(error) = one(buffer, stage) {
            failed.store(true, Ordering::Relaxed);
            if let Ok(mut failure) = failure.lock() {
                failure.get_or_insert(error);
            }
            if let Some(digests) = &digests {
                digests.give_up();
            }
        }
    };
    std::thread::scope(|scope| -> Result<()> {
        // A thread that fills pages puts them together in a buffer of its own.
        let mut buffers = buffers.into_iter();
        let threads = if filling.is_some() { threads.min(readers / 2) } else { threads };
        for index in 0..threads.max(1) {
            let (Some(buffer), run) = (buffers.next(), &run) else { break };
            let stage = filling.and_then(|_| buffers.next()).unwrap_or_default();
            let thread = std::thread::Builder::new().name(format!("load-{index}")).stack_size(STACK_BYTES);
            let started = thread.spawn_scoped(scope, move || {
                // An optimisation: where it cannot be had, the threads run where their parent may.
                let _ = if cpus.is_empty() { Ok(()) } else { cpu::confine_to(cpus) };
                run(buffer, stage);
            });
            if let Err(e) = started {
                failed.store(true, Ordering::Relaxed);
                return Err(Error::thread(e));
            }
        }
        Ok(())
    })?;
    if let Ok(Some(error)) = failure.into_inner() {
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

/// Does what is to be done meanwhile, where there is nothing to load.
///
/// # Errors
/// What a job returns.
pub fn do_meanwhile(loading: Loading<'_>) -> Result<Traffic> {
    let jobs = Mutex::new(loading.meanwhile.into_iter());
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
        // All of it is work for a CPU; this thread is one of them.
        for _ in 1..loading.cpus.len() {
            // Where there are no more threads to be had, fewer do it.
            if std::thread::Builder::new().spawn_scoped(scope, work).is_err() {
                break;
            }
        }
        work();
    });
    match failure.into_inner() {
        Ok(Some(error)) => Err(error),
        _ => Ok(Traffic::default()),
    }
}

/// Whether all but a few chunks, as the first beside a header that has been dropped, are in the page cache.
fn mostly_cached(found: &[Found]) -> bool {
    found.iter().filter(|&&found| found == Found::All).count() * 16 > found.len() * 15
}

/// For each chunk of which nothing is cached, where the stretch of such chunks begins that it is in.
fn first_new(chunks: &[(u16, Range<u64>)], found: &[Found]) -> Vec<u64> {
    let mut first: Option<(u16, u64)> = None;
    let each = chunks.iter().zip(found).map(|((file, bytes), found)| {
        first = first.filter(|(of, _)| of == file && *found == Found::None);
        first.get_or_insert((*file, bytes.start)).1
    });
    each.collect()
}

/// Chunks with their index, in their order, `each` to a run.
fn runs<C>(chunks: Vec<C>, each: usize) -> Vec<Vec<(usize, C)>> {
    let (mut chunks, mut runs) = (chunks.into_iter().enumerate().peekable(), Vec::new());
    while chunks.peek().is_some() {
        runs.push(chunks.by_ref().take(each).collect());
    }
    runs
}

/// Runs of chunks in their order with the jobs spread evenly between them.
struct Work<'a, R> {
    runs: std::vec::IntoIter<R>,
    jobs: std::vec::IntoIter<Job<'a>>,
    n_runs: usize,
    n_jobs: usize,
}

enum Step<'a, R> {
    Run(R),
    Job(Job<'a>),
}

impl<'a, R> Work<'a, R> {
    fn new(runs: Vec<R>, jobs: Vec<Job<'a>>) -> Self {
        let (n_runs, n_jobs) = (runs.len(), jobs.len());
        Work { runs: runs.into_iter(), jobs: jobs.into_iter(), n_runs, n_jobs }
    }

    fn next(&mut self) -> Option<Step<'a, R>> {
        let (runs_left, jobs_left) = (self.runs.len(), self.jobs.len());
        // As far along in one list as in the other.
        let job_first = (self.n_jobs - jobs_left) * self.n_runs < (self.n_runs - runs_left) * self.n_jobs;
        match job_first || runs_left == 0 {
            true => self.jobs.next().map(Step::Job),
            false => self.runs.next().map(Step::Run),
        }
    }
}
