//! The worker pool: a fixed set of pinned threads that run one job at a time together with their caller.
//!
//! Starting a job costs one atomic store where workers are still spinning, one futex call where they sleep. Both sides
//! spin for longer than anything inside a token takes, so that within a token nobody sleeps.
//!
//! **A busy neighbour.** Where another process wants one of the cores, its worker is off the CPU for whole time slices
//! of some milliseconds, many jobs long. Three things keep the others going:
//! - A job whose work is drawn, not assigned ([`Team::run_dynamic`]), waits only for workers that have begun it. One that
//!   is off the CPU meanwhile is left out.
//! - A worker that was late once, so probably lost its CPU in the midst of a block, gives the CPU away of its own
//!   accord from then on: between jobs, where nobody waits for it, and before its slice is over. It stops once it finds
//!   that nobody else wants the CPU.
//! - Nothing goes on without the caller. Where it is the caller that is late, time and again, it changes CPUs with a
//!   worker that has its own to itself.
//!
//! # Safety
//! The job is a borrowed closure handed to other threads as a raw pointer, which must not outlive [`Workers::lead`].
//! `gate` is odd while a job may be begun: a worker first writes the job's number to its own slot, then looks at the
//! gate again, and touches the job only if that is still open with this number. `lead` first closes the gate, then waits
//! until no slot holds the number. Both are sequentially consistent, so either the worker sees the gate closed or `lead`
//! sees the slot. What a worker has written is ordered before the end of `lead` by its second store to the slot.
#![allow(unsafe_code)]

mod neighbour;
mod slot;

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::error::{Error, Exit, Result};
use crate::kernels::Team;
use crate::sys::{cpu, futex};
use neighbour::{CallerCpu, Watch};
use slot::{Apart, Slot, Spin};

/// How long a worker spins for the next job: longer than what the caller does alone between two tokens.
const WORKER_SPIN: Duration = Duration::from_millis(1);

/// Stack of a worker: kernels keep their tiles in planned scratch, so frames are small.
const STACK_BYTES: usize = 256 * 1024;

/// A job without its lifetime.
type ErasedJob = *const (dyn Fn(usize) + Sync);

struct Shared {
    job: Apart<UnsafeCell<Option<ErasedJob>>>,
    /// Odd: the number of the job that may be begun. Even: none.
    gate: Apart<AtomicU32>,
    /// Workers asleep on `gate`.
    asleep: Apart<AtomicU32>,
    /// The last job in which a worker had nothing left to do for as long as it spins while the caller was still at it.
    caller_late: Apart<AtomicU32>,
    slots: Box<[Apart<Slot>]>,
    stop: AtomicBool,
}

// SAFETY: `job` is written only while no worker is between entering and leaving a job, and read only there (see the
// head of this file). The pointee is Sync.
unsafe impl Sync for Shared {}
// SAFETY: as above; the raw pointer is dereferenced only during `lead`.
unsafe impl Send for Shared {}

/// Pinned workers.
pub struct Workers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    busy: AtomicBool,
    caller: Mutex<CallerCpu>,
}

impl Workers {
    /// Starts one worker per CPU of `cpus` but the first, which the calling thread is pinned to. Where a sandbox forbids
    /// pinning, that is said, and the threads run where the kernel puts them.
    ///
    /// # Errors
    /// A CPU that cannot be had (exit 6), or a thread that cannot be started.
    pub fn start(cpus: &[usize]) -> Result<Workers> {
        let slot = |&cpu: &usize| {
            Apart(Slot {
                state: AtomicU32::new(0),
                waited_for: AtomicBool::new(false),
                late: AtomicBool::new(false),
                contested: AtomicBool::new(false),
                thread: AtomicU32::new(0),
                cpu: AtomicUsize::new(cpu),
            })
        };
        let shared = Arc::new(Shared {
            job: Apart(UnsafeCell::new(None)),
            gate: Apart(AtomicU32::new(0)),
            asleep: Apart(AtomicU32::new(0)),
            caller_late: Apart(AtomicU32::new(0)),
            slots: cpus.iter().skip(1).map(slot).collect(),
            stop: AtomicBool::new(false),
        });
        let caller = Mutex::new(CallerCpu::new(cpus.first().copied().unwrap_or(0)));
        let mut pool = Workers { shared, threads: Vec::new(), busy: AtomicBool::new(false), caller };
        for (index, &cpu) in cpus.iter().enumerate().skip(1) {
            let shared = Arc::clone(&pool.shared);
            let builder = std::thread::Builder::new().name(format!("worker-{index}")).stack_size(STACK_BYTES);
            let thread = builder.spawn(move || {
                // Pinning is an optimisation; the caller's own CPU was pinned with its error reported.
                let _ = cpu::pin_to(cpu);
                shared.slots[index - 1].0.thread.store(cpu::thread_id(), Ordering::Relaxed);
                worker(&shared, index);
            });
            pool.threads.push(thread.map_err(Error::thread)?);
        }
        if let Some(&first) = cpus.first() {
            pin_caller(first)?;
        }
        // What a thread allocates as it begins belongs to the start, not to the first job.
        pool.lead(&|_| (), true);
        Ok(pool)
    }

    /// Opens `job`, does the caller's part and waits: for every worker, or for those that have begun.
    fn lead(&self, job: &(dyn Fn(usize) + Sync), everyone: bool) {
        if self.threads.is_empty() {
            return job(0);
        }
        assert!(!self.busy.swap(true, Ordering::Acquire), "jobs do not nest");
        // The closure must not be unwound out of while others use it.
        let _guard = AbortOnPanic;
        let shared = &*self.shared;
        // SAFETY: only the lifetime is erased; this function outlives every use of the pointer.
        let erased: ErasedJob = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), ErasedJob>(job) };
        // SAFETY: the gate is closed and no worker inside, so nobody reads the cell; `busy` keeps other callers out.
        unsafe { *shared.job.0.get() = Some(erased) };
        let open = shared.gate.0.load(Ordering::Relaxed).wrapping_add(1);
        let done = open.wrapping_add(1);
        shared.gate.0.store(open, Ordering::SeqCst);
        if shared.asleep.0.load(Ordering::SeqCst) > 0 {
            futex::wake(&shared.gate.0, u32::MAX);
        }
        job(0);
        if everyone {
            shared.slots.iter().for_each(|slot| slot.0.wait_while(|state| state != done));
        }
        shared.gate.0.store(done, Ordering::SeqCst);
        shared.slots.iter().for_each(|slot| slot.0.wait_while(|state| state == open));
        if !everyone
            && shared.caller_late.0.load(Ordering::Relaxed) == open
            && let Ok(mut caller) = self.caller.lock()
        {
            caller.late(&shared.slots);
        }
        self.busy.store(false, Ordering::Release);
    }
}

impl Team for Workers {
    fn size(&self) -> usize {
        self.threads.len() + 1
    }

    fn run(&self, job: &(dyn Fn(usize) + Sync)) {
        self.lead(job, true);
    }

    fn run_dynamic(&self, job: &(dyn Fn(usize) + Sync)) {
        self.lead(job, false);
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

fn pin_caller(cpu: usize) -> Result<()> {
    match cpu::pin_to(cpu) {
        Err(e) if e.is_unavailable() => {
            log::warn!(
                "the worker threads are not pinned to their CPUs, which may cost speed: {e}: a sandbox forbids it"
            );
            Ok(())
        }
        tried => tried.map_err(|e| Error::new(Exit::Cpu, e).at(format_args!("pin to CPU {cpu}"))),
    }
}

/// The number of the next job that is open, other than `seen`.
fn next_job(shared: &Shared, seen: u32, watch: &mut Watch) -> u32 {
    let gate = &shared.gate.0;
    let mut spin = Spin::new(WORKER_SPIN);
    loop {
        watch.give_way();
        let number = gate.load(Ordering::Acquire);
        if number != seen && !number.is_multiple_of(2) {
            return number;
        }
        if spin.turn() {
            continue;
        }
        if !number.is_multiple_of(2) {
            shared.caller_late.0.store(number, Ordering::Relaxed);
        }
        shared.asleep.0.fetch_add(1, Ordering::SeqCst);
        if gate.load(Ordering::SeqCst) == number {
            futex::wait(gate, number);
        }
        shared.asleep.0.fetch_sub(1, Ordering::SeqCst);
        spin = Spin::new(WORKER_SPIN);
    }
}

fn worker(shared: &Shared, index: usize) {
    let _guard = AbortOnPanic;
    let slot = &shared.slots[index - 1].0;
    let mut watch = Watch::default();
    let mut seen = 0;
    loop {
        seen = next_job(shared, seen, &mut watch);
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        slot.state.store(seen, Ordering::SeqCst);
        if shared.gate.0.load(Ordering::SeqCst) == seen {
            // SAFETY: the slot holds the number of a job that was open afterwards, so `lead` has not returned and
            // will not before `leave`; it wrote the cell before it opened the gate.
            if let Some(job) = unsafe { *shared.job.0.get() } {
                // SAFETY: as above: the closure is still borrowed.
                let job = unsafe { &*job };
                job(index);
            }
        }
        slot.leave(seen.wrapping_add(1));
        if slot.late.load(Ordering::Relaxed) {
            slot.late.store(false, Ordering::Relaxed);
            watch.begin();
        }
        slot.contested.store(watch.is_on(), Ordering::Relaxed);
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let gate = &self.shared.gate.0;
        self.shared.stop.store(true, Ordering::Release);
        gate.store(gate.load(Ordering::Relaxed).wrapping_add(1), Ordering::SeqCst);
        futex::wake(gate, u32::MAX);
        for thread in self.threads.drain(..) {
            // A worker that panicked has aborted the process already.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
