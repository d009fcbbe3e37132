//! The scheduler: requests from the counter, tokens back to it.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::handle::{Job, Shared, SlotState};
use super::request::{Event, Finish, Limits, Step, TOP_LOGPROBS_MAX, Timings};
use super::{Engine, EngineError, EngineHandle};
use crate::sampling::{Candidate, Sampler, Scratch, Steering, logprobs};

/// Serves requests until it is told to stop.
pub struct Scheduler<'a> {
    engine: Engine<'a>,
    shared: Arc<Shared>,
    /// Tokens that end generation, sorted.
    ends: Vec<u32>,
    /// Tokens whose keys and values the cache holds.
    history: Vec<u32>,
    generated: Vec<u32>,
    candidates: Vec<Candidate>,
    raw: Vec<f32>,
    seen: Vec<u32>,
}

impl<'a> Scheduler<'a> {
    /// A scheduler over `engine`, and the way to it. At most `queue` requests wait; `ends` are the tokens that end
    /// generation.
    pub fn new(engine: Engine<'a>, queue: usize, mut ends: Vec<u32>) -> (Scheduler<'a>, EngineHandle) {
        ends.sort_unstable();
        let n_vocab = engine.model().weights.n_vocab();
        let ctx = engine.ctx();
        let (shared, handle) = Shared::new(Limits { ctx, n_vocab, slots: 1, queue, kv_tokens: ctx });
        let scheduler = Scheduler {
            engine,
            shared,
            ends,
            history: Vec::with_capacity(ctx),
            generated: Vec::with_capacity(ctx),
            candidates: vec![Candidate::default(); n_vocab],
            raw: vec![0.0; n_vocab],
            seen: vec![0; n_vocab.div_ceil(32)],
        };
        (scheduler, handle)
    }

    /// Serves until [`EngineHandle::stop`] has been called and every request is finished.
    pub fn run(&mut self) {
        loop {
            let rung = self.shared.rung();
            self.shared.counters.beat();
            match self.shared.next_job() {
                Some(job) => self.serve(job),
                None if self.shared.is_stopping() => return,
                None => self.shared.sleep(rung),
            }
        }
    }

    fn serve(&mut self, job: Job) {
        let begun = Instant::now();
        let mut timings = Timings {
            queued: begun - job.submitted,
            prompt_tokens: job.request.prompt.len() as u32,
            ..Timings::default()
        };
        let finish = self.generate(&job, begun, &mut timings).unwrap_or_else(|error| {
            // Whatever it has left in the cache is not used again.
            self.history.clear();
            self.engine.rewind(0);
            Finish::Failed(error)
        });
        self.shared.counters.set_slot(0, SlotState::Free, 0);
        self.shared.finish(job, finish, timings);
    }

    fn generate(&mut self, job: &Job, begun: Instant, timings: &mut Timings) -> Result<Finish, EngineError> {
        let (request, counters) = (&*job.request, &Arc::clone(&self.shared).counters);
        let mut sampler = Sampler::new(request.sampling).map_err(EngineError::Sampling)?;
        let prompt = &request.prompt;
        let same = self.history.iter().zip(prompt).take_while(|(a, b)| a == b).count().min(prompt.len() - 1);
        let mut done = self.engine.rewind(same);
        self.history.truncate(done);
        timings.reused_tokens = done as u32;
        counters.tokens_reused.fetch_add(done as u64, Relaxed);
        self.shared.send(job.door, Event::Started { reused_tokens: done as u32 });
        let chunk = self.engine.n_batch();
        while prompt.len() - done > chunk {
            self.feed(&prompt[done..done + chunk], SlotState::Prefill)?;
            done += chunk;
            if self.shared.is_gone(job.door) {
                return Ok(Finish::Cancelled);
            }
        }
        self.feed(&prompt[done..], SlotState::Prefill)?;
        counters.tokens_in.fetch_add(timings.prompt_tokens as u64, Relaxed);
        prompt.iter().for_each(|&token| sampler.accept(token));
        self.generated.clear();
        let mut first = None;
        loop {
            let mask = loop {
                let rung = self.shared.rung();
                if self.shared.is_gone(job.door) {
                    return Ok(Finish::Cancelled);
                }
                let ready = self.shared.has_room(job.door);
                let mask = if ready && request.constraint { self.shared.take_mask(job.door) } else { None };
                if ready && (mask.is_some() || !request.constraint) {
                    break mask;
                }
                counters.beat();
                self.shared.sleep(rung);
            };
            let step = self.draw(&mut sampler, job, mask.as_deref());
            if let Some(mask) = mask {
                self.shared.return_mask(job.door, mask);
            }
            let step = step?;
            let now = Instant::now();
            let first = *first.get_or_insert(now);
            (timings.prefill, timings.decode) = (first - begun, now - first);
            self.generated.push(step.token);
            sampler.accept(step.token);
            timings.generated_tokens += 1;
            counters.tokens_out.fetch_add(1, Relaxed);
            self.shared.send(job.door, Event::Step(step));
            if !request.ignore_eos && self.ends.binary_search(&step.token).is_ok() {
                return Ok(Finish::EndOfGeneration);
            }
            if self.generated.len() == request.max_tokens {
                return Ok(Finish::Length);
            }
            self.feed(&[step.token], SlotState::Decode)?;
        }
    }

    fn feed(&mut self, tokens: &[u32], state: SlotState) -> Result<(), EngineError> {
        self.engine.feed(tokens)?;
        self.history.extend(tokens);
        let counters = &self.shared.counters;
        counters.set_slot(0, state, self.history.len());
        counters.steps.fetch_add(1, Relaxed);
        counters.beat();
        Ok(())
    }

    fn draw(&mut self, sampler: &mut Sampler, job: &Job, mask: Option<&[u32]>) -> Result<Step, EngineError> {
        let request = &*job.request;
        let logits = self.engine.last_logits();
        if request.n_top_logprobs.is_some() {
            self.raw.copy_from_slice(logits);
        }
        let steering = Steering { generated: &self.generated, biases: &request.logit_bias, allowed: mask };
        let scratch = Scratch { candidates: &mut self.candidates, seen: &mut self.seen };
        let token = sampler.sample_with(logits, steering, scratch).map_err(EngineError::Sampling)?;
        let mut step = Step { token, logprob: 0.0, top: [(0, 0.0); TOP_LOGPROBS_MAX], n_top: 0 };
        if let Some(n) = request.n_top_logprobs {
            step.n_top = n;
            step.logprob = logprobs(&self.raw, token, &mut step.top[..usize::from(n)]);
        }
        Ok(step)
    }
}
