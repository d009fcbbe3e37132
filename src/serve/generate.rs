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
use crate::engine::{Event, Finish, RequestError, Step, SubmitError, Ticket};
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

/// What has come of one answer.
#[derive(Debug)]
pub struct Batch {
    /// Which answer.
    pub index: usize,
    /// Pieces of it.
    pub deltas: Vec<Delta>,
    /// Tokens, where they were asked for.
    pub tokens: Vec<TokenInfo>,
    /// That it has ended.
    pub finish: Option<Reason>,
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
}

/// Answers on their way.
pub struct Generation {
    served: Rc<Served>,
    choices: Vec<Choice>,
    /// What it took so far.
    pub usage: Usage,
    started: Instant,
    /// From the start to the first token.
    pub first_token: Option<Duration>,
    /// When the first token is too late.
    deadline: Option<Pin<Box<Sleep>>>,
}

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
    decoder: Decoder,
    /// Bytes of text so far.
    n_bytes: usize,
    /// Tokens whose text is not certain, with where it begins.
    tokens: VecDeque<(usize, TokenInfo)>,
    wants_tokens: bool,
    ignore_eos: bool,
    output: Output,
    stops: Stops,
    marks: &'static [&'static str],
    constraint: Option<Constraint>,
    budget: Option<Budget>,
}

impl Generation {
    /// Hands jobs to the engine; their answers are numbered through.
    ///
    /// # Errors
    /// 400 for a grammar or a request that cannot be served, 429 where the queue is full, 503 at the end.
    pub async fn start(served: &Rc<Served>, jobs: &[Job], first_token_time: Duration) -> Result<Generation, ApiError> {
        let mut choices = Vec::new();
        for (job, index) in jobs.iter().flat_map(|job| (0..job.options.n).map(move |index| (job, index))) {
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
            let ticket = served.engine.submit(job.request(index)).map_err(|e| refusal(&e, served))?;
            let mut choice = Choice {
                ticket: Some(ticket),
                decoder: Decoder::new(false),
                n_bytes: 0,
                tokens: VecDeque::new(),
                wants_tokens: job.options.n_top_logprobs.is_some(),
                ignore_eos: job.options.ignore_eos,
                output,
                stops: Stops::new(job.options.stop.clone()),
                marks: job.expect.family.marks(),
                constraint,
                budget: job.thought_tokens.map(|tokens| {
                    let mut end = Vec::new();
                    served.tokenizer.encode(job.expect.family.end_of_thought(), true, &mut end);
                    Budget::new(tokens, end, served.limits().n_vocab)
                }),
            };
            choice.ask_for_mask(None);
            choices.push(choice);
        }
        Ok(Generation {
            served: Rc::clone(served),
            choices,
            usage: Usage { prompt: jobs.iter().map(|job| job.prompt.len()).sum(), ..Usage::default() },
            started: Instant::now(),
            first_token: None,
            deadline: Some(Box::pin(tokio::time::sleep(first_token_time))),
        })
    }

    /// What comes next, of any of the answers; `None` when all have ended.
    ///
    /// # Errors
    /// 503 where the first token does not come in time, 500 where the engine fails.
    pub async fn next(&mut self) -> Result<Option<Vec<Batch>>, ApiError> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Vec<Batch>>, ApiError>> {
        if self.choices.iter().all(|choice| choice.ticket.is_none()) {
            return Poll::Ready(Ok(None));
        }
        let mut batches = Vec::new();
        for (index, choice) in self.choices.iter_mut().enumerate().filter(|(_, choice)| choice.ticket.is_some()) {
            let mut batch = Batch { index, deltas: Vec::new(), tokens: Vec::new(), finish: None };
            let before = self.usage.completion;
            choice.poll(cx, &self.served, &mut batch, &mut self.usage)?;
            if self.usage.completion > before && self.first_token.is_none() {
                self.first_token = Some(self.started.elapsed());
                self.deadline = None;
            }
            if !(batch.deltas.is_empty() && batch.tokens.is_empty() && batch.finish.is_none()) {
                batches.push(batch);
            }
        }
        if !batches.is_empty() {
            return Poll::Ready(Ok(Some(batches)));
        }
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            let text = "no token came in time (serve.limits.first_token_s): the box is busy; try again later";
            return Poll::Ready(Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, text).retry_after(10)));
        }
        Poll::Pending
    }
}

/// A request that the engine did not take.
fn refusal(error: &SubmitError, served: &Served) -> ApiError {
    match error {
        SubmitError::Busy(_) => {
            let stats = served.engine.stats();
            let text = format!("{} requests are already waiting; try again later", stats.queue_len);
            let patience = 1 + stats.queue_len / stats.n_slots.max(1);
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, text).code("queue_full").retry_after(patience as u32)
        }
        SubmitError::Stopping(_) => {
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping").retry_after(5)
        }
        SubmitError::Invalid(_, e @ (RequestError::Context { .. } | RequestError::PromptLength { .. })) => {
            ApiError::bad(e.to_string()).code("context_length_exceeded")
        }
        SubmitError::Invalid(_, e) => ApiError::bad(e.to_string()),
    }
}

impl Choice {
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
            let event = match ticket.poll_event(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(event) => event,
            };
            match event {
                Some(Event::Started { reused_tokens }) => usage.cached = usage.cached.max(reused_tokens as usize),
                Some(Event::Scored) => {}
                Some(Event::Step(step)) => {
                    usage.completion += 1;
                    usage.reasoning += usize::from(self.output.is_reasoning());
                    if let Some(budget) = self.budget.as_mut().filter(|_| self.output.is_in_thought()) {
                        budget.spend();
                    }
                    self.take(&step, served, batch);
                }
                Some(Event::Finished(Finish::Failed(e), _)) => {
                    self.ticket = None;
                    return Err(ApiError::internal(format!("generation failed: {e}")));
                }
                Some(Event::Finished(finish, timings)) => {
                    // More than at the start, if others have computed it meanwhile.
                    usage.cached = usage.cached.max(timings.reused_tokens as usize);
                    let reason = if finish == Finish::Length { Reason::Length } else { Reason::Stop };
                    self.finish(reason, batch);
                }
                None => self.finish(Reason::Stop, batch),
            }
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
        if tokenizer.is_end_of_generation(token) && !self.ignore_eos {
            // The end follows.
            return;
        }
        let begins = self.n_bytes;
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
            let top = step.top[..usize::from(step.n_top)].to_vec();
            self.tokens.push_back((begins, TokenInfo { token, logprob: step.logprob, top }));
        }
        // What comes after a stop text, or after the only call, is nobody's: to drop the ticket ends it.
        match self.say(&text, batch) {
            Some(stop) => self.end(Reason::StopText(stop), batch),
            None if self.output.is_done() => self.end(Reason::Calls, batch),
            None => {
                self.release_tokens(batch);
                self.ask_for_mask(Some(token));
            }
        }
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
        self.end(stop.map_or(reason, Reason::StopText), batch);
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
