//! A load under way: what its threads share, and what each of them does until nothing is left.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::chunks::{Chunk, Piece, STEP_BYTES};
use super::digest::Digests;
use super::header::ModelFiles;
use super::reader::{Found, Reader};
use super::stage::{FillPages, Stage};
use crate::error::{Error, Result};
use crate::kernels::Kernels;

/// Something to be done while the weights are being read, such as clearing the pages of the KV cache.
pub type Job<'a> = Box<dyn FnOnce() -> Result<()> + Send + 'a>;

/// A function that makes the pages below some bytes present, before they are written.
pub type Populate<'a> = dyn Fn(&mut [u8]) -> Result<()> + Sync + 'a;

/// What the threads of a load share.
pub(super) struct Load<'l, 'a> {
    pub files: &'l ModelFiles,
    pub kernels: &'l Kernels,
    pub reader: Reader<'l>,
    /// How much of each chunk was in the page cache before.
    pub found: Vec<Found>,
    /// For each chunk of which nothing was, where the stretch of such chunks begins that it is in.
    pub first_new: Vec<u64>,
    pub digests: Option<Digests<'l>>,
    pub populate: &'l Populate<'l>,
    pub populate_buffers: &'l Populate<'l>,
    /// What brings pages with their contents, if that is how this load does it.
    pub filling: Option<&'l dyn FillPages>,
    /// Bytes that are in their place.
    pub done: &'l AtomicU64,
    pub work: Mutex<Work<'l, Vec<(usize, Chunk<'a>)>>>,
    pub failure: Failure,
    /// Bytes of pages that came with their contents.
    pub filled_bytes: AtomicU64,
}

/// The first error of any thread.
#[derive(Default)]
pub(super) struct Failure {
    is_there: AtomicBool,
    first: Mutex<Option<Error>>,
}

impl Failure {
    fn is_there(&self) -> bool {
        self.is_there.load(Ordering::Relaxed)
    }

    pub fn into_error(self) -> Option<Error> {
        self.first.into_inner().ok().flatten()
    }
}

impl<'a> Load<'_, 'a> {
    /// What one thread does: with a stage where pages come with their contents, else the stage's buffer is empty.
    pub fn work(&self, buffer: &mut [u8], stage_buffer: &mut [u8]) {
        if let Err(error) = self.read_all(buffer, stage_buffer) {
            if let Ok(mut first) = self.failure.first.lock() {
                first.get_or_insert(error);
            }
            self.give_up();
        }
    }

    /// Lets every thread end at its next step.
    pub fn give_up(&self) {
        self.failure.is_there.store(true, Ordering::Relaxed);
        if let Some(digests) = &self.digests {
            digests.give_up();
        }
    }

    fn read_all(&self, buffer: &mut [u8], stage_buffer: &mut [u8]) -> Result<()> {
        (self.populate_buffers)(buffer)?;
        (self.populate_buffers)(stage_buffer)?;
        let mut stage = self.filling.map(|filling| Stage::new(filling, stage_buffer));
        while let Some(step) = self.next() {
            match step {
                Step::Job(job) => job()?,
                Step::Run(run) => {
                    for (index, chunk) in run {
                        self.read(index, chunk, buffer, stage.as_mut())?;
                    }
                    if let Some(stage) = &mut stage {
                        stage.flush()?;
                    }
                }
            }
        }
        self.filled_bytes.fetch_add(stage.map_or(0, |stage| stage.filled_bytes()), Ordering::Relaxed);
        buffer.fill(0);
        stage_buffer.fill(0);
        Ok(())
    }

    fn next(&self) -> Option<Step<'_, Vec<(usize, Chunk<'a>)>>> {
        if self.failure.is_there() { None } else { self.work.lock().ok()?.next() }
    }

    /// One chunk, from its file to its places.
    fn read(
        &self,
        index: usize,
        mut chunk: Chunk<'a>,
        buffer: &mut [u8],
        stage: Option<&mut Stage<'_, 'a>>,
    ) -> Result<()> {
        let cached = self.found[index] == Found::All;
        if self.digests.is_none() && self.reader.is_copied(&chunk, cached) {
            return self.copy(chunk, cached, buffer, stage);
        }
        let bytes = self.reader.read(chunk.file, &chunk.bytes, cached, buffer)?;
        for piece in &mut chunk.pieces {
            // Inside the chunk, whose bytes these are.
            let from = (piece.offset - chunk.bytes.start) as usize;
            self.put(piece, &bytes[from..][..piece.file_bytes], true)?;
        }
        if let Some(digests) = &self.digests {
            digests.add(self.files, index, &chunk, bytes, &|| self.failure.is_there())?;
        }
        if self.found[index] == Found::None {
            self.reader.drop_behind(&chunk, self.first_new[index]);
        }
        Ok(())
    }

    /// A chunk that is in the page cache, piece by piece: each is still in L2 when it is repacked.
    fn copy(
        &self,
        chunk: Chunk<'a>,
        cached: bool,
        buffer: &mut [u8],
        mut stage: Option<&mut Stage<'_, 'a>>,
    ) -> Result<()> {
        for piece in chunk.pieces {
            let mut rest = Some(piece);
            while let Some(mut piece) = rest {
                rest = piece.split_off(STEP_BYTES);
                let bytes = self.reader.read(chunk.file, &piece.bytes(), cached, buffer)?;
                let Some(stage) = &mut stage else {
                    self.put(&mut piece, bytes, false)?;
                    continue;
                };
                self.done.fetch_add(piece.file_bytes as u64, Ordering::Relaxed);
                stage.lay_down(piece, self.kernels, bytes)?;
            }
        }
        Ok(())
    }

    fn put(&self, piece: &mut Piece<'_>, bytes: &[u8], far: bool) -> Result<()> {
        match self.filling {
            Some(filling) => filling.populate(piece.place)?,
            None => (self.populate)(piece.place)?,
        }
        piece.lay_down(self.kernels, bytes, far);
        self.done.fetch_add(piece.file_bytes as u64, Ordering::Relaxed);
        Ok(())
    }
}

/// For each chunk of which nothing is cached, where the stretch of such chunks begins that it is in.
pub(super) fn first_new(chunks: &[(u16, Range<u64>)], found: &[Found]) -> Vec<u64> {
    let mut first: Option<(u16, u64)> = None;
    let each = chunks.iter().zip(found).map(|((file, bytes), found)| {
        first = first.filter(|(of, _)| of == file && *found == Found::None);
        first.get_or_insert((*file, bytes.start)).1
    });
    each.collect()
}

/// Chunks with their index, in their order, `each` to a run.
pub(super) fn runs<C>(chunks: Vec<C>, each: usize) -> Vec<Vec<(usize, C)>> {
    let (mut chunks, mut runs) = (chunks.into_iter().enumerate().peekable(), Vec::new());
    while chunks.peek().is_some() {
        runs.push(chunks.by_ref().take(each).collect());
    }
    runs
}

/// Runs of chunks in their order with the jobs spread evenly between them.
pub(super) struct Work<'a, R> {
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
    pub fn new(runs: Vec<R>, jobs: Vec<Job<'a>>) -> Self {
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
