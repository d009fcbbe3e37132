//! The interfaces: each reads its form of a request and writes its form of the answer, whole or in events.

pub mod chat;
mod common;
pub mod completions;
pub mod embeddings;
mod format;
pub mod infill;
pub mod messages;
pub mod native;
pub mod ollama;
pub mod rerank;
pub mod responses;
pub mod tokens;

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::body::{Body, Sink};
use super::error::ApiError;
use super::generate::{Batch, Generation, Progress, Reason, TokenInfo, Usage};
use super::model::{Served, unix_time};
use super::output::{Call, Delta};
use super::trace::Trace;
use crate::engine::Timings;

/// What a handler comes to.
pub enum Answer {
    /// A document.
    Document(Value),
    /// Server-sent events.
    Events(Body),
    /// JSON documents, one a line.
    Lines(Body),
    /// A document that is written while it is sent.
    Written(Body),
}

/// A form that streams.
pub trait EventWriter {
    /// Before anything has been generated.
    fn begin(&mut self, out: &mut Vec<u8>);
    /// A piece of an answer.
    fn batch(&mut self, batch: Batch, out: &mut Vec<u8>);
    /// After all answers.
    fn end(&mut self, usage: &Usage, out: &mut Vec<u8>);
    /// Instead of the end.
    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>);

    /// While there is nothing to say, so that nobody takes the connection for dead: a comment, which every reader of events
    /// skips.
    fn ping(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(b": ping\n\n");
    }

    /// How far the prompt is, for clients that have asked, where the interface has a form for it.
    fn progress(&mut self, _progress: &Progress, _elapsed: Duration, _out: &mut Vec<u8>) {}
}

/// The same for a client that has closed its half of the connection: only by writing is found whether it is still there.
const ENDED_PING: Duration = Duration::from_millis(100);

/// Sends the answers as events.
pub fn stream(form: impl EventWriter + 'static, generation: Generation, trace: Rc<Trace>) -> Answer {
    Answer::Events(Body::streamed(|sink| write(form, generation, trace, sink)))
}

/// Sends the answers as JSON documents, one a line.
pub fn stream_lines(form: impl EventWriter + 'static, generation: Generation, trace: Rc<Trace>) -> Answer {
    Answer::Lines(Body::streamed(|sink| write(form, generation, trace, sink)))
}

async fn write(mut form: impl EventWriter, mut generation: Generation, trace: Rc<Trace>, sink: Sink) {
    let mut ping = generation.ping();
    form.begin(&mut sink.borrow_mut());
    let (mut quiet_since, mut reported) = (Instant::now(), None);
    loop {
        let next = {
            let mut next = std::pin::pin!(generation.next());
            loop {
                let silence = async move {
                    match ping {
                        Some(ping) => tokio::time::sleep_until((quiet_since + ping).into()).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    biased;
                    next = &mut next => break next,
                    () = trace.client_ended(), if ping != Some(ENDED_PING) => ping = Some(ENDED_PING),
                    () = silence => {
                        form.ping(&mut sink.borrow_mut());
                        quiet_since = Instant::now();
                    }
                }
            }
        };
        trace.saw(&generation);
        let mut out = sink.borrow_mut();
        match next {
            Ok(Some(batches)) => {
                let progress = generation.progress();
                if generation.reports_progress() && reported != Some(progress) {
                    let begun = Progress { processed: progress.cached, ..progress };
                    if reported.is_none() && begun != progress {
                        form.progress(&begun, generation.elapsed(), &mut out);
                    }
                    form.progress(&progress, generation.elapsed(), &mut out);
                    reported = Some(progress);
                }
                batches.into_iter().for_each(|batch| form.batch(batch, &mut out));
            }
            Ok(None) => {
                form.end(&generation.usage, &mut out);
                break trace.completed();
            }
            Err(error) => {
                log::warn!("{}: {}", trace.id(), error.message);
                form.fail(&error, &mut out);
                break trace.completed();
            }
        }
        if !out.is_empty() {
            quiet_since = Instant::now();
        }
    }
}

/// An answer, put together.
#[derive(Debug, Default)]
pub struct Whole {
    /// What the model thought.
    pub reasoning: String,
    /// What it said.
    pub content: String,
    /// The tools it called.
    pub calls: Vec<Call>,
    /// The tokens of its prompt from the second on, where they were asked for.
    pub scored: Vec<TokenInfo>,
    /// Its tokens, where they were asked for.
    pub tokens: Vec<TokenInfo>,
    /// Why it ended.
    pub finish: Option<Reason>,
    /// What it took.
    pub timings: Timings,
}

/// Waits for all answers.
pub async fn collect(mut generation: Generation, n: usize, trace: &Trace) -> Result<(Vec<Whole>, Usage), ApiError> {
    let mut whole: Vec<Whole> = (0..n).map(|_| Whole::default()).collect();
    loop {
        let next = generation.next().await;
        trace.saw(&generation);
        let Some(batches) = next? else { return Ok((whole, generation.usage)) };
        for batch in batches {
            let answer = &mut whole[batch.index];
            for delta in batch.deltas {
                match delta {
                    Delta::Reasoning(text) => answer.reasoning.push_str(&text),
                    Delta::Content(text) => answer.content.push_str(&text),
                    Delta::Call(name) => answer.calls.push(Call { name, arguments: String::new() }),
                    Delta::Arguments(piece) => {
                        if let Some(call) = answer.calls.last_mut() {
                            call.arguments.push_str(&piece);
                        }
                    }
                }
            }
            answer.scored.extend(batch.scored);
            answer.tokens.extend(batch.tokens);
            answer.finish = batch.finish.or(answer.finish.take());
            answer.timings = batch.timings.unwrap_or(answer.timings);
        }
    }
}

/// What every event of OpenAI's older interfaces has.
pub struct ChunkHead {
    id: String,
    object: &'static str,
    created: u64,
    served: Rc<Served>,
    include_usage: bool,
    /// For the next event.
    timings: Cell<Option<Timings>>,
}

impl ChunkHead {
    /// For an answer whose id begins with `prefix`.
    fn new(served: &Rc<Served>, prefix: &str, object: &'static str, include_usage: bool) -> ChunkHead {
        let (id, created, timings) = (fresh_id(served, prefix), unix_time(), Cell::default());
        ChunkHead { id, object, created, served: Rc::clone(served), include_usage, timings }
    }

    /// The next event tells what an answer took, once that is known.
    fn took(&self, timings: Option<Timings>) {
        self.timings.set(timings);
    }

    /// Writes an event that tells how far the prompt is; `delta` is what a choice has in it.
    fn send_progress(&self, delta: &Value, progress: &Progress, elapsed: Duration, out: &mut Vec<u8>) {
        let mut chunk = self.chunk(delta);
        add_progress(&mut chunk, progress, elapsed);
        event(&chunk, out);
    }

    fn chunk(&self, choices: &Value) -> Value {
        json!({
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": self.served.name,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
        })
    }

    /// Writes an event.
    fn send(&self, choices: &Value, usage: Option<&Usage>, out: &mut Vec<u8>) {
        let mut chunk = self.chunk(choices);
        if self.include_usage {
            chunk["usage"] = usage.map_or(Value::Null, common::usage_json);
        }
        if let Some(timings) = self.timings.take() {
            chunk["timings"] = common::timings_json(&timings);
        }
        event(&chunk, out);
    }

    /// Writes the last events.
    fn end(&self, usage: &Usage, out: &mut Vec<u8>) {
        if self.include_usage {
            self.took(Some(usage.timings));
            self.send(&json!([]), Some(usage), out);
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
    }
}

/// Adds to an event how far the prompt is, and what it took so far.
fn add_progress(event: &mut Value, progress: &Progress, elapsed: Duration) {
    event["prompt_progress"] = json!({
        "total": progress.total,
        "cache": progress.cached,
        "processed": progress.processed,
        "time_ms": elapsed.as_millis() as u64,
    });
    event["timings"] = common::timings_json(&progress.timings(elapsed));
}

/// Tokens with what they were chosen from, as chats have them.
fn logprobs_json(served: &Served, tokens: &[TokenInfo]) -> Vec<Value> {
    let one = |token: u32, logprob: f32| {
        let (text, bytes) = token_text(served, token);
        // JSON has no infinity.
        json!({"id": token, "token": text, "logprob": logprob.max(-9999.0), "bytes": bytes})
    };
    let all = tokens.iter().map(|info| {
        let mut value = one(info.token, info.logprob);
        value["top_logprobs"] = info.top.iter().map(|(token, logprob)| one(*token, *logprob)).collect();
        value
    });
    all.collect()
}

/// The version of what answers.
const FINGERPRINT: &str = concat!("brim-", env!("CARGO_PKG_VERSION"));

/// Writes a server-sent event that has only data.
pub fn event(data: &Value, out: &mut Vec<u8>) {
    out.extend_from_slice(b"data: ");
    // A document of strings and numbers always serialises.
    let _ = serde_json::to_writer(&mut *out, data);
    out.extend_from_slice(b"\n\n");
}

/// Writes a server-sent event that is named by its `type`.
pub fn named_event(data: &Value, out: &mut Vec<u8>) {
    if let Some(name) = data["type"].as_str() {
        out.extend_from_slice(b"event: ");
        out.extend_from_slice(name.as_bytes());
        out.push(b'\n');
    }
    event(data, out);
}

/// An id that no other answer of this process has, and few of others.
pub fn fresh_id(served: &Served, prefix: &str) -> String {
    format!("{prefix}{:016x}", served.fresh_seed())
}

/// The text of a token, and its bytes.
fn token_text(served: &Served, token: u32) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    served.tokenizer.token_bytes(token, true, &mut bytes);
    (String::from_utf8_lossy(&bytes).into_owned(), bytes)
}
