//! A place for one sequence: the request it works on, what is known of its tokens, and how the next are drawn.

use std::sync::Mutex;
use std::time::Instant;

use super::super::drafter::DRAFT_MAX;
use super::super::handle::Job;
use super::super::pages::Table;
use super::super::request::{Request, Step, TOP_LOGPROBS_MAX, Timings};
use crate::model::cache::PAGE_TOKENS;
use crate::sampling::{Candidate, Sampler, SamplingError, SamplingParams, Scratch, Steering, logprobs};

/// Most tokens that one pass brings a slot.
const STEPS_MAX: usize = 1 + DRAFT_MAX;

/// A place for one sequence.
pub(super) struct Slot<'a> {
    pub work: Option<Work>,
    pub table: Table,
    /// The prompt and what was generated, [`Work::verified`] tokens; behind them what is drafted. `[ctx]`.
    pub history: &'a mut [u32],
    /// Logits that wait for their mask, `[n_vocab]`.
    pub unmasked: &'a mut [f32],
    pub draw: Mutex<Draw>,
}

/// A request in its slot.
pub(super) struct Work {
    pub job: Job,
    /// Tokens of the history that are certain: those of the prompt, and those that were drawn.
    pub verified: usize,
    /// How many of them are in the cache.
    pub fed: usize,
    /// Tokens behind them that are guesses: the next pass shows how many of them are right.
    pub drafted: usize,
    /// A draft has made a pass fail, so there is to be no other.
    pub drafts_failed: bool,
    /// Pages that are published, and the serial of the last.
    pub published: usize,
    pub serial: u64,
    /// The logits of the last token wait for their mask.
    pub awaits_mask: bool,
    pub reused: usize,
    pub begun: Instant,
    pub first: Option<Instant>,
    pub last: Instant,
}

/// How the next tokens of a slot are drawn, and what has come of it.
pub(super) struct Draw {
    pub sampler: Sampler,
    pub mask: Option<Box<[u32]>>,
    /// What the last pass has brought.
    pub steps: heapless::Vec<Step, STEPS_MAX>,
    /// Why there is no more.
    pub failure: Option<SamplingError>,
}

/// What drawing a token needs.
pub(super) struct DrawScratch<'a> {
    pub candidates: &'a mut [Candidate],
    /// Logits as the model gave them.
    pub raw: &'a mut [f32],
    pub seen: &'a mut [u32],
}

impl Work {
    /// `reused` tokens of the prompt are in the cache already: whole pages, of which the last is `serial`.
    pub fn new(job: Job, reused: usize, serial: u64) -> Work {
        let now = Instant::now();
        Work {
            verified: job.request.prompt.len(),
            job,
            fed: reused,
            drafted: 0,
            drafts_failed: false,
            published: reused / PAGE_TOKENS,
            serial,
            awaits_mask: false,
            reused,
            begun: now,
            first: None,
            last: now,
        }
    }

    pub fn prompt_len(&self) -> usize {
        self.job.request.prompt.len()
    }

    /// Tokens generated so far.
    pub fn generated(&self) -> usize {
        self.verified - self.prompt_len()
    }

    /// Certain tokens that are not in the cache yet.
    pub fn pending(&self) -> usize {
        self.verified - self.fed
    }

    /// Pages of all positions that a request can come to need; the last token is never fed.
    pub fn pages_max(job: &Job) -> usize {
        (job.request.prompt.len() + job.request.max_tokens - 1).div_ceil(PAGE_TOKENS)
    }

    /// The answer ends with this token.
    pub fn is_end(&self, token: u32, eog_tokens: &[u32]) -> bool {
        !self.job.request.ignore_eos && eog_tokens.binary_search(&token).is_ok()
    }

    pub fn timings(&self) -> Timings {
        let first = self.first.unwrap_or(self.last);
        Timings {
            queued: self.begun - self.job.submitted,
            prefill: first - self.begun,
            decode: self.last - first,
            prompt_tokens: self.prompt_len() as u32,
            reused_tokens: self.reused as u32,
            generated_tokens: self.generated() as u32,
        }
    }
}

/// The whole pages of a prompt that may be taken over: its last token must be computed, for its logits.
pub(super) fn reusable(prompt: &[u32]) -> &[u32] {
    &prompt[..(prompt.len() - 1) / PAGE_TOKENS * PAGE_TOKENS]
}

impl Draw {
    pub fn new() -> Draw {
        let sampler = Sampler::new(SamplingParams::default()).expect("the defaults are in range");
        Draw { sampler, mask: None, steps: heapless::Vec::new(), failure: None }
    }

    /// The next token after `generated`, and what is reported of it.
    fn step(
        &mut self,
        logits: &mut [f32],
        generated: &[u32],
        request: &Request,
        DrawScratch { candidates, raw, seen }: &mut DrawScratch<'_>,
    ) -> Result<Step, SamplingError> {
        if request.n_top_logprobs.is_some() {
            raw.copy_from_slice(logits);
        }
        let steering = Steering { generated, biases: &request.logit_bias, allowed: self.mask.as_deref() };
        let token = self.sampler.sample_with(logits, steering, Scratch { candidates, seen })?;
        self.sampler.accept(token);
        let mut step = Step { token, logprob: 0.0, top: [(0, 0.0); TOP_LOGPROBS_MAX], n_top: 0 };
        if let Some(n) = request.n_top_logprobs {
            let n = usize::from(n).min(raw.len());
            (step.n_top, step.logprob) = (n as u8, logprobs(raw, token, &mut step.top[..n]));
        }
        Ok(step)
    }
}

impl Slot<'_> {
    /// Pages that it can come to need and does not have yet.
    pub fn pages_owed(&self) -> usize {
        self.work.as_ref().map_or(0, |work| Work::pages_max(&work.job).saturating_sub(self.table.len()))
    }

    /// Draws a token from each of `rows`, the logits after the last certain token and after those that are drafted, as long as
    /// what was drawn before is what was drafted and not the end. Nothing where the logits wait for their mask.
    ///
    /// The sampler meets the logits, the tokens before them and the random numbers that it would meet without a draft, so what
    /// it draws is the same.
    pub fn draw<'r>(
        &self,
        rows: impl Iterator<Item = &'r mut [f32]>,
        eog_tokens: &[u32],
        scratch: &mut DrawScratch<'_>,
    ) {
        let Some(work) = self.work.as_ref().filter(|work| !work.awaits_mask) else { return };
        let Ok(mut draw) = self.draw.lock() else { return };
        for (end, logits) in (work.verified..=work.verified + work.drafted).zip(rows) {
            match draw.step(logits, &self.history[work.prompt_len()..end], &work.job.request, scratch) {
                Ok(step) => {
                    // There are as many steps as drafted tokens, and one more, at most.
                    let _ = draw.steps.push(step);
                    let is_as_drafted = end < work.verified + work.drafted && self.history[end] == step.token;
                    if !is_as_drafted || work.is_end(step.token, eog_tokens) {
                        return;
                    }
                }
                Err(error) => {
                    draw.failure = Some(error);
                    return;
                }
            }
        }
    }
}
