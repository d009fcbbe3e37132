//! What a model writes, taken apart: thoughts, text and tool calls, by the conventions of its template's family. Text goes
//! in piece by piece, as it is generated; what might be the beginning of a mark waits until it is one or not.

mod calls;
mod family;
mod gemma;
mod harmony;
mod pieces;

use serde_json::Value;

use calls::{Begun, CallSyntax, Object, PYTHON_TAG, begun, parse_calls};
use harmony::Harmony;
use pieces::{emit, emit_call, release, trailing_blanks};

pub use family::Family;
pub use pieces::{Call, Delta, held};

/// What to expect of an answer.
#[derive(Clone, Debug)]
pub struct Expect {
    /// The family of the template.
    pub family: Family,
    /// Tools were offered: calls are looked for. Their descriptions, for the types of arguments.
    pub tools: std::rc::Rc<Vec<Value>>,
    /// Thoughts are marked, as [`Family::thought`] says.
    pub thinks: bool,
    /// The prompt ends inside a thought.
    pub thinking: bool,
}

enum State {
    /// Nothing but white space yet.
    Start,
    Reasoning,
    /// A thought has ended: white space before the text is not part of it.
    AfterReasoning,
    Content,
    /// Inside a call; the buffer has its text so far.
    Call,
    /// Inside its arguments, JSON of an object.
    Arguments(Object),
    /// Between the arguments of a call and its end.
    CallEnd,
    /// The whole answer may be a call.
    Bare,
}

/// Takes an answer apart.
pub struct Output {
    expect: Expect,
    state: State,
    buffer: String,
    /// White space before a thought is not part of it.
    has_thought: bool,
    harmony: Option<Harmony>,
}

impl Output {
    /// For one answer.
    pub fn new(expect: Expect) -> Output {
        let harmony = (expect.family == Family::Harmony).then(Harmony::default);
        let state = if expect.thinking { State::Reasoning } else { State::Start };
        Output { expect, state, buffer: String::new(), has_thought: false, harmony }
    }

    /// Whether what comes next is still thought, or may be.
    pub fn is_reasoning(&self) -> bool {
        match &self.harmony {
            Some(harmony) => !harmony.is_final(),
            None => matches!(self.state, State::Reasoning),
        }
    }

    /// Takes more text; appends what is certain.
    pub fn push(&mut self, text: &str, out: &mut Vec<Delta>) {
        if let Some(harmony) = &mut self.harmony {
            return harmony.push(text, out);
        }
        self.buffer.push_str(text);
        while self.step(out) {}
    }

    /// Ends the answer.
    pub fn finish(&mut self, out: &mut Vec<Delta>) {
        if let Some(harmony) = &mut self.harmony {
            return harmony.finish(out);
        }
        let rest = std::mem::take(&mut self.buffer);
        match self.state {
            State::Reasoning => emit(out, Delta::Reasoning, rest.trim_end()),
            State::Start | State::AfterReasoning => {}
            State::Content => emit(out, Delta::Content, if self.calls_open() { rest.trim_end() } else { &rest }),
            // A call that has no end: it was cut off by the limit, or the model left the mark out.
            State::Call => drop(self.calls(&rest, "", out)),
            State::Arguments(_) => emit(out, Delta::Arguments, &rest),
            State::CallEnd => {}
            State::Bare => match calls::parse_bare(&rest) {
                Some(calls) => calls.into_iter().for_each(|call| emit_call(out, call)),
                None => emit(out, Delta::Content, &rest),
            },
        }
    }

    fn calls_open(&self) -> bool {
        !self.expect.tools.is_empty()
    }

    fn syntax(&self) -> Option<&'static CallSyntax> {
        CallSyntax::of(self.expect.family).filter(|_| self.calls_open())
    }

    /// Emits the calls in `text`, which ended with `close`; what is none is text, as it is. Returns whether it was one.
    fn calls(&self, text: &str, close: &str, out: &mut Vec<Delta>) -> bool {
        let Some(syntax) = self.syntax() else { return false };
        let calls = parse_calls(self.expect.family, text, &self.expect.tools);
        match &calls {
            Some(calls) => calls.iter().for_each(|call| emit_call(out, call.clone())),
            None => out.push(Delta::Content(format!("{}{text}{close}", syntax.open))),
        }
        calls.is_some()
    }

    /// Looks whether the buffer begins like a call in JSON, whose arguments can go out piece by piece.
    fn begin_call(&mut self, key: &str, out: &mut Vec<Delta>) -> Begun {
        let tag = if self.buffer.starts_with(PYTHON_TAG) { PYTHON_TAG.len() } else { 0 };
        let begun = begun(&self.buffer[tag..], key);
        if let Begun::Yes { name, at } = &begun {
            out.push(Delta::Call(name.clone()));
            self.buffer.drain(..tag + at);
            self.state = State::Arguments(Object::default());
        }
        begun
    }

    /// Takes one thing out of the buffer; false if there is nothing certain in it.
    fn step(&mut self, out: &mut Vec<Delta>) -> bool {
        match &mut self.state {
            State::Start => self.start(),
            State::Reasoning => self.reason(out),
            State::AfterReasoning => {
                self.buffer.drain(..leading_blanks(&self.buffer));
                let more = !self.buffer.is_empty();
                if more {
                    self.state = if self.is_bare() { State::Bare } else { State::Content };
                }
                more
            }
            State::Content => self.say(out),
            State::Call => self.call(out),
            State::Arguments(object) => {
                let n = object.scan(&self.buffer);
                let has_ended = object.has_ended();
                let keep = self.buffer.len() - n;
                release(&mut self.buffer, keep, out, Delta::Arguments);
                if has_ended {
                    self.state = State::CallEnd;
                }
                has_ended
            }
            State::CallEnd => self.end_call(),
            State::Bare => matches!(self.begin_call("\"parameters\"", out), Begun::Yes { .. }),
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
            self.state = State::Call;
            return true;
        }
        let keep = held_with_blanks(&self.buffer, syntax.open);
        release(&mut self.buffer, keep, out, Delta::Content);
        false
    }

    fn call(&mut self, out: &mut Vec<Delta>) -> bool {
        let Some(syntax) = self.syntax() else { return false };
        let is_hermes = self.expect.family == Family::Hermes;
        if is_hermes && matches!(self.begin_call("\"arguments\"", out), Begun::Yes { .. }) {
            return true;
        }
        let Some((inside, rest)) = split(&self.buffer, syntax.close) else { return false };
        let is_call = self.calls(&inside, syntax.close, out);
        self.buffer = rest;
        self.state = if is_call { State::AfterReasoning } else { State::Content };
        true
    }

    /// What a model writes here, beyond a bracket and the mark, belongs to nothing.
    fn end_call(&mut self) -> bool {
        let (rest, state) = match self.syntax() {
            Some(syntax) => (split(&self.buffer, syntax.close).map(|(_, rest)| rest), State::AfterReasoning),
            None => (self.buffer.split_once(';').map(|(_, rest)| rest.trim_start().to_owned()), State::Bare),
        };
        let Some(rest) = rest else { return false };
        (self.buffer, self.state) = (rest, state);
        true
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
                self.state = State::Bare;
                return true;
            }
        }
        self.state = State::Content;
        true
    }
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
