//! The counter between clients and the engine: requests go in, events come out. Nothing here allocates on the engine's side.
//!
//! There are as many *doors* as requests can be in flight: one for each slot and each place in the queue. A door belongs to
//! a [`Ticket`] from `submit` on; it is free again when both the ticket has been dropped and the engine is done with it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use heapless::Deque;

use super::request::{
    Event, Finish, Generate, Limits, Output, QUEUE_MAX, Request, SLOTS_MAX, SubmitError, TOP_LOGPROBS_MAX, Timings,
};
use crate::sampling::Sampler;
use crate::sys::futex;

/// Events that wait for their client: a slot whose client is further behind pauses. Half a second of the fastest decode,
/// 6 KiB a door.
pub const EVENTS_MAX: usize = 32;

/// How often an engine with nothing to do says that it is alive.
const IDLE_BEAT: Duration = Duration::from_secs(1);

const _: () = assert!(TOP_LOGPROBS_MAX <= u8::MAX as usize && SLOTS_MAX + QUEUE_MAX <= u16::MAX as usize);

/// Locks; what the lock guards is consistent between any two statements here, so a panic elsewhere spoils nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a door is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nobody's.
    Free,
    /// Its request waits.
    Queued,
    /// The engine has its request.
    Running,
    /// The engine is done with it.
    Done,
}

struct DoorState {
    phase: Phase,
    /// There is a ticket.
    held: bool,
    request: Option<Box<Request>>,
    /// Draws the tokens of a request that waits.
    sampler: Option<Sampler>,
    /// The vector of a request for one: zeros at first.
    embedding: Option<Box<[f32]>>,
    /// Allowed tokens, a bit each; of constrained requests.
    mask: Option<Box<[u32]>>,
    /// The mask is that of the next token.
    mask_ready: bool,
    events: Deque<Event, EVENTS_MAX>,
    waker: Option<Waker>,
    /// The client has found no event and waits to be woken.
    waiting: bool,
    submitted: Instant,
}

impl DoorState {
    /// What was allocated on a client's thread, and is to be freed on one.
    fn take_buffers(&mut self) -> (Option<Box<Request>>, Option<Box<[u32]>>, Option<Box<[f32]>>) {
        (self.request.take(), self.mask.take(), self.embedding.take())
    }
}

struct Door {
    state: Mutex<DoorState>,
    /// The ticket has been dropped: the engine looks at it without the lock.
    gone: AtomicBool,
}

/// Doors nobody has, and those whose requests wait, oldest first.
struct Desk {
    free: Vec<u16>,
    queue: VecDeque<u16>,
    stopping: bool,
}

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

/// Counters that the engine writes and anybody reads.
pub(super) struct Counters {
    start: Instant,
    /// A [`SlotState`] in the high bits, tokens in the context in the low 32.
    pub(super) slots: [AtomicU64; SLOTS_MAX],
    pub(super) tokens_in: AtomicU64,
    pub(super) tokens_reused: AtomicU64,
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
}

impl Counters {
    fn new() -> Counters {
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
        }
    }

    /// A sign of life.
    pub(super) fn beat(&self) {
        self.beat.store(self.start.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }

    pub(super) fn set_slot(&self, slot: usize, state: SlotState, tokens: usize) {
        self.slots[slot].store((state as u64) << 32 | tokens as u64, Ordering::Relaxed);
    }
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
}

/// What clients and the engine share.
pub(super) struct Shared {
    limits: Limits,
    doors: Box<[Door]>,
    desk: Mutex<Desk>,
    queue_len: AtomicU32,
    stopping: AtomicBool,
    /// Counts what happens on the clients' side; the engine sleeps on it.
    bell: AtomicU32,
    asleep: AtomicBool,
    pub(super) counters: Counters,
}

/// A request that the engine has taken out of the queue.
#[derive(Debug)]
pub(super) struct Job {
    pub door: u16,
    pub request: Box<Request>,
    /// Draws its tokens, if there are to be any.
    pub sampler: Option<Sampler>,
    pub submitted: Instant,
}

/// The way to the engine thread.
#[derive(Clone)]
pub struct EngineHandle {
    shared: Arc<Shared>,
}

/// One request in flight. Dropping it cancels the request: its slot is free within one step.
pub struct Ticket {
    shared: Arc<Shared>,
    door: u16,
    /// How it ended.
    finish: Option<Finish>,
}

impl fmt::Debug for EngineHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineHandle").field("limits", &self.shared.limits).finish_non_exhaustive()
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("door", &self.door).finish_non_exhaustive()
    }
}

impl EngineHandle {
    /// What the engine can do for one request.
    pub fn limits(&self) -> Limits {
        self.shared.limits
    }

    /// Puts a request into the queue.
    ///
    /// # Errors
    /// A full queue, an engine that stops, or a request that cannot be served.
    pub fn submit(&self, request: Box<Request>) -> Result<Ticket, SubmitError> {
        let shared = &self.shared;
        let limits = &shared.limits;
        let sampler = match limits.check(&request) {
            Ok(sampler) => sampler,
            Err(error) => return Err(SubmitError::Invalid(request, error)),
        };
        let (mut mask, mut embedding) = (None, None);
        match &request.output {
            Output::Tokens(Generate { constraint: false, .. }) => {}
            Output::Tokens(_) => mask = Some(vec![0; limits.n_vocab.div_ceil(32)].into_boxed_slice()),
            Output::Embedding(_) => embedding = Some(vec![0.0; limits.n_embd].into_boxed_slice()),
        }
        let mut desk = lock(&shared.desk);
        if desk.stopping {
            return Err(SubmitError::Stopping(request));
        }
        if desk.queue.len() >= limits.queue {
            return Err(SubmitError::Busy(request));
        }
        // Clients that have gone are not done with until the engine's next step; their doors count as taken.
        let Some(door) = desk.free.pop() else { return Err(SubmitError::Busy(request)) };
        let old;
        {
            let mut state = lock(&shared.doors[usize::from(door)].state);
            old = state.take_buffers();
            (state.request, state.sampler, state.mask, state.embedding) = (Some(request), sampler, mask, embedding);
            (state.phase, state.held, state.mask_ready, state.waiting) = (Phase::Queued, true, false, false);
            state.events.clear();
            state.submitted = Instant::now();
        }
        shared.doors[usize::from(door)].gone.store(false, Ordering::Relaxed);
        desk.queue.push_back(door);
        shared.queue_len.store(desk.queue.len() as u32, Ordering::Relaxed);
        drop(desk);
        drop(old);
        shared.ring();
        Ok(Ticket { shared: Arc::clone(shared), door, finish: None })
    }

    /// What the engine is doing.
    pub fn stats(&self) -> Stats {
        let counters = &self.shared.counters;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let slots = std::array::from_fn(|slot| {
            let word = load(&counters.slots[slot]);
            (SlotState::ALL[(word >> 32) as usize], word as u32)
        });
        let now = counters.start.elapsed();
        Stats {
            slots,
            n_slots: self.shared.limits.slots,
            queue_len: self.shared.queue_len.load(Ordering::Relaxed) as usize,
            tokens_in: load(&counters.tokens_in),
            tokens_reused: load(&counters.tokens_reused),
            tokens_out: load(&counters.tokens_out),
            steps: load(&counters.steps),
            finished: load(&counters.finished),
            cancelled: load(&counters.cancelled),
            failed: load(&counters.failed),
            since_beat: now.saturating_sub(Duration::from_nanos(load(&counters.beat))),
            kv_pages_used: load(&counters.kv_pages_used),
            kv_pages_cached: load(&counters.kv_pages_cached),
            kv_pages: load(&counters.kv_pages),
        }
    }

    /// No request is taken from here on; the engine ends when those it has are finished.
    pub fn stop(&self) {
        lock(&self.shared.desk).stopping = true;
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.ring();
    }
}

impl Ticket {
    /// The next event, or the promise to wake `cx` when there is one. `None` after [`Event::Finished`].
    pub fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        if self.finish.is_some() {
            return Poll::Ready(None);
        }
        let mut state = lock(&self.shared.doors[usize::from(self.door)].state);
        let was_full = state.events.len() + 2 > EVENTS_MAX;
        if let Some(event) = state.events.pop_front() {
            drop(state);
            if let Event::Finished(finish, _) = event {
                self.finish = Some(finish);
            }
            if was_full {
                self.shared.ring();
            }
            return Poll::Ready(Some(event));
        }
        if state.waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            state.waker = Some(cx.waker().clone());
        }
        state.waiting = true;
        Poll::Pending
    }

    /// The next event; blocks the thread.
    pub fn wait_event(&mut self) -> Option<Event> {
        struct Unpark(std::thread::Thread);
        impl std::task::Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut cx = Context::from_waker(&waker);
        loop {
            match self.poll_event(&mut cx) {
                Poll::Ready(event) => return event,
                Poll::Pending => std::thread::park(),
            }
        }
    }

    /// The vector that was asked for, once, after [`Finish::Embedded`]; `None` before.
    pub fn take_embedding(&mut self) -> Option<Box<[f32]>> {
        if self.finish != Some(Finish::Embedded) {
            return None;
        }
        lock(&self.shared.doors[usize::from(self.door)].state).embedding.take()
    }

    /// Says which tokens may come next: bit `id % 32` of word `id / 32` for token `id`, `n_vocab.div_ceil(32)` words. The
    /// engine samples no token of a constrained request before its mask is there.
    ///
    /// # Panics
    /// If the request is not constrained, or `allowed` has another length.
    pub fn set_mask(&self, allowed: &[u32]) {
        let mut state = lock(&self.shared.doors[usize::from(self.door)].state);
        // While the engine uses the mask it is not here, and asks for no other.
        let mask = state.mask.as_mut().expect("a mask is set for the next token of a constrained request");
        mask.copy_from_slice(allowed);
        state.mask_ready = true;
        drop(state);
        self.shared.ring();
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let shared = &*self.shared;
        let door = &shared.doors[usize::from(self.door)];
        let mut desk = lock(&shared.desk);
        let queued = desk.queue.iter().position(|&queued| queued == self.door);
        if let Some(at) = queued {
            desk.queue.remove(at);
            shared.queue_len.store(desk.queue.len() as u32, Ordering::Relaxed);
            shared.counters.cancelled.fetch_add(1, Ordering::Relaxed);
        }
        let mut state = lock(&door.state);
        state.held = false;
        // The client's waker goes with the client, on its own thread.
        let waker = state.waker.take();
        let done = queued.is_some() || state.phase == Phase::Done;
        let left = done.then(|| state.take_buffers());
        if done {
            state.phase = Phase::Free;
            desk.free.push(self.door);
        } else {
            door.gone.store(true, Ordering::Release);
        }
        drop(state);
        drop(desk);
        drop((waker, left));
        if !done {
            shared.ring();
        }
    }
}

impl Shared {
    /// The counter, seen from both sides.
    pub(super) fn new(limits: Limits) -> (Arc<Shared>, EngineHandle) {
        assert!((1..=SLOTS_MAX).contains(&limits.slots) && (1..=QUEUE_MAX).contains(&limits.queue));
        let n_doors = limits.slots + limits.queue;
        let door = |_| Door {
            state: Mutex::new(DoorState {
                phase: Phase::Free,
                held: false,
                request: None,
                sampler: None,
                embedding: None,
                mask: None,
                mask_ready: false,
                events: Deque::new(),
                waker: None,
                waiting: false,
                submitted: Instant::now(),
            }),
            gone: AtomicBool::new(false),
        };
        let mut queue = VecDeque::new();
        queue.reserve_exact(limits.queue);
        let shared = Arc::new(Shared {
            limits,
            doors: (0..n_doors).map(door).collect(),
            // As many as there are doors, so that pushing never allocates.
            desk: Mutex::new(Desk { free: (0..n_doors as u16).rev().collect(), queue, stopping: false }),
            queue_len: AtomicU32::new(0),
            stopping: AtomicBool::new(false),
            bell: AtomicU32::new(0),
            asleep: AtomicBool::new(false),
            counters: Counters::new(),
        });
        (Arc::clone(&shared), EngineHandle { shared })
    }

    /// Tells the engine that something has happened.
    fn ring(&self) {
        self.bell.fetch_add(1, Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) {
            futex::wake(&self.bell, 1);
        }
    }

    /// How often the bell has rung: for [`Shared::sleep`].
    pub(super) fn rung(&self) -> u32 {
        self.bell.load(Ordering::SeqCst)
    }

    /// Sleeps until the bell rings once more than `rung` times, and not for long.
    pub(super) fn sleep(&self, rung: u32) {
        self.asleep.store(true, Ordering::SeqCst);
        if self.rung() == rung {
            futex::wait_for(&self.bell, rung, IDLE_BEAT);
        }
        self.asleep.store(false, Ordering::SeqCst);
    }

    /// No request will come any more.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire) && self.queue_len.load(Ordering::Relaxed) == 0
    }

    /// The oldest request of the queue.
    pub(super) fn next_job(&self) -> Option<Job> {
        if self.queue_len.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut desk = lock(&self.desk);
        let door = desk.queue.pop_front()?;
        self.queue_len.store(desk.queue.len() as u32, Ordering::Relaxed);
        let mut state = lock(&self.doors[usize::from(door)].state);
        drop(desk);
        state.phase = Phase::Running;
        let request = state.request.take().expect("a queued door holds its request");
        Some(Job { door, request, sampler: state.sampler.take(), submitted: state.submitted })
    }

    /// The client has gone.
    pub(super) fn is_gone(&self, door: u16) -> bool {
        self.doors[usize::from(door)].gone.load(Ordering::Acquire)
    }

    /// How many tokens there is room for, and the end after them.
    pub(super) fn room(&self, door: u16) -> usize {
        (EVENTS_MAX - 1).saturating_sub(lock(&self.doors[usize::from(door)].state).events.len())
    }

    /// Takes the mask of the next token, if it is there; it goes back by [`Shared::return_mask`].
    pub(super) fn take_mask(&self, door: u16) -> Option<Box<[u32]>> {
        let mut state = lock(&self.doors[usize::from(door)].state);
        if !std::mem::take(&mut state.mask_ready) {
            return None;
        }
        state.mask.take()
    }

    /// Gives the mask back, before the event that lets the client set the next one.
    pub(super) fn return_mask(&self, door: u16, mask: Box<[u32]>) {
        lock(&self.doors[usize::from(door)].state).mask = Some(mask);
    }

    /// Takes the vector of a request for one, zeros; it goes back by [`Shared::return_embedding`].
    pub(super) fn take_embedding(&self, door: u16) -> Option<Box<[f32]>> {
        lock(&self.doors[usize::from(door)].state).embedding.take()
    }

    /// Gives the vector back, before the end of the request is told.
    pub(super) fn return_embedding(&self, door: u16, embedding: Box<[f32]>) {
        lock(&self.doors[usize::from(door)].state).embedding = Some(embedding);
    }

    /// Hands an event to the client.
    ///
    /// # Panics
    /// If there is no room.
    pub(super) fn send(&self, door: u16, event: Event) {
        let mut state = lock(&self.doors[usize::from(door)].state);
        assert!(state.events.push_back(event).is_ok(), "the engine looks for room before it makes an event");
        if std::mem::take(&mut state.waiting)
            && let Some(waker) = &state.waker
        {
            waker.wake_by_ref();
        }
    }

    /// Hands the last event to the client, and everything that was the client's back.
    pub(super) fn finish(&self, Job { door, request, .. }: Job, finish: Finish, timings: Timings) {
        let counters = &self.counters;
        let counter = match finish {
            Finish::Cancelled => &counters.cancelled,
            Finish::Failed(_) => &counters.failed,
            Finish::EndOfGeneration | Finish::Length | Finish::Embedded => &counters.finished,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        if finish != Finish::Cancelled {
            self.send(door, Event::Finished(finish, timings));
        }
        let mut desk = lock(&self.desk);
        let mut state = lock(&self.doors[usize::from(door)].state);
        // Dropped by the ticket, or by the next one to get this door.
        state.request = Some(request);
        state.phase = Phase::Done;
        if !state.held {
            state.phase = Phase::Free;
            desk.free.push(door);
        }
    }
}

#[cfg(test)]
mod tests;
