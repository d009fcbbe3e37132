//! A CPU that somebody else wants too: a worker there gives way of its own accord, the caller moves elsewhere.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::slot::{Apart, Slot};
use crate::sys::cpu;

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

/// A worker's watch over its CPU while somebody else wants it too.
#[derive(Default)]
pub(super) struct Watch {
    /// When the current turn began; `None` while the CPU is the worker's own.
    turn: Option<Instant>,
    quiet_turns: u32,
}

impl Watch {
    /// Called when the worker was late: it has only just got its CPU back.
    pub(super) fn begin(&mut self) {
        *self = Watch { turn: Some(Instant::now()), quiet_turns: 0 };
    }

    /// Somebody else wants the CPU.
    pub(super) fn is_on(&self) -> bool {
        self.turn.is_some()
    }

    /// Called between jobs: yields when the turn is over.
    pub(super) fn give_way(&mut self) {
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
pub(super) struct CallerCpu {
    cpu: usize,
    times: u32,
    first: Instant,
    moved: Option<Instant>,
}

impl CallerCpu {
    pub(super) fn new(cpu: usize) -> CallerCpu {
        CallerCpu { cpu, times: 0, first: Instant::now(), moved: None }
    }

    /// The caller was late once more; changes CPUs with a worker that has its own to itself if that was once too often.
    #[cold]
    pub(super) fn late(&mut self, slots: &[Apart<Slot>]) {
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
