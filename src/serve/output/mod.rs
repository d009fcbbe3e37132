//! What a model writes, taken apart: thoughts, text and tool calls, by the conventions of its template's family. Text goes
//! in piece by piece, as it is generated; what might be the beginning of a mark waits until it is one or not.

mod calls;
mod family;
mod gemma;
mod harmony;
mod json;
mod named;
mod pieces;
mod python;
mod stops;
mod syntax;
mod tagged;
mod typed;

use serde_json::Value;

use calls::CallReader;
use harmony::Harmony;
use json::{JsonCall, PYTHON_TAG};
use pieces::{emit, held, release, trailing_blanks};
use syntax::{CallSyntax, Step};

pub use family::Family;
pub use pieces::{Call, Delta};
pub use stops::Stops;

/// What to expect of an answer.
#[derive(Clone, Debug)]
pub struct Expect {
    /// The family of the template.
    pub family: Family,
    /// Tools were offered: calls are looked for. Their descriptions, for the types of arguments.
    pub tools: std::sync::Arc<Vec<Value>>,
    /// Thoughts are marked, as [`Family::thought`] says.
    pub thinks: bool,
    /// The prompt ends inside a thought.
    pub thinking: bool,
    /// Further calls than one are left out.
    pub one_call: bool,
}

impl Expect {
    /// Text as it comes.
    pub fn text() -> Expect {
        Expect {
            family: Family::Plain,
            tools: std::sync::Arc::default(),
            thinks: false,
            thinking: false,
            one_call: false,
        }
    }
}

enum State {
    /// Nothing but white space yet.
    Start,
    Reasoning,
    /// A thought has ended: white space before the text is not part of it.
    AfterReasoning,
    Content,
    /// Inside calls.
    Call(CallReader),
}

/// Takes an answer apart.
pub struct Output {
    expect: Expect,
    state: State,
    buffer: String,
    /// White space before a thought is not part of it.
    has_thought: bool,
    harmony: Option<Harmony>,
    n_calls: usize,
    /// What comes is left out: the only call has come.
    is_done: bool,
}

impl Output {
    /// For one answer.
    pub fn new(expect: Expect) -> Output {
        let harmony = (expect.family == Family::Harmony).then(Harmony::default);
        let state = if expect.thinking { State::Reasoning } else { State::Start };
        Output { expect, state, buffer: String::new(), has_thought: false, harmony, n_calls: 0, is_done: false }
    }

    /// Whether what comes next is still thought, or may be.
    pub fn is_reasoning(&self) -> bool {
        match &self.harmony {
            Some(harmony) => !harmony.is_final(),
            None => matches!(self.state, State::Reasoning),
        }
    }

    /// Whether what comes next is none of what a grammar speaks of: a thought, or a call on a channel of its own.
    pub fn is_free(&self) -> bool {
        self.is_reasoning() || self.harmony.as_ref().is_some_and(Harmony::is_call)
    }

    /// Whether what comes next is thought.
    pub fn is_in_thought(&self) -> bool {
        self.harmony.as_ref().map_or_else(|| self.is_reasoning(), Harmony::is_in_thought)
    }

    /// Whether tools are called.
    pub fn has_called(&self) -> bool {
        self.n_calls > 0
    }

    /// Whether all is said that may be.
    pub fn is_done(&self) -> bool {
        self.is_done
    }

    /// Bytes of text that came and are not certain yet.
    pub fn waiting(&self) -> usize {
        self.harmony.as_ref().map_or(self.buffer.len(), Harmony::waiting)
    }

    /// Takes more text; appends what is certain.
    pub fn push(&mut self, text: &str, out: &mut Vec<Delta>) {
        if self.is_done {
            return;
        }
        let before = out.len();
        match &mut self.harmony {
            Some(harmony) => harmony.push(text, out),
            None => {
                self.buffer.push_str(text);
                while self.step(out) {}
            }
        }
        self.count(before, out);
    }

    /// Ends the answer; `is_cut` says that it was not done.
    pub fn finish(&mut self, is_cut: bool, out: &mut Vec<Delta>) {
        if self.is_done {
            return;
        }
        let before = out.len();
        match &mut self.harmony {
            Some(harmony) => harmony.finish(is_cut, out),
            None => self.finish_state(is_cut, out),
        }
        self.count(before, out);
    }

    fn finish_state(&mut self, is_cut: bool, out: &mut Vec<Delta>) {
        let rest = std::mem::take(&mut self.buffer);
        match &self.state {
            State::Reasoning => emit(out, Delta::Reasoning, rest.trim_end()),
            State::Start | State::AfterReasoning => {}
            State::Content => self.finish_content(&rest, is_cut, out),
            State::Call(reader) => {
                if !reader.finish(&rest, is_cut, out) {
                    emit(out, Delta::Content, &format!("{}{rest}", self.open_mark()));
                }
            }
        }
    }

    /// Counts calls, and leaves out those that are too many.
    fn count(&mut self, before: usize, out: &mut Vec<Delta>) {
        for at in before..out.len() {
            if !matches!(out[at], Delta::Call(_)) {
                continue;
            }
            if self.expect.one_call && self.n_calls > 0 {
                self.is_done = true;
                return out.truncate(at);
            }
            self.n_calls += 1;
        }
    }

    fn finish_content(&self, rest: &str, is_cut: bool, out: &mut Vec<Delta>) {
        let mut rest = if self.calls_open() { rest.trim_end() } else { rest };
        // A mark that is cut off is none of the text, if there is enough of it to tell.
        if is_cut && let Some(syntax) = self.syntax() {
            let n = held(rest, &[syntax.open]);
            if n > 1 {
                rest = rest[..rest.len() - n].trim_end();
            }
        }
        emit(out, Delta::Content, rest);
    }

    fn calls_open(&self) -> bool {
        !self.expect.tools.is_empty()
    }

    fn syntax(&self) -> Option<&'static CallSyntax> {
        CallSyntax::of(self.expect.family).filter(|_| self.calls_open())
    }

    /// What stood before what is no call.
    fn open_mark(&self) -> &'static str {
        self.syntax().map_or("", |syntax| syntax.open)
    }

    /// Takes one thing out of the buffer; false if there is nothing certain in it.
    fn step(&mut self, out: &mut Vec<Delta>) -> bool {
        let step = match &mut self.state {
            State::Start => return self.start(),
            State::Reasoning => return self.reason(out),
            State::AfterReasoning => {
                self.buffer.drain(..leading_blanks(&self.buffer));
                let more = !self.buffer.is_empty();
                if more {
                    self.state = if self.is_bare() { bare() } else { State::Content };
                }
                return more;
            }
            State::Content => return self.say(out),
            State::Call(reader) => reader.step(&mut self.buffer, &self.expect.tools, out),
        };
        match step {
            Step::More => true,
            Step::Wait => false,
            // The one call that there may be has ended.
            Step::Done if self.expect.one_call => {
                self.is_done = true;
                false
            }
            Step::Done => {
                self.buffer.drain(..leading_blanks(&self.buffer));
                self.state = if self.syntax().is_none() { bare() } else { State::AfterReasoning };
                true
            }
            Step::NoCall => {
                emit(out, Delta::Content, self.open_mark());
                self.state = State::Content;
                true
            }
        }
    }

    fn reason(&mut self, out: &mut Vec<Delta>) -> bool {
        if !self.has_thought {
            self.buffer.drain(..leading_blanks(&self.buffer));
            self.has_thought = !self.buffer.is_empty();
        }
        let [_, end] = self.expect.family.thought();
        if let Some((thought, rest)) = split(&self.buffer, end) {
            emit(out, Delta::Reasoning, thought.trim_end());
            self.buffer = rest;
            self.state = State::AfterReasoning;
            return true;
        }
        // White space at the end may be what stands before the mark.
        let keep = held_with_blanks(&self.buffer, end);
        release(&mut self.buffer, keep, out, Delta::Reasoning);
        false
    }

    fn say(&mut self, out: &mut Vec<Delta>) -> bool {
        let Some(syntax) = self.syntax() else {
            release(&mut self.buffer, 0, out, Delta::Content);
            return false;
        };
        if let Some((before, rest)) = split(&self.buffer, syntax.open) {
            emit(out, Delta::Content, before.trim_end());
            self.buffer = rest;
            self.state = State::Call(CallReader::new(self.expect.family, syntax));
            return true;
        }
        let keep = held_with_blanks(&self.buffer, syntax.open);
        release(&mut self.buffer, keep, out, Delta::Content);
        false
    }

    /// Whether the buffer begins like a call that has no marks.
    fn is_bare(&self) -> bool {
        self.expect.family == Family::Llama3
            && self.calls_open()
            && (self.buffer.starts_with('{') || self.buffer.starts_with(PYTHON_TAG))
    }

    fn start(&mut self) -> bool {
        let text = self.buffer.trim_start();
        if text.is_empty() {
            return false;
        }
        if self.expect.thinks {
            let [begin, _] = self.expect.family.thought();
            if let Some(rest) = text.strip_prefix(begin) {
                self.buffer = rest.to_owned();
                self.state = State::Reasoning;
                return true;
            }
            if begin.starts_with(text) {
                return false;
            }
        }
        if self.expect.family == Family::Llama3 && self.calls_open() {
            if PYTHON_TAG.starts_with(text) && text != PYTHON_TAG {
                return false;
            }
            if text.starts_with('{') || text.starts_with(PYTHON_TAG) {
                self.buffer = text.to_owned();
                self.state = bare();
                return true;
            }
        }
        self.state = State::Content;
        true
    }
}

/// A call that is the whole answer, if it is one.
fn bare() -> State {
    State::Call(CallReader::Json(JsonCall::new(None)))
}

fn split(text: &str, mark: &str) -> Option<(String, String)> {
    text.split_once(mark).map(|(before, after)| (before.to_owned(), after.to_owned()))
}

fn leading_blanks(text: &str) -> usize {
    text.len() - text.trim_start().len()
}

/// The same with the white space before the mark.
fn held_with_blanks(text: &str, mark: &str) -> usize {
    let mark = held(text, &[mark]);
    mark + trailing_blanks(&text[..text.len() - mark])
}

#[cfg(test)]
mod tests;
