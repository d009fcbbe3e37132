//! The worker pool: a fixed set of pinned threads that run one job at a time together with their caller.
//!
//! Starting a job costs one atomic store where workers are still spinning, one futex call where they sleep. A worker
//! spins for a few tens of microseconds after a job, so that within a token nobody sleeps.
//!
//! # Safety
//! The job is a borrowed closure handed to other threads as a raw pointer. [`Pool::run`] returns only after every
//! worker has finished with it, so the borrow outlives every use; `epoch` (release / acquire) orders the hand-over
//! and `pending` (release / acquire) the way back.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;

use crate::error::{Error, Exit, Result};
use crate::kernels::Team;
use crate::sys::{cpu, futex};

/// Turns of a spin loop before sleeping: some tens of microseconds.
const SPIN_TURNS: u32 = 4096;

/// Stack of a worker: kernels keep their tiles in planned scratch, so frames are small.
const STACK_BYTES: usize = 256 * 1024;

type Job = *const (dyn Fn(usize) + Sync);

struct Shared {
    job: UnsafeCell<Option<Job>>,
    /// Counts jobs; workers wait for it to move.
    epoch: AtomicU32,
    /// Workers still busy with the job.
    pending: AtomicU32,
    /// Workers asleep on `epoch`.
    asleep: AtomicU32,
    /// The caller is asleep on `pending`.
    waiting: AtomicBool,
    stop: AtomicBool,
}

// SAFETY: `job` is written only while no worker is between an epoch and its `pending` decrement, and read only there;
// the atomics order both (see the head of this file). The pointee is Sync.
unsafe impl Sync for Shared {}
// SAFETY: as above; the raw pointer is dereferenced only during `run`.
unsafe impl Send for Shared {}

/// Pinned workers.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    busy: AtomicBool,
}

impl Pool {
    /// Starts one worker per CPU of `cpus` but the first, which the calling thread is pinned to.
    ///
    /// # Errors
    /// A CPU that cannot be had (exit 6), or a thread that cannot be started.
    pub fn start(cpus: &[usize]) -> Result<Pool> {
        let pin =
            |cpu: usize| cpu::pin_to(cpu).map_err(|e| Error::new(Exit::Cpu, e).at(format_args!("pin to CPU {cpu}")));
        let shared = Arc::new(Shared {
            job: UnsafeCell::new(None),
            epoch: AtomicU32::new(0),
            pending: AtomicU32::new(0),
            asleep: AtomicU32::new(0),
            waiting: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let mut pool = Pool { shared, threads: Vec::new(), busy: AtomicBool::new(false) };
        for (index, &cpu) in cpus.iter().enumerate().skip(1) {
            let shared = Arc::clone(&pool.shared);
            let builder = std::thread::Builder::new().name(format!("worker-{index}")).stack_size(STACK_BYTES);
            let thread = builder.spawn(move || {
                // Pinning is an optimisation; the caller's own CPU was pinned with its error reported.
                let _ = cpu::pin_to(cpu);
                worker(&shared, index);
            });
            pool.threads.push(thread.map_err(|e| Error::new(Exit::Unexpected, e).at("start a worker thread"))?);
        }
        if let Some(&first) = cpus.first() {
            pin(first)?;
        }
        Ok(pool)
    }
}

impl Team for Pool {
    fn size(&self) -> usize {
        self.threads.len() + 1
    }

    fn run(&self, job: &(dyn Fn(usize) + Sync)) {
        if self.threads.is_empty() {
            return job(0);
        }
        assert!(!self.busy.swap(true, Ordering::Acquire), "jobs do not nest");
        let shared = &*self.shared;
        // SAFETY: only the lifetime is erased; `run` outlives every use of the pointer.
        let erased: Job = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), Job>(job) };
        // SAFETY: `pending` is zero, so no worker reads the cell, and `busy` keeps other callers out.
        unsafe { *shared.job.get() = Some(erased) };
        shared.pending.store(self.threads.len() as u32, Ordering::Relaxed);
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        if shared.asleep.load(Ordering::SeqCst) > 0 {
            futex::wake(&shared.epoch, u32::MAX >> 1);
        }
        job(0);
        let mut turns = 0;
        loop {
            let pending = shared.pending.load(Ordering::Acquire);
            if pending == 0 {
                break;
            }
            if turns < SPIN_TURNS {
                turns += 1;
                spin_loop();
                continue;
            }
            shared.waiting.store(true, Ordering::SeqCst);
            if shared.pending.load(Ordering::SeqCst) == pending {
                futex::wait(&shared.pending, pending);
            }
            shared.waiting.store(false, Ordering::SeqCst);
        }
        self.busy.store(false, Ordering::Release);
    }
}

/// A job that panics must not leave the others waiting for ever.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

fn worker(shared: &Shared, index: usize) {
    let _guard = AbortOnPanic;
    let mut seen = 0;
    loop {
        let mut turns = 0;
        while shared.epoch.load(Ordering::Acquire) == seen {
            if turns < SPIN_TURNS {
                turns += 1;
                spin_loop();
                continue;
            }
            shared.asleep.fetch_add(1, Ordering::SeqCst);
            if shared.epoch.load(Ordering::SeqCst) == seen {
                futex::wait(&shared.epoch, seen);
            }
            shared.asleep.fetch_sub(1, Ordering::SeqCst);
        }
        seen = seen.wrapping_add(1);
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        // SAFETY: this worker has seen the epoch that published the job and has not yet decremented `pending`.
        if let Some(job) = unsafe { *shared.job.get() } {
            // SAFETY: the caller of `run` keeps the closure borrowed until `pending` is zero.
            let job = unsafe { &*job };
            job(index);
        }
        if shared.pending.fetch_sub(1, Ordering::SeqCst) == 1 && shared.waiting.load(Ordering::SeqCst) {
            futex::wake(&shared.pending, 1);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        futex::wake(&self.shared.epoch, u32::MAX >> 1);
        for thread in self.threads.drain(..) {
            // A worker that panicked has aborted the process already.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn every_worker_runs_every_job_once() {
        let cpus = cpu::allowed().unwrap();
        let wanted: Vec<usize> = (0..3).map(|i| cpus[i % cpus.len()]).collect();
        let pool = Pool::start(&wanted).unwrap();
        let counts: Vec<AtomicUsize> = (0..3).map(|_| AtomicUsize::new(0)).collect();
        for round in 0..2000 {
            pool.run(&|worker| {
                counts[worker].fetch_add(1, Ordering::Relaxed);
            });
            if round % 500 == 0 {
                // Long enough for the workers to fall asleep.
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
        assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 2000));
    }
}
