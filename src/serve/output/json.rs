//! Calls that are written as JSON: an object with the tool's name and its arguments, or a list of such.

use serde_json::{Map, Value};

use super::pieces::{Call, Delta, emit, emit_call, release};
use super::syntax::{CallSyntax, Step};

/// What may stand before calls that are the whole answer.
pub const PYTHON_TAG: &str = "<|python_tag|>";

/// Follows one call in JSON. Its arguments go out piece by piece where its name comes before them.
pub struct JsonCall {
    /// What stands around it; `None` where calls are the whole answer, separated by `;`.
    syntax: Option<&'static CallSyntax>,
    /// The name of its arguments, with quotes.
    key: &'static str,
    part: Part,
}

enum Part {
    Begin,
    Arguments(Object),
    End,
}

impl JsonCall {
    /// Behind the mark that begins it.
    pub fn new(syntax: Option<&'static CallSyntax>) -> JsonCall {
        let key = if syntax.is_some() { "\"arguments\"" } else { "\"parameters\"" };
        JsonCall { syntax, key, part: Part::Begin }
    }

    /// Takes one thing out of the buffer.
    pub fn step(&mut self, buffer: &mut String, out: &mut Vec<Delta>) -> Step {
        match &mut self.part {
            Part::Begin => self.begin(buffer, out),
            Part::Arguments(object) => {
                let n = object.scan(buffer);
                let has_ended = object.has_ended;
                let keep = buffer.len() - n;
                release(buffer, keep, out, Delta::Arguments);
                if !has_ended {
                    return Step::Wait;
                }
                self.part = Part::End;
                Step::More
            }
            // What a model writes here, beyond a bracket and the mark, belongs to nothing.
            Part::End => {
                let end = match self.syntax {
                    Some(CallSyntax { open, close }) => {
                        let close = buffer.find(close).map(|at| at..at + close.len());
                        // A mark that was left out.
                        let open = buffer.find(open).map(|at| at..at);
                        close.into_iter().chain(open).min_by_key(|found| found.start)
                    }
                    None => buffer.find(';').map(|at| at..at + 1),
                };
                let Some(end) = end else { return Step::Wait };
                buffer.drain(..end.end);
                Step::Done
            }
        }
    }

    fn begin(&mut self, buffer: &mut String, out: &mut Vec<Delta>) -> Step {
        let tag = if self.syntax.is_none() && buffer.starts_with(PYTHON_TAG) { PYTHON_TAG.len() } else { 0 };
        if let Begun::Yes { name, at } = begun(&buffer[tag..], self.key) {
            out.push(Delta::Call(name));
            buffer.drain(..tag + at);
            self.part = Part::Arguments(Object::default());
            return Step::More;
        }
        // Its parts may come in another order.
        let Some(CallSyntax { close, .. }) = self.syntax else { return Step::Wait };
        let Some((inside, rest)) = buffer.split_once(close) else { return Step::Wait };
        let Some(call) = from_text(inside) else { return Step::NoCall };
        emit_call(out, call);
        *buffer = rest.to_owned();
        Step::Done
    }

    /// Takes what is left at the end of the answer; false if it is no call.
    pub fn finish(&self, rest: &str, is_cut: bool, out: &mut Vec<Delta>) -> bool {
        match (&self.part, self.syntax) {
            (Part::Arguments(_), _) => emit(out, Delta::Arguments, rest),
            (Part::End, _) => {}
            (Part::Begin, None) => match from_bare(rest) {
                Some(calls) => calls.into_iter().for_each(|call| emit_call(out, call)),
                None => return false,
            },
            (Part::Begin, Some(_)) => match from_text(rest) {
                Some(call) => emit_call(out, call),
                None if is_cut => out.extend(name_in(rest).map(Delta::Call)),
                None => return false,
            },
        }
        true
    }
}

/// Whether a text begins like a call.
enum Begun {
    /// Its arguments, an object, begin at this byte.
    Yes {
        /// The tool.
        name: String,
        /// Where they begin.
        at: usize,
    },
    /// It may yet, or it is none, or its parts come in another order.
    No,
}

/// What follows `word`, blanks before it left out.
fn after<'t>(text: &'t str, word: &str) -> Option<&'t str> {
    text.trim_start().strip_prefix(word)
}

/// The name, where a text begins with it, and what follows.
fn name_first(text: &str) -> Option<(String, &str)> {
    let rest = after(after(after(text, "{")?, "\"name\"")?, ":")?;
    let mut names = serde_json::Deserializer::from_str(rest).into_iter::<String>();
    let name = names.next()?.ok()?;
    Some((name, &rest[names.byte_offset()..]))
}

/// The name of a call that is cut off.
fn name_in(text: &str) -> Option<String> {
    name_first(text).map(|(name, _)| name)
}

/// Looks for `{"name": "NAME", KEY: {` at the beginning of a text; `key` has its quotes.
fn begun(text: &str, key: &str) -> Begun {
    let parts = || {
        let (name, rest) = name_first(text)?;
        let at = text.len() - after(after(after(after(rest, ",")?, key)?, ":")?, "{")?.len() - 1;
        Some(Begun::Yes { name, at })
    };
    parts().unwrap_or(Begun::No)
}

/// Follows the JSON of an object or a list to its end.
#[derive(Default)]
pub struct Object {
    depth: usize,
    is_in_text: bool,
    is_escaped: bool,
    /// Whether its last bracket has come.
    pub has_ended: bool,
}

impl Object {
    /// How many of the next bytes belong to it.
    pub fn scan(&mut self, text: &str) -> usize {
        for (i, byte) in text.bytes().enumerate() {
            match byte {
                _ if self.has_ended => return i,
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' if self.is_in_text => self.is_escaped = true,
                b'"' => self.is_in_text = !self.is_in_text,
                _ if self.is_in_text => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    self.has_ended = self.depth == 0;
                }
                // No JSON: a mark, probably. What is open stays open.
                b'<' => {
                    self.has_ended = true;
                    return i;
                }
                _ => {}
            }
        }
        text.len()
    }
}

/// What arguments are called.
const ARGUMENTS: [&str; 2] = ["arguments", "parameters"];

fn from_text(text: &str) -> Option<Call> {
    of_value(serde_json::from_str(text.trim()).ok()?)
}

/// Calls that are the whole answer, as Llama 3 writes them; several are separated by `;`.
fn from_bare(text: &str) -> Option<Vec<Call>> {
    let mut rest = text.trim();
    rest = rest.strip_prefix(PYTHON_TAG).unwrap_or(rest).trim();
    let mut calls = Vec::new();
    while !rest.is_empty() {
        let mut documents = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        calls.push(of_value(documents.next()?.ok()?)?);
        rest = rest[documents.byte_offset()..].trim_start();
        rest = rest.strip_prefix(';').unwrap_or(rest).trim_start();
    }
    (!calls.is_empty()).then_some(calls)
}

/// The calls of a list, or of one object.
pub fn from_list(text: &str) -> Option<Vec<Call>> {
    match serde_json::from_str(text.trim()).ok()? {
        Value::Array(calls) => calls.into_iter().map(of_value).collect(),
        one => Some(vec![of_value(one)?]),
    }
}

fn of_value(mut value: Value) -> Option<Call> {
    // Some write the function inside, as OpenAI's interface has it.
    if value.get("name").is_none()
        && let Some(inner) = value.get_mut("function").filter(|inner| inner.is_object())
    {
        value = inner.take();
    }
    let name = value.get("name").or(value.get("tool_name"))?.as_str()?.to_owned();
    let arguments = ARGUMENTS.iter().find_map(|key| value.get(key)).cloned();
    let arguments = match arguments.unwrap_or_else(|| Value::Object(Map::new())) {
        // JSON in a string is the JSON.
        Value::String(text) if serde_json::from_str::<Value>(&text).is_ok_and(|v| v.is_object()) => text,
        other => other.to_string(),
    };
    Some(Call { name, arguments })
}
