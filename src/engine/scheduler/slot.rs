//! A place for one sequence: the request it works on, what is known of its tokens, and what has come of it.

use std::ops::Range;
use std::sync::Mutex;
use std::time::Instant;

use super::super::channel::Submission;
use super::super::drafter::DRAFT_MAX;
use super::super::error::EngineError;
use super::super::pages::Table;
use super::super::request::{Generate, OutputKind, Pooling, Request, Scores, Step, TOP_LOGPROBS_MAX, Timings};
use super::super::stops::Stops;
use super::batch::Wanted;
use crate::model::cache::PAGE_TOKENS;
use crate::sampling::{Candidate, Constraints, Sampler, SamplerScratch, SamplingError, logprobs};

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
    pub outcome: Mutex<Outcome>,
}

/// A request in its slot.
pub(super) struct Work {
    pub submission: Submission,
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
    /// Where it leaves checkpoints.
    pub stops: Stops,
    /// Who computes what both begin with, while this one waits.
    pub leader: Option<Leader>,
    /// The logits of the last token wait for their mask.
    pub awaits_mask: bool,
    pub reused: usize,
    pub begun: Instant,
    pub first: Option<Instant>,
    pub last: Instant,
}

/// A sequence that begins alike and came before.
#[derive(Clone, Copy)]
pub(super) struct Leader {
    pub slot: usize,
    /// After so many pages it leaves a checkpoint, from which both can go on.
    pub pages: usize,
}

/// What a slot makes of the last pass, and with what.
#[derive(Default)]
pub(super) struct Outcome {
    /// Draws tokens; that of requests for them.
    pub sampler: Option<Sampler>,
    pub mask: Option<Box<[u32]>>,
    /// Tokens that were drawn.
    pub steps: heapless::Vec<Step, STEPS_MAX>,
    /// The sum of hidden states so far; that of requests for an embedding.
    pub embedding: Option<Box<[f32]>>,
    /// Logprobs of the prompt, until all are there.
    pub scores: Option<Scores>,
    /// Why it cannot go on.
    pub failure: Option<EngineError>,
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
    pub fn new(submission: Submission, reused: usize, serial: u64, stops: Stops) -> Work {
        let now = Instant::now();
        Work {
            verified: submission.request.prompt.len(),
            submission,
            fed: reused,
            drafted: 0,
            drafts_failed: false,
            published: reused / PAGE_TOKENS,
            serial,
            stops,
            leader: None,
            awaits_mask: false,
            reused,
            begun: now,
            first: None,
            last: now,
        }
    }

    pub fn prompt_len(&self) -> usize {
        self.submission.request.prompt.len()
    }

    /// Tokens generated so far.
    pub fn generated(&self) -> usize {
        self.verified - self.prompt_len()
    }

    /// Certain tokens that are not in the cache yet and have to be: where nothing follows the last, nobody needs it there.
    pub fn pending(&self) -> usize {
        self.verified - usize::from(self.only_reads()) - self.fed
    }

    /// The prompt is read, and nothing is generated.
    pub fn only_reads(&self) -> bool {
        self.generate().is_some_and(|generate| generate.max_tokens == 0)
    }

    /// Its next pass is one for the token after those that are certain.
    pub fn is_decoding(&self) -> bool {
        self.pending() == 1 && self.generate().is_some() && !self.only_reads()
    }

    /// How much of its prompt a pass may take. Where its tokens are scored the last is left: its pass is one to draw.
    pub fn prefill_len(&self) -> usize {
        self.pending() - usize::from(self.wanted() == Wanted::Scores && !self.only_reads())
    }

    /// What is wanted after tokens of its next pass.
    pub fn wanted(&self) -> Wanted {
        match self.generate() {
            None => Wanted::States,
            Some(generate) if generate.score_prompt && !self.is_decoding() => Wanted::Scores,
            Some(_) => Wanted::Draws,
        }
    }

    /// Its next pass is one for a stretch of its prompt.
    pub fn is_prefilling(&self) -> bool {
        self.pending() > 0 && !self.is_decoding()
    }

    /// How tokens are generated; `None` for an embedding.
    pub fn generate(&self) -> Option<&Generate> {
        self.submission.request.generate()
    }

    /// After which of its next `n` certain tokens and those that are drafted something is wanted.
    pub fn rows_of(&self, n: usize) -> Range<usize> {
        let end = n + self.drafted;
        match self.submission.request.output {
            OutputKind::Embedding(Pooling::Mean) => 0..n,
            OutputKind::Embedding(Pooling::First) => 0..usize::from(self.fed == 0),
            _ if self.wanted() == Wanted::Scores => 0..n,
            _ if n < self.pending() || self.only_reads() => end..end,
            _ => end - 1 - self.drafted..end,
        }
    }

    /// The answer ends with this token.
    pub fn is_end(&self, token: u32, eog_tokens: &[u32]) -> bool {
        self.generate().is_some_and(|generate| !generate.ignore_eos) && eog_tokens.binary_search(&token).is_ok()
    }

    pub fn timings(&self) -> Timings {
        let first = self.first.unwrap_or(self.last);
        Timings {
            queued: self.begun - self.submission.submitted,
            prefill: first - self.begun,
            decode: self.last - first,
            prompt_tokens: self.prompt_len() as u32,
            reused_tokens: self.reused as u32,
            generated_tokens: self.generated() as u32,
        }
    }
}

/// Pages of all positions that a request can come to need.
pub(super) fn pages_max(request: &Request) -> usize {
    request.positions().div_ceil(PAGE_TOKENS)
}

/// The whole pages of a prompt that may be taken over: what is wanted of its tokens must be computed, logits or hidden
/// states, of the last or of all. Where tokens see what comes after them no beginning is like another.
pub(super) fn reusable(Request { prompt, output }: &Request, reads_whole: bool) -> &[u32] {
    match output {
        _ if reads_whole => &[],
        OutputKind::Embedding(Pooling::Mean | Pooling::First)
        | OutputKind::Tokens(Generate { score_prompt: true, .. }) => &[],
        _ => &prompt[..(prompt.len() - 1) / PAGE_TOKENS * PAGE_TOKENS],
    }
}

impl Outcome {
    /// The vector of a prompt all of which has been read.
    ///
    /// # Errors
    /// [`EngineError::HiddenState`].
    pub fn finish_embedding(&mut self) -> Result<Box<[f32]>, EngineError> {
        let embedding = self.embedding.take().expect("a request for an embedding has brought its place along");
        if let Some(index) = embedding.iter().position(|x| !x.is_finite()) {
            self.embedding = Some(embedding);
            return Err(EngineError::HiddenState { index });
        }
        Ok(embedding)
    }
}

/// The next token, and what is reported of it.
fn draw_step(
    (sampler, logits): (&mut Sampler, &mut [f32]),
    constraints: Constraints<'_>,
    n_top_logprobs: Option<u8>,
    DrawScratch { candidates, raw, seen }: &mut DrawScratch<'_>,
) -> Result<Step, SamplingError> {
    if n_top_logprobs.is_some() {
        raw.copy_from_slice(logits);
    }
    let token = sampler.sample_with(logits, constraints, SamplerScratch { candidates, seen })?;
    sampler.accept(token);
    let mut step = Step { token, logprob: 0.0, top: [(0, 0.0); TOP_LOGPROBS_MAX], n_top: 0 };
    if let Some(n) = n_top_logprobs {
        let n = usize::from(n).min(raw.len());
        (step.n_top, step.logprob) = (n as u8, logprobs(raw, token, &mut step.top[..n]));
    }
    Ok(step)
}

impl Slot<'_> {
    /// Pages that it can come to need and does not have yet.
    pub fn pages_owed(&self) -> usize {
        self.work.as_ref().map_or(0, |work| pages_max(&work.submission.request).saturating_sub(self.table.len()))
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
        let (Some(generate), Ok(mut outcome)) = (work.generate(), self.outcome.lock()) else { return };
        let Outcome { sampler: Some(sampler), mask, steps, failure, .. } = &mut *outcome else { return };
        for (end, logits) in (work.verified..=work.verified + work.drafted).zip(rows) {
            let constraints = Constraints {
                generated: &self.history[work.prompt_len()..end],
                biases: &generate.logit_bias,
                allowed: mask.as_deref(),
            };
            match draw_step((&mut *sampler, logits), constraints, generate.n_top_logprobs, scratch) {
                Ok(step) => {
                    // There are as many steps as drafted tokens, and one more, at most.
                    let _ = steps.push(step);
                    let is_as_drafted = end < work.verified + work.drafted && self.history[end] == step.token;
                    if !is_as_drafted || work.is_end(step.token, eog_tokens) {
                        return;
                    }
                }
                Err(error) => {
                    *failure = Some(EngineError::Sampling(error));
                    return;
                }
            }
        }
    }

    /// Takes the logprob of the token behind the one at `position` of the prompt, whose `logits` these are.
    pub fn score(&self, position: usize, logits: &[f32]) {
        let mut top = [(0, 0.0); TOP_LOGPROBS_MAX];
        let Some(stride) = self.work.as_ref().and_then(|work| work.submission.request.scores_stride()) else { return };
        let n_top = (stride - 1).min(logits.len());
        let token = self.history[position + 1];
        let logprob = logprobs(logits, token, &mut top[..n_top]);
        let Ok(mut outcome) = self.outcome.lock() else { return };
        if logprob.is_nan() {
            let token = logits.iter().position(|x| x.is_nan() || *x == f32::INFINITY).unwrap_or_default();
            outcome.failure = Some(EngineError::Sampling(SamplingError::NotANumber { token }));
        }
        let Some(scores) = &mut outcome.scores else { return };
        let place = &mut scores.values[position * stride..][..stride];
        place[0] = (token, logprob);
        place[1..=n_top].copy_from_slice(&top[..n_top]);
    }

    /// Makes the mean of the hidden states that have been added up, if that is wanted.
    pub fn finish_pooling(&self) {
        let (Some(work), Ok(mut outcome)) = (&self.work, self.outcome.lock()) else { return };
        let (n, output) = (work.prompt_len(), &work.submission.request.output);
        if let (OutputKind::Embedding(Pooling::Mean), Some(sum)) = (output, &mut outcome.embedding) {
            sum.iter_mut().for_each(|x| *x /= n as f32);
        }
    }

    /// Hands the pooled vector to `take`.
    pub fn with_pooled(&self, take: impl FnOnce(&mut [f32])) {
        let Ok(mut outcome) = self.outcome.lock() else { return };
        if let Some(pooled) = &mut outcome.embedding {
            take(pooled);
        }
    }

    /// Adds a hidden state to those that become the embedding.
    pub fn pool(&self, hidden: &[f32]) {
        let Ok(mut outcome) = self.outcome.lock() else { return };
        let Some(sum) = &mut outcome.embedding else { return };
        sum.iter_mut().zip(hidden).for_each(|(sum, x)| *sum += x);
    }
}
