//! The harmony format of gpt-oss: messages with a header that names channel and recipient.
//! (Format: OpenAI's "harmony response format" guide.)

use super::pieces::{Delta, emit, held, release, trailing_blanks};

const CHANNEL: &str = "<|channel|>";
const MESSAGE: &str = "<|message|>";
const START: &str = "<|start|>";
const END: &str = "<|end|>";

/// Longest header; more is text.
const HEADER_BYTES_MAX: usize = 256;

enum State {
    /// Before `<|message|>`.
    Header,
    /// The text of a message.
    Body(Kind),
}

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Thought,
    Text,
    /// A call of this tool, of whose arguments something has come.
    Call(String, bool),
}

/// Takes an answer of gpt-oss apart.
pub struct Harmony {
    state: State,
    buffer: String,
}

impl Default for Harmony {
    fn default() -> Self {
        // The prompt ends with `<|start|>assistant`.
        Harmony { state: State::Header, buffer: String::new() }
    }
}

impl Harmony {
    /// Whether the text for the client has begun.
    pub fn is_final(&self) -> bool {
        matches!(&self.state, State::Body(Kind::Text | Kind::Call(..)))
    }

    /// Whether a call is being written.
    pub fn is_call(&self) -> bool {
        matches!(&self.state, State::Body(Kind::Call(..)))
    }

    /// Bytes of text that came and are not certain yet.
    pub fn waiting(&self) -> usize {
        self.buffer.len()
    }

    /// Whether a thought is under way.
    pub fn is_in_thought(&self) -> bool {
        matches!(&self.state, State::Body(Kind::Thought))
    }

    /// Takes more text.
    pub fn push(&mut self, text: &str, out: &mut Vec<Delta>) {
        self.buffer.push_str(text);
        while self.step(out) {}
    }

    /// Ends the answer; `is_cut` says that it was not done.
    pub fn finish(&mut self, is_cut: bool, out: &mut Vec<Delta>) {
        let rest = std::mem::take(&mut self.buffer);
        match std::mem::replace(&mut self.state, State::Header) {
            State::Body(Kind::Thought) => emit(out, Delta::Reasoning, &rest),
            State::Body(Kind::Text) => emit(out, Delta::Content, &rest),
            State::Body(Kind::Call(..)) if is_cut => emit(out, Delta::Arguments, &rest),
            State::Body(Kind::Call(_, has_arguments)) => end_call(has_arguments, &rest, out),
            // A header without a message says nothing; text without a header is text.
            State::Header if rest.contains("<|") => {}
            State::Header => emit(out, Delta::Content, &rest),
        }
    }

    fn step(&mut self, out: &mut Vec<Delta>) -> bool {
        match &mut self.state {
            State::Header => {
                if let Some((header, rest)) = self.buffer.split_once(MESSAGE) {
                    let kind = kind(header);
                    if let Kind::Call(name, _) = &kind {
                        out.push(Delta::Call(name.clone()));
                    }
                    self.state = State::Body(kind);
                    self.buffer = rest.to_owned();
                    return true;
                }
                // No header at all: the model just speaks.
                if self.buffer.len() > HEADER_BYTES_MAX && !self.buffer.contains(CHANNEL) {
                    self.state = State::Body(Kind::Text);
                    return true;
                }
                false
            }
            State::Body(kind) => {
                let end = [END, START].iter().filter_map(|mark| self.buffer.find(mark).map(|at| (at, *mark))).min();
                if let Some((at, mark)) = end {
                    let body = self.buffer[..at].to_owned();
                    match kind {
                        Kind::Thought => emit(out, Delta::Reasoning, &body),
                        Kind::Text => emit(out, Delta::Content, &body),
                        Kind::Call(_, has_arguments) => end_call(*has_arguments, &body, out),
                    }
                    self.buffer.drain(..at + mark.len());
                    self.state = State::Header;
                    return true;
                }
                let mut keep = held(&self.buffer, &[END, START]);
                let kind: fn(String) -> Delta = match kind {
                    Kind::Thought => Delta::Reasoning,
                    Kind::Text => Delta::Content,
                    Kind::Call(_, has_arguments) => {
                        // White space around them is not part of them.
                        keep += trailing_blanks(&self.buffer[..self.buffer.len() - keep]);
                        *has_arguments |= keep < self.buffer.len();
                        Delta::Arguments
                    }
                };
                release(&mut self.buffer, keep, out, kind);
                false
            }
        }
    }
}

/// What a message is, by its header: `assistant<|channel|>commentary to=functions.f <|constrain|>json`.
fn kind(header: &str) -> Kind {
    if let Some((_, to)) = header.split_once("to=") {
        let to = to.split(|c: char| c.is_whitespace() || c == '<').next().unwrap_or_default();
        if let Some(name) = to.strip_prefix("functions.") {
            return Kind::Call(name.to_owned(), false);
        }
    }
    let channel = header.split_once(CHANNEL).map_or("", |(_, channel)| channel);
    if channel.trim_start().starts_with("analysis") { Kind::Thought } else { Kind::Text }
}

fn end_call(has_arguments: bool, rest: &str, out: &mut Vec<Delta>) {
    let rest = rest.trim_end();
    emit(out, Delta::Arguments, if rest.is_empty() && !has_arguments { "{}" } else { rest });
}
