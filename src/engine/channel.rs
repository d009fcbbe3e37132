//! The channel between clients and the engine: requests go in, events come out. Nothing here allocates on the engine's side.
//!
//! There are as many *mailboxes* as requests can be in flight: one for each slot and each place in the queue. A mailbox belongs
//! to a [`Ticket`](super::Ticket) from the submission on; it is free again when both the ticket has been dropped and the engine
//! is done with it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use heapless::Deque;

use super::request::{
    Event, Finish, QUEUE_MAX, Request, RequestLimits, SLOTS_MAX, Scores, SubmitError, TOP_LOGPROBS_MAX, Timings,
};
use super::stats::Counters;
use crate::sampling::Sampler;
use crate::sys::futex;

/// Events that wait for their client: a slot whose client is further behind pauses. Half a second of the fastest decode,
/// 6 KiB a mailbox.
pub const EVENTS_MAX: usize = 32;

/// How often an engine with nothing to do says that it is alive.
const IDLE_BEAT: Duration = Duration::from_secs(1);

const _: () = assert!(TOP_LOGPROBS_MAX <= u8::MAX as usize && SLOTS_MAX + QUEUE_MAX <= u16::MAX as usize);

/// Locks; what the lock guards is consistent between any two statements here, so a panic elsewhere spoils nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a mailbox is at.
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

/// What a client brings for its request, and frees again: allocated here so that the engine need not.
#[derive(Debug, Default)]
pub(super) struct ClientBuffers {
    pub request: Option<Box<Request>>,
    /// Allowed tokens, a bit each; of constrained requests.
    pub mask: Option<Box<[u32]>>,
    /// The vector of a request for one: zeros at first.
    pub embedding: Option<Box<[f32]>>,
    /// The logprobs of the prompt, where they are wanted.
    pub scores: Option<Scores>,
}

struct MailboxState {
    phase: Phase,
    has_ticket: bool,
    buffers: ClientBuffers,
    /// Draws the tokens of a request that waits.
    sampler: Option<Sampler>,
    /// The mask is that of the next token.
    is_mask_ready: bool,
    events: Deque<Event, EVENTS_MAX>,
    waker: Option<Waker>,
    /// The client has found no event and waits to be woken.
    is_client_waiting: bool,
    submitted: Instant,
}

impl MailboxState {
    fn wake_client(&mut self) {
        if std::mem::take(&mut self.is_client_waiting)
            && let Some(waker) = &self.waker
        {
            waker.wake_by_ref();
        }
    }
}

struct Mailbox {
    state: Mutex<MailboxState>,
    /// The ticket has been dropped: the engine looks at it without the lock.
    is_cancelled: AtomicBool,
    /// Tokens of the prompt that are in the cache.
    progress: AtomicU32,
}

impl Mailbox {
    fn new() -> Mailbox {
        Mailbox {
            state: Mutex::new(MailboxState {
                phase: Phase::Free,
                has_ticket: false,
                buffers: ClientBuffers::default(),
                sampler: None,
                is_mask_ready: false,
                events: Deque::new(),
                waker: None,
                is_client_waiting: false,
                submitted: Instant::now(),
            }),
            is_cancelled: AtomicBool::new(false),
            progress: AtomicU32::new(0),
        }
    }
}

/// Mailboxes nobody has, and those whose requests wait, oldest first.
struct Queue {
    free: Vec<u16>,
    waiting: VecDeque<u16>,
    is_stopping: bool,
}

/// What clients and the engine share.
pub(super) struct Channel {
    pub(super) limits: RequestLimits,
    pub(super) counters: Counters,
    mailboxes: Box<[Mailbox]>,
    queue: Mutex<Queue>,
    queue_len: AtomicU32,
    is_stopping: AtomicBool,
    pub(super) bell: Arc<Bell>,
}

/// What wakes the engine's thread: one for all channels that it looks at.
#[derive(Default)]
pub(super) struct Bell {
    /// Counts what happens on the clients' side; the engine sleeps on it.
    rings: AtomicU32,
    is_asleep: AtomicBool,
}

impl Bell {
    /// Tells the engine that something has happened.
    fn ring(&self) {
        self.rings.fetch_add(1, Ordering::SeqCst);
        if self.is_asleep.load(Ordering::SeqCst) {
            futex::wake(&self.rings, 1);
        }
    }

    /// How often it has rung: for [`Bell::sleep`].
    pub(super) fn rings(&self) -> u32 {
        self.rings.load(Ordering::SeqCst)
    }

    /// Sleeps until it has rung more than `seen` times, and not for long.
    pub(super) fn sleep(&self, seen: u32) {
        self.is_asleep.store(true, Ordering::SeqCst);
        if self.rings() == seen {
            futex::wait_for(&self.rings, seen, IDLE_BEAT);
        }
        self.is_asleep.store(false, Ordering::SeqCst);
    }
}

/// A request that the engine has taken out of the queue.
#[derive(Debug)]
pub(super) struct Submission {
    pub mailbox: u16,
    pub request: Box<Request>,
    /// Draws its tokens, if there are to be any.
    pub sampler: Option<Sampler>,
    pub submitted: Instant,
}

impl Channel {
    pub(super) fn new(limits: RequestLimits, bell: Arc<Bell>) -> Channel {
        assert!((1..=SLOTS_MAX).contains(&limits.slots) && (1..=QUEUE_MAX).contains(&limits.queue));
        let n_mailboxes = limits.slots + limits.queue;
        let mut waiting = VecDeque::new();
        waiting.reserve_exact(limits.queue);
        Channel {
            limits,
            counters: Counters::new(),
            mailboxes: (0..n_mailboxes).map(|_| Mailbox::new()).collect(),
            // As many as there are mailboxes, so that pushing never allocates.
            queue: Mutex::new(Queue { free: (0..n_mailboxes as u16).rev().collect(), waiting, is_stopping: false }),
            queue_len: AtomicU32::new(0),
            is_stopping: AtomicBool::new(false),
            bell,
        }
    }

    fn state(&self, mailbox: u16) -> MutexGuard<'_, MailboxState> {
        lock(&self.mailboxes[usize::from(mailbox)].state)
    }

    fn set_queue_len(&self, queue: &Queue) {
        self.queue_len.store(queue.waiting.len() as u32, Ordering::Relaxed);
    }

    /// Requests that wait for a slot.
    pub(super) fn queue_len(&self) -> usize {
        self.queue_len.load(Ordering::Relaxed) as usize
    }
}

/// The clients' side.
impl Channel {
    /// Puts a request that has been checked into the queue; which mailbox it got.
    ///
    /// # Errors
    /// A full queue, or an engine that stops.
    pub(super) fn submit(
        &self,
        request: Box<Request>,
        sampler: Option<Sampler>,
        buffers: ClientBuffers,
    ) -> Result<u16, SubmitError> {
        let mut queue = lock(&self.queue);
        if queue.is_stopping {
            return Err(SubmitError::Stopping(request));
        }
        if queue.waiting.len() >= self.limits.queue {
            return Err(SubmitError::Busy(request));
        }
        // Clients that have gone are not done with until the engine's next step; their mailboxes count as taken.
        let Some(mailbox) = queue.free.pop() else { return Err(SubmitError::Busy(request)) };
        let old;
        {
            let mut state = self.state(mailbox);
            old = std::mem::replace(&mut state.buffers, ClientBuffers { request: Some(request), ..buffers });
            (state.phase, state.has_ticket, state.sampler) = (Phase::Queued, true, sampler);
            (state.is_mask_ready, state.is_client_waiting) = (false, false);
            state.events.clear();
            state.submitted = Instant::now();
        }
        self.mailboxes[usize::from(mailbox)].is_cancelled.store(false, Ordering::Relaxed);
        self.mailboxes[usize::from(mailbox)].progress.store(0, Ordering::Relaxed);
        queue.waiting.push_back(mailbox);
        self.set_queue_len(&queue);
        drop(queue);
        drop(old);
        self.bell.ring();
        Ok(mailbox)
    }

    /// No request is taken from here on.
    pub(super) fn stop(&self) {
        lock(&self.queue).is_stopping = true;
        self.is_stopping.store(true, Ordering::Release);
        self.bell.ring();
    }

    /// The next event, or the promise to wake `cx` when there is one.
    pub(super) fn poll_event(&self, mailbox: u16, cx: &mut Context<'_>) -> Poll<Event> {
        let mut state = self.state(mailbox);
        let was_full = state.events.len() + 2 > EVENTS_MAX;
        if let Some(event) = state.events.pop_front() {
            drop(state);
            if was_full {
                self.bell.ring();
            }
            return Poll::Ready(event);
        }
        if state.waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            state.waker = Some(cx.waker().clone());
        }
        state.is_client_waiting = true;
        Poll::Pending
    }

    /// Tokens of the prompt that are in the cache.
    pub(super) fn progress(&self, mailbox: u16) -> u32 {
        self.mailboxes[usize::from(mailbox)].progress.load(Ordering::Relaxed)
    }

    /// The mask of the next token.
    ///
    /// # Panics
    /// If the request is not constrained, or `allowed` has another length.
    pub(super) fn set_mask(&self, mailbox: u16, allowed: &[u32]) {
        let mut state = self.state(mailbox);
        // While the engine uses the mask it is not here, and asks for no other.
        let mask = state.buffers.mask.as_mut().expect("a mask is set for the next token of a constrained request");
        mask.copy_from_slice(allowed);
        state.is_mask_ready = true;
        drop(state);
        self.bell.ring();
    }

    /// The client is done with its mailbox, whose request is cancelled if it has not come to its end.
    pub(super) fn close(&self, mailbox: u16) {
        let mut queue = lock(&self.queue);
        let queued = queue.waiting.iter().position(|&queued| queued == mailbox);
        if let Some(at) = queued {
            queue.waiting.remove(at);
            self.set_queue_len(&queue);
            self.counters.cancelled.fetch_add(1, Ordering::Relaxed);
        }
        let mut state = self.state(mailbox);
        state.has_ticket = false;
        // The client's waker goes with the client, on its own thread.
        let waker = state.waker.take();
        let is_done = queued.is_some() || state.phase == Phase::Done;
        let left = is_done.then(|| std::mem::take(&mut state.buffers));
        if is_done {
            state.phase = Phase::Free;
            queue.free.push(mailbox);
        } else {
            self.mailboxes[usize::from(mailbox)].is_cancelled.store(true, Ordering::Release);
        }
        drop(state);
        drop(queue);
        drop((waker, left));
        if !is_done {
            self.bell.ring();
        }
    }
}

/// The engine's side.
impl Channel {
    /// No request will come any more.
    pub(super) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire) && self.queue_len() == 0
    }

    /// The oldest request of the queue.
    pub(super) fn next_submission(&self) -> Option<Submission> {
        if self.queue_len() == 0 {
            return None;
        }
        let mut queue = lock(&self.queue);
        let mailbox = queue.waiting.pop_front()?;
        self.set_queue_len(&queue);
        let mut state = self.state(mailbox);
        drop(queue);
        state.phase = Phase::Running;
        let request = state.buffers.request.take().expect("the mailbox of a queued request holds it");
        Some(Submission { mailbox, request, sampler: state.sampler.take(), submitted: state.submitted })
    }

    /// The client has gone.
    pub(super) fn is_cancelled(&self, mailbox: u16) -> bool {
        self.mailboxes[usize::from(mailbox)].is_cancelled.load(Ordering::Acquire)
    }

    /// How many tokens there is room for, and the end after them.
    pub(super) fn room(&self, mailbox: u16) -> usize {
        (EVENTS_MAX - 1).saturating_sub(self.state(mailbox).events.len())
    }

    /// Takes the mask of the next token, if it is there; it goes back by [`Channel::return_mask`].
    pub(super) fn take_mask(&self, mailbox: u16) -> Option<Box<[u32]>> {
        let mut state = self.state(mailbox);
        if !std::mem::take(&mut state.is_mask_ready) {
            return None;
        }
        state.buffers.mask.take()
    }

    /// Gives the mask back, before the event that lets the client set the next one.
    pub(super) fn return_mask(&self, mailbox: u16, mask: Box<[u32]>) {
        self.state(mailbox).buffers.mask = Some(mask);
    }

    /// Takes the vector of a request for one; it goes back by [`Channel::return_embedding`]. The client takes it, too.
    pub(super) fn take_embedding(&self, mailbox: u16) -> Option<Box<[f32]>> {
        self.state(mailbox).buffers.embedding.take()
    }

    /// Gives the vector back, before the end of the request is told.
    pub(super) fn return_embedding(&self, mailbox: u16, embedding: Box<[f32]>) {
        self.state(mailbox).buffers.embedding = Some(embedding);
    }

    /// The same for the logprobs of a prompt.
    pub(super) fn take_scores(&self, mailbox: u16) -> Option<Scores> {
        self.state(mailbox).buffers.scores.take()
    }

    /// Gives them back, before [`Event::Scored`].
    pub(super) fn return_scores(&self, mailbox: u16, scores: Scores) {
        self.state(mailbox).buffers.scores = Some(scores);
    }

    /// So many tokens of the prompt are in the cache; the client is woken to see it.
    pub(super) fn set_progress(&self, mailbox: u16, tokens: usize) {
        self.mailboxes[usize::from(mailbox)].progress.store(tokens as u32, Ordering::Relaxed);
        self.state(mailbox).wake_client();
    }

    /// Hands an event to the client.
    ///
    /// # Panics
    /// If there is no room.
    pub(super) fn send(&self, mailbox: u16, event: Event) {
        let mut state = self.state(mailbox);
        assert!(state.events.push_back(event).is_ok(), "the engine looks for room before it makes an event");
        state.wake_client();
    }

    /// Hands the last event to the client, and everything that was the client's back.
    pub(super) fn finish(&self, Submission { mailbox, request, .. }: Submission, finish: Finish, timings: Timings) {
        let counters = &self.counters;
        let counter = match finish {
            Finish::Cancelled => &counters.cancelled,
            Finish::Failed(_) => &counters.failed,
            Finish::EndOfGeneration | Finish::Length | Finish::Embedded => &counters.finished,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        if finish != Finish::Cancelled {
            self.send(mailbox, Event::Finished(finish, timings));
        }
        let mut queue = lock(&self.queue);
        let mut state = self.state(mailbox);
        // Dropped by the ticket, or by the next one to get this mailbox.
        state.buffers.request = Some(request);
        state.phase = Phase::Done;
        if !state.has_ticket {
            state.phase = Phase::Free;
            queue.free.push(mailbox);
        }
    }

    /// Mailboxes that nobody has.
    #[cfg(test)]
    pub(super) fn n_free(&self) -> usize {
        lock(&self.queue).free.len()
    }
}
