//! Generation: turns the engine's tokens into text, reasoning and tool calls, for each of a request's answers. Dropping a
//! generation cancels what still runs.

use std::collections::VecDeque;
use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::StatusCode;
use tokio::time::Sleep;

use super::budget::Budget;
use super::error::ApiError;
use super::job::Job;
use super::masks::{Pending, Session};
use super::model::Served;
use super::output::{Delta, Output, Stops};
use crate::engine::{Event, Finish, Scores, Step, SubmitError, Ticket, Timings};
use crate::tokenizer::Decoder;

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Reason {
    /// The model was done.
    Stop,
    /// A text that ends it came.
    StopText(String),
    /// The limit.
    Length,
    /// It calls tools.
    Calls,
}

impl Reason {
    /// A stop text; the empty one is a line that is indented too little.
    fn of(stop: String) -> Reason {
        if stop.is_empty() { Reason::Length } else { Reason::StopText(stop) }
    }
}

/// A token with what it was chosen from.
#[derive(Clone, Debug)]
pub struct TokenInfo {
    /// The token.
    pub token: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The likeliest tokens, likeliest first.
    pub top: Vec<(u32, f32)>,
}

impl TokenInfo {
    /// A token of a prompt, with the likeliest in its place.
    fn scored(values: &[(u32, f32)]) -> Option<TokenInfo> {
        let (&(token, logprob), top) = values.split_first()?;
        Some(TokenInfo { token, logprob, top: top.to_vec() })
    }
}

/// What has come of one answer.
#[derive(Debug)]
pub struct Batch {
    /// Which answer.
    pub index: usize,
    /// Pieces of it.
    pub deltas: Vec<Delta>,
    /// The tokens of its prompt from the second on, where they were asked for.
    pub scored: Vec<TokenInfo>,
    /// Tokens, where they were asked for.
    pub tokens: Vec<TokenInfo>,
    /// That it has ended.
    pub finish: Option<Reason>,
    /// What it took, once it has ended, or so far, where that was asked for.
    pub timings: Option<Timings>,
}

impl Batch {
    /// One in which nothing has come.
    pub fn new(index: usize) -> Batch {
        let (deltas, scored, tokens) = (Vec::new(), Vec::new(), Vec::new());
        Batch { index, deltas, scored, tokens, finish: None, timings: None }
    }

    fn is_empty(&self) -> bool {
        self.deltas.is_empty() && self.scored.is_empty() && self.tokens.is_empty() && self.finish.is_none()
    }
}

/// How far the prompts of a generation are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Progress {
    /// Their tokens.
    pub total: usize,
    /// Those that were in the cache already.
    pub cached: usize,
    /// Those that are in the cache now.
    pub processed: usize,
}

impl Progress {
    /// What the prompts took so far.
    pub fn timings(&self, elapsed: Duration) -> Timings {
        let is_begun = self.processed > self.cached;
        Timings {
            prompt_tokens: self.processed as u32,
            reused_tokens: self.cached as u32,
            prefill: if is_begun { elapsed } else { Duration::ZERO },
            ..Timings::default()
        }
    }
}

/// Tokens in and out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Of the prompt.
    pub prompt: usize,
    /// Of the prompt, in the cache already.
    pub cached: usize,
    /// Generated, in all answers together.
    pub completion: usize,
    /// Of those, thoughts.
    pub reasoning: usize,
    /// What the answers took that have ended: tokens of all together, and the longest times.
    pub timings: Timings,
}

impl Usage {
    fn add(&mut self, timings: &Timings) {
        let sum = &mut self.timings;
        sum.prompt_tokens += timings.prompt_tokens;
        sum.reused_tokens += timings.reused_tokens;
        sum.generated_tokens += timings.generated_tokens;
        sum.queued = sum.queued.max(timings.queued);
        sum.prefill = sum.prefill.max(timings.prefill);
        sum.decode = sum.decode.max(timings.decode);
    }
}

/// Answers on their way.
pub struct Generation {
    served: Rc<Served>,
    jobs: Vec<Job>,
    /// By their index, those that the engine has or has had.
    choices: Vec<Choice>,
    /// Which job is next, and which of its answers.
    next: (usize, usize),
    /// What it took so far.
    pub usage: Usage,
    progress: Progress,
    started: Instant,
    /// From the start to the first token.
    pub first_token: Option<Duration>,
    /// Gone with the first token.
    patience: Option<Patience>,
}

/// How long nothing may happen before the first token.
struct Patience {
    time: Duration,
    timer: Pin<Box<Sleep>>,
}

impl Patience {
    fn new(time: Duration) -> Patience {
        Patience { time, timer: Box::pin(tokio::time::sleep(time)) }
    }

    /// Something has happened.
    fn renew(&mut self) {
        self.timer.as_mut().reset(tokio::time::Instant::now() + self.time);
    }
}

/// How often a request that has no place in the queue tries again.
const RETRY: Duration = Duration::from_millis(100);

/// The masks of one answer.
struct Constraint {
    session: Session,
    /// The grammar holds: what comes before it, thoughts, is free.
    begun: bool,
    waiting: Option<Pending>,
    /// The last mask, to be used again.
    buffer: Vec<u32>,
}

struct Choice {
    ticket: Option<Ticket>,
    n_prompt: usize,
    /// So many tokens of its prompt were in the cache when it got a slot, and are now.
    cached: usize,
    processed: usize,
    /// For those that end before the engine tells: so many tokens, and when it was handed over, had a slot, had the first.
    generated: u32,
    submitted: Instant,
    started: Option<Instant>,
    first: Option<Instant>,
    decoder: Decoder,
    /// Bytes of text so far.
    n_bytes: usize,
    /// Tokens whose text is not certain, with where it begins.
    tokens: VecDeque<(usize, TokenInfo)>,
    wants_tokens: bool,
    wants_timings: bool,
    /// The text has more than a line; then it ends so long after the first token.
    has_line: bool,
    most_time: Option<Duration>,
    /// Tokens that end generation are among those reported, too.
    reports_end: bool,
    ignore_eos: bool,
    output: Output,
    stops: Stops,
    marks: &'static [&'static str],
    constraint: Option<Constraint>,
    budget: Option<Budget>,
}

impl Generation {
    /// Hands jobs to the engine; their answers are numbered through. The engine has as many of them at once as it has slots:
    /// more would take the places of others in the queue.
    ///
    /// # Errors
    /// 400 for a grammar or a request that cannot be served, 429 where the queue is full, 503 at the end.
    pub async fn start(
        served: &Rc<Served>,
        jobs: Vec<Job>,
        first_token_time: Duration,
    ) -> Result<Generation, ApiError> {
        let n_prompt = |job: &Job| job.prompt.len();
        let mut generation = Generation {
            served: Rc::clone(served),
            choices: Vec::new(),
            next: (0, 0),
            usage: Usage { prompt: jobs.iter().map(n_prompt).sum(), ..Usage::default() },
            progress: Progress {
                total: jobs.iter().map(|job| job.options.n * n_prompt(job)).sum(),
                ..Progress::default()
            },
            started: Instant::now(),
            first_token: None,
            patience: Some(Patience::new(first_token_time)),
            jobs,
        };
        if !generation.submit().await? {
            let stats = served.engine.stats();
            let text = format!("{} requests are already waiting; try again later", stats.queue_len);
            let patience = 1 + stats.queue_len / stats.n_slots.max(1);
            let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, text).code("queue_full");
            return Err(error.retry_after(patience as u32));
        }
        Ok(generation)
    }

    /// Hands the next answers to the engine, if there are any left; false if it has none of this generation and takes none.
    async fn submit(&mut self) -> Result<bool, ApiError> {
        let most = self.served.limits().slots;
        loop {
            let in_flight = self.choices.iter().filter(|choice| choice.ticket.is_some()).count();
            let Some(job) = self.jobs.get(self.next.0) else { return Ok(true) };
            if in_flight >= most {
                return Ok(true);
            }
            let Some(choice) = Choice::submit(&self.served, job, self.next.1).await? else { return Ok(in_flight > 0) };
            self.next = match self.next.1 + 1 {
                n if n == job.options.n => (self.next.0 + 1, 0),
                n => (self.next.0, n),
            };
            self.choices.push(choice);
        }
    }

    /// What comes next, of any of the answers: nothing where only the reading of prompts went on. `None` when all have ended.
    ///
    /// # Errors
    /// 503 where nothing happens before the first token for too long, 500 where the engine fails.
    pub async fn next(&mut self) -> Result<Option<Vec<Batch>>, ApiError> {
        while !self.submit().await? {
            tokio::time::sleep(RETRY).await;
        }
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// How far the prompts are.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Since when it runs.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// How often a stream says that it is alive while there is nothing else to say; `None`: never.
    pub fn ping(&self) -> Option<Duration> {
        self.jobs.first().and_then(|job| job.options.ping)
    }

    /// The client wants to know how far the prompts are.
    pub fn reports_progress(&self) -> bool {
        self.jobs.first().is_some_and(|job| job.options.reports_progress)
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Vec<Batch>>, ApiError>> {
        if self.choices.iter().all(|choice| choice.ticket.is_none()) {
            return Poll::Ready(Ok(None));
        }
        let mut batches = Vec::new();
        for (index, choice) in self.choices.iter_mut().enumerate().filter(|(_, choice)| choice.ticket.is_some()) {
            let mut batch = Batch::new(index);
            let before = self.usage.completion;
            choice.poll(cx, &self.served, &mut batch, &mut self.usage)?;
            if choice.wants_timings && batch.timings.is_none() && !batch.is_empty() {
                batch.timings = Some(choice.timings());
            }
            if self.usage.completion > before && self.first_token.is_none() {
                self.first_token = Some(self.started.elapsed());
                self.patience = None;
            }
            if !batch.is_empty() {
                batches.push(batch);
            }
        }
        let sum = |count: fn(&Choice) -> usize| self.choices.iter().map(count).sum::<usize>();
        let (cached, processed) = (sum(|choice| choice.cached), sum(|choice| choice.processed));
        let progress = Progress { cached, processed, ..self.progress };
        let has_progress = std::mem::replace(&mut self.progress, progress) != progress;
        if !batches.is_empty() || has_progress {
            if let Some(patience) = &mut self.patience {
                patience.renew();
            }
            return Poll::Ready(Ok(Some(batches)));
        }
        if let Some(patience) = &mut self.patience
            && patience.timer.as_mut().poll(cx).is_ready()
        {
            let seconds = patience.time.as_secs();
            let Progress { total, processed, .. } = self.progress;
            let what = match self.choices.iter().any(|choice| choice.started.is_some()) {
                false => "the request has waited for a free slot".to_owned(),
                true if processed + 1 < total => {
                    format!("the reading of the prompt has stood still, at {processed} of {total} tokens,")
                }
                true => "the prompt has been read and the first token has not come".to_owned(),
            };
            let text = format!("{what} for {seconds} s (serve.limits.first_token_s): the box is busy; try again later");
            let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, text).code("first_token_timeout");
            return Poll::Ready(Err(error.retry_after(10)));
        }
        Poll::Pending
    }
}

/// A request that the engine can never take, or takes no more.
fn refusal(error: &SubmitError) -> ApiError {
    match error {
        SubmitError::Busy(_) | SubmitError::Stopping(_) => {
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping").retry_after(5)
        }
        SubmitError::Invalid(_, e) => ApiError::of_request(e),
    }
}

impl Choice {
    /// Hands answer `index` of a job to the engine; `None` where its queue is full.
    async fn submit(served: &Served, job: &Job, index: usize) -> Result<Option<Choice>, ApiError> {
        let mut output = Output::new(job.expect.clone());
        // What the prompt has opened is no part of the answer.
        output.push(job.opened, &mut Vec::new());
        let constraint = match &job.grammar {
            None => None,
            Some((grammar, param)) => {
                let session = served.masks.open(grammar, param).await?;
                let words = served.limits().n_vocab.div_ceil(32);
                let begun = job.constrains_at_once || !output.is_free();
                let buffer = vec![u32::MAX; words];
                Some(Constraint { session, begun, waiting: None, buffer })
            }
        };
        let ticket = match served.engine.submit(job.request(index)) {
            Ok(ticket) => ticket,
            Err(SubmitError::Busy(_)) => return Ok(None),
            Err(e) => return Err(refusal(&e)),
        };
        let mut choice = Choice {
            ticket: Some(ticket),
            n_prompt: job.prompt.len(),
            cached: 0,
            processed: 0,
            generated: 0,
            submitted: Instant::now(),
            started: None,
            first: None,
            decoder: Decoder::new(false),
            n_bytes: 0,
            tokens: VecDeque::new(),
            wants_tokens: job.options.n_top_logprobs.is_some() || job.options.wants_tokens,
            wants_timings: job.options.wants_timings,
            has_line: false,
            most_time: job.options.most_time,
            reports_end: job.reports_end,
            ignore_eos: job.options.ignore_eos,
            output,
            stops: Stops::new(job.options.stop.clone(), job.options.indent),
            marks: job.expect.family.marks(),
            constraint,
            budget: job.thought_tokens.map(|tokens| {
                let mut end = Vec::new();
                served.tokenizer.encode(job.expect.family.end_of_thought(), true, &mut end);
                Budget::new(tokens, end, served.limits().n_vocab)
            }),
        };
        choice.ask_for_mask(None);
        Ok(Some(choice))
    }

    /// Takes what the engine has for this answer.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        served: &Served,
        batch: &mut Batch,
        usage: &mut Usage,
    ) -> Result<(), ApiError> {
        loop {
            self.poll_mask(cx)?;
            let Some(ticket) = &mut self.ticket else { return Ok(()) };
            let event = ticket.poll_event(cx);
            self.processed = self.processed.max(ticket.progress());
            let event = match event {
                Poll::Pending => return Ok(()),
                Poll::Ready(event) => event,
            };
            match event {
                Some(Event::Started { reused_tokens }) => {
                    self.cached = reused_tokens as usize;
                    self.processed = self.processed.max(self.cached);
                    self.started = Some(Instant::now());
                    usage.cached = usage.cached.max(self.cached);
                }
                Some(Event::Scored) => {
                    let scores = ticket.take_scores();
                    batch.scored = scores.iter().flat_map(Scores::tokens).filter_map(TokenInfo::scored).collect();
                }
                Some(Event::Step(step)) => {
                    self.processed = self.n_prompt;
                    usage.completion += 1;
                    usage.reasoning += usize::from(self.output.is_reasoning());
                    if let Some(budget) = self.budget.as_mut().filter(|_| self.output.is_in_thought()) {
                        budget.spend();
                    }
                    self.generated += 1;
                    self.first.get_or_insert_with(Instant::now);
                    self.take(&step, served, batch);
                    if self.ticket.is_none() {
                        let timings = self.timings();
                        usage.add(&timings);
                        batch.timings = Some(timings);
                    }
                }
                Some(Event::Finished(Finish::Failed(e), _)) => {
                    self.ticket = None;
                    return Err(ApiError::internal(format!("generation failed: {e}")));
                }
                Some(Event::Finished(finish, timings)) => {
                    // More than at the start, if others have computed it meanwhile.
                    usage.cached = usage.cached.max(timings.reused_tokens as usize);
                    usage.add(&timings);
                    (self.processed, batch.timings) = (self.n_prompt, Some(timings));
                    let reason = if finish == Finish::Length { Reason::Length } else { Reason::Stop };
                    self.finish(reason, batch);
                }
                None => self.finish(Reason::Stop, batch),
            }
        }
    }

    /// What it has taken so far.
    fn timings(&self) -> Timings {
        let started = self.started.unwrap_or(self.submitted);
        let first = self.first.unwrap_or(started);
        Timings {
            queued: started - self.submitted,
            prefill: first - started,
            decode: first.elapsed(),
            prompt_tokens: self.n_prompt as u32,
            reused_tokens: self.cached as u32,
            generated_tokens: self.generated,
        }
    }

    /// Hands a mask that has come to the engine.
    fn poll_mask(&mut self, cx: &mut Context<'_>) -> Result<(), ApiError> {
        let (Some(constraint), Some(ticket)) = (&mut self.constraint, &self.ticket) else { return Ok(()) };
        let Some(waiting) = &mut constraint.waiting else { return Ok(()) };
        let Poll::Ready(mask) = waiting.as_mut().poll(cx) else { return Ok(()) };
        constraint.waiting = None;
        constraint.buffer = mask.map_err(|why| {
            ApiError::bad(format!("the answer cannot continue within its grammar: {why}")).code("invalid_grammar")
        })?;
        ticket.set_mask(&constraint.buffer);
        Ok(())
    }

    /// Sees to it that the next token gets its mask; `token` is the one before.
    fn ask_for_mask(&mut self, token: Option<u32>) {
        let Some(ticket) = &self.ticket else { return };
        if let Some(mask) = self.budget.as_mut().and_then(|budget| budget.forces(self.output.is_in_thought())) {
            return ticket.set_mask(mask);
        }
        let Some(constraint) = &mut self.constraint else {
            return self.budget.iter_mut().for_each(|budget| ticket.set_mask(budget.free()));
        };
        let after = match (constraint.begun, self.output.is_free()) {
            (true, _) => token,
            (false, true) => {
                constraint.buffer.fill(u32::MAX);
                return ticket.set_mask(&constraint.buffer);
            }
            (false, false) => {
                constraint.begun = true;
                None
            }
        };
        let buffer = std::mem::take(&mut constraint.buffer);
        constraint.waiting = Some(constraint.session.next(after, buffer));
    }

    /// Takes one token.
    fn take(&mut self, step: &Step, served: &Served, batch: &mut Batch) {
        let tokenizer = served.tokenizer;
        let token = step.token;
        let begins = self.n_bytes;
        let info = || TokenInfo { token, logprob: step.logprob, top: step.top[..usize::from(step.n_top)].to_vec() };
        if tokenizer.is_end_of_generation(token) && !self.ignore_eos {
            // The end follows.
            if self.wants_tokens && self.reports_end {
                self.tokens.push_back((begins, info()));
            }
            return;
        }
        let mut text = String::new();
        if tokenizer.is_control(token) {
            let mark = std::str::from_utf8(tokenizer.text(token)).ok().filter(|text| self.marks.contains(text));
            if let Some(mark) = mark {
                self.decoder.finish(&mut text);
                text.push_str(mark);
            }
        } else {
            self.decoder.push(tokenizer, token, &mut text);
        }
        if self.wants_tokens {
            self.tokens.push_back((begins, info()));
        }
        // What comes after a stop text, or after the only call, is nobody's: to drop the ticket ends it.
        match self.say(&text, batch) {
            Some(stop) => self.end(Reason::of(stop), batch),
            None if self.output.is_done() => self.end(Reason::Calls, batch),
            None if self.is_late(&text) => self.end(Reason::Length, batch),
            None => {
                self.release_tokens(batch);
                self.ask_for_mask(Some(token));
            }
        }
    }

    /// The time for the answer is over, `text` said as well.
    fn is_late(&mut self, text: &str) -> bool {
        self.has_line |= text.contains('\n');
        let elapsed = self.first.map(|first| first.elapsed());
        self.has_line && self.most_time.is_some_and(|most| elapsed > Some(most))
    }

    /// Takes more text; returns the stop text that came with it.
    fn say(&mut self, text: &str, batch: &mut Batch) -> Option<String> {
        let mut deltas = Vec::new();
        self.output.push(text, &mut deltas);
        self.n_bytes += text.len();
        self.filter(deltas, batch)
    }

    fn filter(&mut self, deltas: Vec<Delta>, batch: &mut Batch) -> Option<String> {
        let stopped = self.stops.filter(deltas, &mut batch.deltas)?;
        let end = self.n_bytes.saturating_sub(self.output.waiting() + stopped.n_bytes);
        self.tokens.retain(|(begins, _)| *begins < end);
        Some(stopped.stop)
    }

    /// Releases tokens whose text is certain to be part of the answer.
    fn release_tokens(&mut self, batch: &mut Batch) {
        let waiting = self.stops.waiting();
        let certain = self.n_bytes.saturating_sub(self.output.waiting() + waiting);
        while let Some((_, info)) = self.tokens.pop_front_if(|(begins, _)| waiting == 0 || *begins < certain) {
            batch.tokens.push(info);
        }
    }

    /// Takes what is left of an answer that the engine has ended.
    fn finish(&mut self, reason: Reason, batch: &mut Batch) {
        let mut text = String::new();
        self.decoder.finish(&mut text);
        let mut stop = self.say(&text, batch);
        if stop.is_none() {
            let mut deltas = Vec::new();
            self.output.finish(reason == Reason::Length, &mut deltas);
            stop = self.filter(deltas, batch);
        }
        self.end(stop.map_or(reason, Reason::of), batch);
    }

    fn end(&mut self, reason: Reason, batch: &mut Batch) {
        self.ticket = None;
        self.constraint = None;
        self.stops.finish(&mut batch.deltas);
        batch.tokens.extend(self.tokens.drain(..).map(|(_, info)| info));
        let has_called = self.output.has_called() && reason != Reason::Length;
        batch.finish = Some(if has_called { Reason::Calls } else { reason });
    }
}
