//! The way to the engine, for clients on any thread.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::channel::{Bell, Channel, ClientBuffers};
use super::request::{Event, Finish, Generate, OutputKind, Request, RequestLimits, Scores, SubmitError};
use super::stats::Stats;

/// The way to the engine thread.
#[derive(Clone)]
pub struct EngineHandle {
    channel: Arc<Channel>,
}

/// One request in flight. Dropping it cancels the request: its slot is free within one step.
pub struct Ticket {
    channel: Arc<Channel>,
    mailbox: u16,
    /// How it ended.
    finish: Option<Finish>,
}

impl fmt::Debug for EngineHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineHandle").field("limits", &self.channel.limits).finish_non_exhaustive()
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("mailbox", &self.mailbox).finish_non_exhaustive()
    }
}

impl EngineHandle {
    /// The engine's end of a new channel, and the clients'.
    pub(super) fn new(limits: RequestLimits, bell: Arc<Bell>) -> (Arc<Channel>, EngineHandle) {
        let channel = Arc::new(Channel::new(limits, bell));
        (Arc::clone(&channel), EngineHandle { channel })
    }

    /// What the engine can do for one request.
    pub fn limits(&self) -> RequestLimits {
        self.channel.limits
    }

    /// Puts a request into the queue.
    ///
    /// # Errors
    /// A full queue, an engine that stops, or a request that cannot be served.
    pub fn submit(&self, request: Box<Request>) -> Result<Ticket, SubmitError> {
        let limits = &self.channel.limits;
        let sampler = match limits.check(&request) {
            Ok(sampler) => sampler,
            Err(error) => return Err(SubmitError::Invalid(request, error)),
        };
        let scores = request.scores_stride().map(|stride| Scores {
            values: vec![(0, 0.0); (request.prompt.len() - 1) * stride].into_boxed_slice(),
            stride,
        });
        let mut buffers = ClientBuffers { scores, ..ClientBuffers::default() };
        match &request.output {
            OutputKind::Tokens(Generate { constraint: false, .. }) => {}
            OutputKind::Tokens(_) => buffers.mask = Some(vec![0; limits.n_vocab.div_ceil(32)].into_boxed_slice()),
            OutputKind::Embedding(_) => buffers.embedding = Some(vec![0.0; limits.n_embd].into_boxed_slice()),
        }
        let mailbox = self.channel.submit(request, sampler, buffers)?;
        Ok(Ticket { channel: Arc::clone(&self.channel), mailbox, finish: None })
    }

    /// What the engine is doing.
    pub fn stats(&self) -> Stats {
        self.channel.counters.snapshot(self.channel.limits.slots, self.channel.queue_len())
    }

    /// Requests that wait for a slot.
    pub fn queue_len(&self) -> usize {
        self.channel.queue_len()
    }

    /// No request is taken from here on; the engine ends when those it has are finished.
    pub fn stop(&self) {
        self.channel.stop();
    }
}

impl Ticket {
    /// The next event, or the promise to wake `cx` when there is one. `None` after [`Event::Finished`].
    pub fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        if self.finish.is_some() {
            return Poll::Ready(None);
        }
        self.channel.poll_event(self.mailbox, cx).map(|event| {
            if let Event::Finished(finish, _) = event {
                self.finish = Some(finish);
            }
            Some(event)
        })
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
        self.channel.take_embedding(self.mailbox)
    }

    /// The logprobs of the prompt's tokens, once, after [`Event::Scored`].
    pub fn take_scores(&mut self) -> Option<Scores> {
        self.channel.take_scores(self.mailbox)
    }

    /// Tokens of the prompt that are in the cache. Whoever waits for an event is woken when there are more.
    pub fn progress(&self) -> usize {
        self.channel.progress(self.mailbox) as usize
    }

    /// Says which tokens may come next: bit `id % 32` of word `id / 32` for token `id`, `n_vocab.div_ceil(32)` words. The
    /// engine samples no token of a constrained request before its mask is there.
    ///
    /// # Panics
    /// If the request is not constrained, or `allowed` has another length.
    pub fn set_mask(&self, allowed: &[u32]) {
        self.channel.set_mask(self.mailbox, allowed);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.channel.close(self.mailbox);
    }
}

#[cfg(test)]
mod tests;
