//! The interfaces: each reads its form of a request and writes its form of the answer, whole or in events.

pub mod chat;
mod common;
pub mod completions;
mod format;
pub mod messages;
pub mod responses;
pub mod tokens;

use std::rc::Rc;

use serde_json::{Value, json};

use super::body::{Body, Sink};
use super::error::ApiError;
use super::generate::{Batch, Generation, Reason, TokenInfo, Usage};
use super::model::Served;
use super::output::{Call, Delta};
use super::trace::Trace;

/// What a handler comes to.
pub enum Answer {
    /// A document.
    Document(Value),
    /// Server-sent events.
    Events(Body),
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
}

/// Sends the answers as events.
pub fn stream(mut form: impl EventWriter + 'static, mut generation: Generation, trace: Rc<Trace>) -> Answer {
    let make = |sink: Sink| async move {
        form.begin(&mut sink.borrow_mut());
        loop {
            let next = generation.next().await;
            trace.saw(&generation);
            let mut out = sink.borrow_mut();
            match next {
                Ok(Some(batches)) => batches.into_iter().for_each(|batch| form.batch(batch, &mut out)),
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
        }
    };
    Answer::Events(Body::streamed(make))
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
    /// Its tokens, where they were asked for.
    pub tokens: Vec<TokenInfo>,
    /// Why it ended.
    pub finish: Option<Reason>,
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
            answer.tokens.extend(batch.tokens);
            answer.finish = batch.finish.or(answer.finish.take());
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
}

impl ChunkHead {
    /// Writes an event.
    fn send(&self, choices: &Value, usage: Option<&Usage>, out: &mut Vec<u8>) {
        let mut chunk = json!({
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": self.served.name,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
        });
        if self.include_usage {
            chunk["usage"] = usage.map_or(Value::Null, common::usage_json);
        }
        event(&chunk, out);
    }

    /// Writes the last events.
    fn end(&self, usage: &Usage, out: &mut Vec<u8>) {
        if self.include_usage {
            self.send(&json!([]), Some(usage), out);
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
    }
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
