//! What the engine is doing and has done, in counters that it writes and anybody reads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::request::SLOTS_MAX;

/// What a slot is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum SlotState {
    /// Nothing.
    #[default]
    Free,
    /// Reading a prompt.
    Prefill,
    /// Generating.
    Decode,
    /// Waiting for a mask, or for its client to take events.
    Waiting,
}

impl SlotState {
    const ALL: [SlotState; 4] = [SlotState::Free, SlotState::Prefill, SlotState::Decode, SlotState::Waiting];
}

/// What the engine is doing and has done, at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Stats {
    /// Each slot, and the tokens in its context; the first [`Stats::n_slots`] count.
    pub slots: [(SlotState, u32); SLOTS_MAX],
    /// How many slots there are.
    pub n_slots: usize,
    /// Requests that wait for a slot.
    pub queue_len: usize,
    /// Tokens of prompts that were computed.
    pub tokens_in: u64,
    /// Tokens of prompts that were in the cache already.
    pub tokens_reused: u64,
    /// Tokens generated.
    pub tokens_out: u64,
    /// Passes over the weights.
    pub steps: u64,
    /// Requests that came to their end.
    pub finished: u64,
    /// Requests whose client went away.
    pub cancelled: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Since the engine's last sign of life: a pass, or a look for work every second. What is longer than a pass of the
    /// largest chunk means that it hangs.
    pub since_beat: Duration,
    /// Pages of the KV cache that sequences have.
    pub kv_pages_used: u64,
    /// Pages that nobody has and whose prefix can be had again.
    pub kv_pages_cached: u64,
    /// Pages there are.
    pub kv_pages: u64,
    /// Checkpoints of recurrent states there are.
    pub checkpoints: u64,
    /// Checkpoints that hold a state.
    pub checkpoints_used: u64,
    /// Checkpoints that were left for later requests.
    pub checkpoints_taken: u64,
    /// Requests that went on from a checkpoint.
    pub checkpoint_hits: u64,
}

/// Counters that the engine writes and anybody reads.
pub(super) struct Counters {
    start: Instant,
    /// A [`SlotState`] in the high bits, tokens in the context in the low 32.
    slots: [AtomicU64; SLOTS_MAX],
    pub(super) tokens_in: AtomicU64,
    tokens_reused: AtomicU64,
    pub(super) tokens_out: AtomicU64,
    pub(super) steps: AtomicU64,
    pub(super) finished: AtomicU64,
    pub(super) cancelled: AtomicU64,
    pub(super) failed: AtomicU64,
    /// Nanoseconds from `start` to the last sign of life.
    beat: AtomicU64,
    pub(super) kv_pages_used: AtomicU64,
    pub(super) kv_pages_cached: AtomicU64,
    pub(super) kv_pages: AtomicU64,
    pub(super) checkpoints: AtomicU64,
    pub(super) checkpoints_used: AtomicU64,
    pub(super) checkpoints_taken: AtomicU64,
    checkpoint_hits: AtomicU64,
}

impl Counters {
    pub(super) fn new() -> Counters {
        let zero = || AtomicU64::new(0);
        Counters {
            start: Instant::now(),
            slots: [const { AtomicU64::new(0) }; SLOTS_MAX],
            tokens_in: zero(),
            tokens_reused: zero(),
            tokens_out: zero(),
            steps: zero(),
            finished: zero(),
            cancelled: zero(),
            failed: zero(),
            beat: zero(),
            kv_pages_used: zero(),
            kv_pages_cached: zero(),
            kv_pages: zero(),
            checkpoints: zero(),
            checkpoints_used: zero(),
            checkpoints_taken: zero(),
            checkpoint_hits: zero(),
        }
    }

    /// A sign of life.
    pub(super) fn beat(&self) {
        self.beat.store(self.start.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }

    pub(super) fn set_slot(&self, slot: usize, state: SlotState, tokens: usize) {
        self.slots[slot].store((state as u64) << 32 | tokens as u64, Ordering::Relaxed);
    }

    /// So many tokens of a prompt were in the cache already; `is_hit`: it is the request's first time, from a checkpoint.
    pub(super) fn count_reuse(&self, tokens: usize, is_hit: bool) {
        self.tokens_reused.fetch_add(tokens as u64, Ordering::Relaxed);
        self.checkpoint_hits.fetch_add(u64::from(is_hit), Ordering::Relaxed);
    }

    /// All of them now.
    pub(super) fn snapshot(&self, n_slots: usize, queue_len: usize) -> Stats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let slots = std::array::from_fn(|slot| {
            let word = load(&self.slots[slot]);
            (SlotState::ALL[(word >> 32) as usize], word as u32)
        });
        let now = self.start.elapsed();
        Stats {
            slots,
            n_slots,
            queue_len,
            tokens_in: load(&self.tokens_in),
            tokens_reused: load(&self.tokens_reused),
            tokens_out: load(&self.tokens_out),
            steps: load(&self.steps),
            finished: load(&self.finished),
            cancelled: load(&self.cancelled),
            failed: load(&self.failed),
            since_beat: now.saturating_sub(Duration::from_nanos(load(&self.beat))),
            kv_pages_used: load(&self.kv_pages_used),
            kv_pages_cached: load(&self.kv_pages_cached),
            kv_pages: load(&self.kv_pages),
            checkpoints: load(&self.checkpoints),
            checkpoints_used: load(&self.checkpoints_used),
            checkpoints_taken: load(&self.checkpoints_taken),
            checkpoint_hits: load(&self.checkpoint_hits),
        }
    }
}
