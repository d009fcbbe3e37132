//! Tool calls as the families write them, back to name and arguments.

use serde_json::Value;

use super::family::Family;
use super::json::{JsonCall, Object, from_list};
use super::named::{Heads, Named};
use super::pieces::{Call, Delta, emit_call};
use super::syntax::{CallSyntax, Step};
use super::tagged::{Tagged, Tags};
use super::{gemma, python};

/// Follows what comes behind the mark of a call.
pub enum CallReader {
    /// An object in JSON.
    Json(JsonCall),
    /// Tags around arguments.
    Tagged(Tagged),
    /// A name before arguments in JSON.
    Named(Named),
    /// What is understood once it is whole.
    Whole(Whole),
}

impl CallReader {
    /// For a family; `syntax` is its own.
    pub fn new(family: Family, syntax: &'static CallSyntax) -> CallReader {
        let form = match family {
            Family::Gemma4 => Form::Gemma,
            Family::Lfm2 => Form::Python,
            _ => Form::List,
        };
        match (Tags::of(family), Heads::of(family)) {
            (Some(tags), _) => CallReader::Tagged(Tagged::new(tags, syntax.close)),
            // Mistral's list is told from a name once it has begun.
            (_, Some(heads)) => CallReader::Named(Named::new(heads, syntax.close)),
            _ if family == Family::Hermes => CallReader::Json(JsonCall::new(Some(syntax))),
            _ => CallReader::Whole(Whole { form, close: syntax.close }),
        }
    }

    /// Takes one thing out of the buffer.
    pub fn step(&mut self, buffer: &mut String, tools: &[Value], out: &mut Vec<Delta>) -> Step {
        if let CallReader::Named(named) = self
            && named.may_be_list()
        {
            match buffer.trim_start().chars().next() {
                None => return Step::Wait,
                Some('[') => *self = CallReader::Whole(Whole { form: Form::List, close: "" }),
                Some(_) => {}
            }
        }
        match self {
            CallReader::Json(reader) => reader.step(buffer, out),
            CallReader::Tagged(reader) => reader.step(buffer, tools, out),
            CallReader::Named(reader) => reader.step(buffer, out),
            CallReader::Whole(reader) => reader.step(buffer, out),
        }
    }

    /// Takes what is left at the end of the answer; false if it is no call. `is_cut`: the answer was longer.
    pub fn finish(&self, rest: &str, is_cut: bool, out: &mut Vec<Delta>) -> bool {
        match self {
            CallReader::Json(reader) => reader.finish(rest, is_cut, out),
            CallReader::Tagged(reader) => reader.finish(rest, is_cut, out),
            CallReader::Named(reader) => reader.finish(rest, is_cut, out),
            CallReader::Whole(reader) => reader.finish(rest, is_cut, out),
        }
    }
}

/// Calls that are understood once they are whole.
pub struct Whole {
    form: Form,
    close: &'static str,
}

#[derive(Clone, Copy)]
enum Form {
    Gemma,
    Python,
    /// A list in JSON.
    List,
}

impl Whole {
    fn parse(&self, text: &str) -> Option<Vec<Call>> {
        match self.form {
            Form::Gemma => gemma::parse(text).map(|call| vec![call]),
            Form::Python => python::parse(text).or_else(|| from_list(text)),
            Form::List => from_list(text),
        }
        .filter(|calls| !calls.is_empty())
    }

    fn step(&self, buffer: &mut String, out: &mut Vec<Delta>) -> Step {
        let (inside, end) = if self.close.is_empty() {
            let mut list = Object::default();
            let n = list.scan(buffer);
            if !list.has_ended {
                return Step::Wait;
            }
            (&buffer[..n], n)
        } else {
            let Some(at) = buffer.find(self.close) else { return Step::Wait };
            (&buffer[..at], at + self.close.len())
        };
        let Some(calls) = self.parse(inside) else { return Step::NoCall };
        calls.into_iter().for_each(|call| emit_call(out, call));
        buffer.drain(..end);
        Step::Done
    }

    fn finish(&self, rest: &str, is_cut: bool, out: &mut Vec<Delta>) -> bool {
        match (self.parse(rest), self.form) {
            (Some(calls), _) => calls.into_iter().for_each(|call| emit_call(out, call)),
            (None, _) if !is_cut => return false,
            (None, Form::Gemma) => out.extend(gemma::name_in(rest).map(Delta::Call)),
            (None, Form::Python) => out.extend(python::name_in(rest).map(Delta::Call)),
            (None, Form::List) => {}
        }
        true
    }
}
