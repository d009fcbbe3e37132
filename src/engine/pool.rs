//! The worker pool: a fixed set of pinned threads that run one job at a time together with their caller.
//!
//! Starting a job costs one atomic store where workers are still spinning, one futex call where they sleep. Both sides
//! spin for longer than anything inside a token takes, so that within a token nobody sleeps.
//!
//! **A busy neighbour.** Where another process wants one of the cores, its worker is off the CPU for whole time slices
//! of some milliseconds, many jobs long. Three things keep the others going:
//! - A job whose work is drawn, not assigned ([`Team::drain`]), waits only for workers that have begun it. One that
//!   is off the CPU meanwhile is left out.
//! - A worker that was late once, so probably lost its CPU in the midst of a block, gives the CPU away of its own
//!   accord from then on: between jobs, where nobody waits for it, and before its slice is over. It stops once it finds
//!   that nobody else wants the CPU.
//! - Nothing goes on without the caller. Where it is the caller that is late, time and again, it changes CPUs with a
//!   worker that has its own to itself.
//!
//! # Safety
//! The job is a borrowed closure handed to other threads as a raw pointer, which must not outlive [`Pool::lead`].
//! `gate` is odd while a job may be begun: a worker first writes the job's number to its own slot, then looks at the
//! gate again, and touches the job only if that is still open with this number. `lead` first closes the gate, then waits
//! until no slot holds the number. Both are sequentially consistent, so either the worker sees the gate closed or `lead`
//! sees the slot. What a worker has written is ordered before the end of `lead` by its second store to the slot.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::{Error, Exit, Result};
use crate::kernels::Team;
use crate::sys::{cpu, futex};

/// How long a worker spins for the next job: longer than what the caller does alone between two tokens.
const WORKER_SPIN: Duration = Duration::from_millis(1);

/// How long the caller spins for workers that still hold a block: several times what a block takes. A worker that
/// takes longer counts as late.
const CALLER_SPIN: Duration = Duration::from_micros(300);

/// How long a worker on a contested CPU keeps it at a time. Linux takes it away after 3 to 4 ms; one that yields sooner
/// than this gets less than half of it (measured: 30 % at 0.5 ms, 39 % at 1 ms, 50 % at 2 ms).
const TURN: Duration = Duration::from_millis(2);

/// A yield that returns this soon found nobody else.
const NOBODY: Duration = Duration::from_micros(50);

/// So many such yields in a row end the watch.
const QUIET_TURNS: u32 = 50;

/// So many times late within [`LATE_SPAN`] make the caller change CPUs, at most once in [`MOVE_PAUSE`].
const LATE_TIMES: u32 = 3;
const LATE_SPAN: Duration = Duration::from_millis(200);
const MOVE_PAUSE: Duration = Duration::from_secs(1);

/// Stack of a worker: kernels keep their tiles in planned scratch, so frames are small.
const STACK_BYTES: usize = 256 * 1024;

type Job = *const (dyn Fn(usize) + Sync);

/// A value on cache lines of its own: two, because CPUs fetch them in pairs.
#[repr(align(128))]
struct Apart<T>(T);

struct Shared {
    job: Apart<UnsafeCell<Option<Job>>>,
    /// Odd: the number of the job that may be begun. Even: none.
    gate: Apart<AtomicU32>,
    /// Workers asleep on `gate`.
    asleep: Apart<AtomicU32>,
    /// The last job in which a worker had nothing left to do for as long as it spins while the caller was still at it.
    caller_late: Apart<AtomicU32>,
    slots: Box<[Apart<Slot>]>,
    stop: AtomicBool,
}

/// What one worker and the caller tell each other.
struct Slot {
    /// The number of the job the worker is in; plus one when it is done.
    state: AtomicU32,
    /// The caller sleeps until the worker is done.
    waited_for: AtomicBool,
    /// The caller had to wait for longer than it spins.
    late: AtomicBool,
    /// Somebody else wants the worker's CPU.
    contested: AtomicBool,
    /// The worker's thread id, 0 until it runs, and its CPU.
    thread: AtomicU32,
    cpu: AtomicUsize,
}

// SAFETY: `job` is written only while no worker is between entering and leaving a job, and read only there (see the
// head of this file). The pointee is Sync.
unsafe impl Sync for Shared {}
// SAFETY: as above; the raw pointer is dereferenced only during `lead`.
unsafe impl Send for Shared {}

/// Spins for a while.
struct Spin {
    turns: u32,
    budget: Duration,
    until: Option<Instant>,
}

impl Spin {
    fn new(budget: Duration) -> Spin {
        Spin { turns: 0, budget, until: None }
    }

    /// Spins once; `false` when the time is up. The clock is read only now and then.
    fn turn(&mut self) -> bool {
        spin_loop();
        self.turns += 1;
        if !self.turns.is_multiple_of(32) {
            return true;
        }
        let now = Instant::now();
        now < *self.until.get_or_insert(now + self.budget)
    }
}

impl Slot {
    /// Waits while `busy(state)`.
    fn wait_while(&self, busy: impl Fn(u32) -> bool) {
        let mut spin = Spin::new(CALLER_SPIN);
        loop {
            let state = self.state.load(Ordering::SeqCst);
            if !busy(state) {
                return;
            }
            if spin.turn() {
                continue;
            }
            self.late.store(true, Ordering::Relaxed);
            self.waited_for.store(true, Ordering::SeqCst);
            if self.state.load(Ordering::SeqCst) == state {
                futex::wait(&self.state, state);
            }
            self.waited_for.store(false, Ordering::SeqCst);
        }
    }

    fn leave(&self, done: u32) {
        self.state.store(done, Ordering::SeqCst);
        if self.waited_for.load(Ordering::SeqCst) {
            futex::wake(&self.state, 1);
        }
    }
}

/// A worker's watch over its CPU while somebody else wants it too.
#[derive(Default)]
struct Watch {
    /// When the current turn began; `None` while the CPU is the worker's own.
    turn: Option<Instant>,
    quiet_turns: u32,
}

impl Watch {
    /// Called when the worker was late: it has only just got its CPU back.
    fn begin(&mut self) {
        *self = Watch { turn: Some(Instant::now()), quiet_turns: 0 };
    }

    /// Called between jobs: yields when the turn is over.
    fn give_way(&mut self) {
        let Some(begun) = self.turn else { return };
        let before = Instant::now();
        if before - begun < TURN {
            return;
        }
        std::thread::yield_now();
        let after = Instant::now();
        self.quiet_turns = if after - before < NOBODY { self.quiet_turns + 1 } else { 0 };
        self.turn = (self.quiet_turns < QUIET_TURNS).then_some(after);
    }
}

/// The caller's CPU, and how often it was late there.
struct Place {
    cpu: usize,
    times: u32,
    first: Instant,
    moved: Option<Instant>,
}

impl Place {
    /// The caller was late once more; changes CPUs with a worker that has its own to itself if that was once too often.
    #[cold]
    fn late(&mut self, slots: &[Apart<Slot>]) {
        let now = Instant::now();
        if self.times == 0 || now - self.first > LATE_SPAN {
            (self.times, self.first) = (0, now);
        }
        self.times += 1;
        if self.times < LATE_TIMES || self.moved.is_some_and(|moved| now - moved < MOVE_PAUSE) {
            return;
        }
        (self.times, self.moved) = (0, Some(now));
        let quiet = |slot: &&Slot| !slot.contested.load(Ordering::Relaxed) && slot.thread.load(Ordering::Relaxed) != 0;
        let Some(slot) = slots.iter().map(|slot| &slot.0).find(quiet) else { return };
        let theirs = slot.cpu.load(Ordering::Relaxed);
        // A CPU may have been taken from this process since; then everybody stays where the kernel put them.
        if cpu::pin_to(theirs).is_ok() {
            let _ = cpu::pin_thread(slot.thread.load(Ordering::Relaxed), self.cpu);
            slot.cpu.store(self.cpu, Ordering::Relaxed);
            slot.late.store(true, Ordering::Relaxed);
            self.cpu = theirs;
        }
    }
}

/// Pinned workers.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    busy: AtomicBool,
    place: Mutex<Place>,
}

impl Pool {
    /// Starts one worker per CPU of `cpus` but the first, which the calling thread is pinned to.
    ///
    /// # Errors
    /// A CPU that cannot be had (exit 6), or a thread that cannot be started.
    pub fn start(cpus: &[usize]) -> Result<Pool> {
        let pin =
            |cpu: usize| cpu::pin_to(cpu).map_err(|e| Error::new(Exit::Cpu, e).at(format_args!("pin to CPU {cpu}")));
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
        let place = Place { cpu: cpus.first().copied().unwrap_or(0), times: 0, first: Instant::now(), moved: None };
        let mut pool = Pool { shared, threads: Vec::new(), busy: AtomicBool::new(false), place: Mutex::new(place) };
        for (index, &cpu) in cpus.iter().enumerate().skip(1) {
            let shared = Arc::clone(&pool.shared);
            let builder = std::thread::Builder::new().name(format!("worker-{index}")).stack_size(STACK_BYTES);
            let thread = builder.spawn(move || {
                // Pinning is an optimisation; the caller's own CPU was pinned with its error reported.
                let _ = cpu::pin_to(cpu);
                shared.slots[index - 1].0.thread.store(cpu::thread_id(), Ordering::Relaxed);
                worker(&shared, index);
            });
            pool.threads.push(thread.map_err(|e| Error::new(Exit::Unexpected, e).at("start a worker thread"))?);
        }
        if let Some(&first) = cpus.first() {
            pin(first)?;
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
        let erased: Job = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), Job>(job) };
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
            && let Ok(mut place) = self.place.lock()
        {
            place.late(&shared.slots);
        }
        self.busy.store(false, Ordering::Release);
    }
}

impl Team for Pool {
    fn size(&self) -> usize {
        self.threads.len() + 1
    }

    fn run(&self, job: &(dyn Fn(usize) + Sync)) {
        self.lead(job, true);
    }

    fn drain(&self, job: &(dyn Fn(usize) + Sync)) {
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
        slot.contested.store(watch.turn.is_some(), Ordering::Relaxed);
    }
}

impl Drop for Pool {
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
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    fn three_workers() -> Pool {
        let cpus = cpu::allowed().unwrap();
        let wanted: Vec<usize> = (0..3).map(|i| cpus[i % cpus.len()]).collect();
        Pool::start(&wanted).unwrap()
    }

    #[test]
    fn a_pool_that_has_started_has_all_its_workers() {
        for _ in 0..50 {
            let pool = three_workers();
            assert!(pool.shared.slots.iter().all(|slot| slot.0.thread.load(Ordering::Relaxed) != 0));
        }
    }

    #[test]
    fn every_worker_runs_every_job_once() {
        let pool = three_workers();
        let counts: Vec<AtomicUsize> = (0..3).map(|_| AtomicUsize::new(0)).collect();
        for round in 0..2000 {
            pool.run(&|worker| {
                counts[worker].fetch_add(1, Ordering::Relaxed);
            });
            if round % 500 == 0 {
                // Long enough for the workers to fall asleep.
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 2000));
    }

    #[test]
    fn drawn_work_is_done_once_and_seen_by_the_caller() {
        let pool = three_workers();
        let mut data = vec![0u32; 1000];
        for round in 0..2000 {
            let next = AtomicUsize::new(0);
            let cells: Vec<AtomicU32> = data.iter().map(|&x| AtomicU32::new(x)).collect();
            pool.drain(&|_| {
                while let Some(cell) = cells.get(next.fetch_add(1, Ordering::Relaxed)) {
                    cell.store(cell.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                }
            });
            data = cells.into_iter().map(AtomicU32::into_inner).collect();
            assert!(data.iter().all(|&x| x == round + 1), "round {round}");
            if round % 500 == 0 {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    #[test]
    fn a_worker_without_a_cpu_is_not_waited_for() {
        let cpu = cpu::allowed().unwrap()[0];
        std::thread::spawn(move || {
            // The worker gets the CPU only when the caller sleeps or its time slice is over.
            let pool = Pool::start(&[cpu, cpu]).unwrap();
            let begun = Instant::now();
            (0..20_000).for_each(|_| pool.drain(&|_| ()));
            let taken = begun.elapsed();
            assert!(taken < 20_000 * CALLER_SPIN / 4, "{taken:?}");
        })
        .join()
        .unwrap();
    }
}
