//! What one worker and the caller tell each other, and how they wait for each other.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::sys::futex;

/// How long the caller spins for workers that still hold a block: several times what a block takes. A worker that
/// takes longer counts as late.
pub(super) const CALLER_SPIN: Duration = Duration::from_micros(300);

/// A value on cache lines of its own: two, because CPUs fetch them in pairs.
#[repr(align(128))]
pub(super) struct Apart<T>(pub(super) T);

/// What one worker and the caller tell each other.
pub(super) struct Slot {
    /// The number of the job the worker is in; plus one when it is done.
    pub(super) state: AtomicU32,
    /// The caller sleeps until the worker is done.
    pub(super) waited_for: AtomicBool,
    /// The caller had to wait for longer than it spins.
    pub(super) late: AtomicBool,
    /// Somebody else wants the worker's CPU.
    pub(super) contested: AtomicBool,
    /// The worker's thread id, 0 until it runs, and its CPU.
    pub(super) thread: AtomicU32,
    pub(super) cpu: AtomicUsize,
}

impl Slot {
    /// Waits while `busy(state)`.
    pub(super) fn wait_while(&self, busy: impl Fn(u32) -> bool) {
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

    pub(super) fn leave(&self, done: u32) {
        self.state.store(done, Ordering::SeqCst);
        if self.waited_for.load(Ordering::SeqCst) {
            futex::wake(&self.state, 1);
        }
    }
}

/// Spins for a while.
pub(super) struct Spin {
    turns: u32,
    budget: Duration,
    until: Option<Instant>,
}

impl Spin {
    pub(super) fn new(budget: Duration) -> Spin {
        Spin { turns: 0, budget, until: None }
    }

    /// Spins once; `false` when the time is up. The clock is read only now and then.
    pub(super) fn turn(&mut self) -> bool {
        spin_loop();
        self.turns += 1;
        if !self.turns.is_multiple_of(32) {
            return true;
        }
        let now = Instant::now();
        now < *self.until.get_or_insert(now + self.budget)
    }
}
