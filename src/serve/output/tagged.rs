//! Calls with tags around each argument, whose values stand as they are. Arguments go out as they come, texts piece by
//! piece.

use serde_json::Value;

use super::family::Family;
use super::pieces::{Delta, emit, held};
use super::syntax::Step;
use super::typed::{allowed, typed};
use crate::serve::schema::Kinds;

/// Marks around functions and their parameters.
pub struct Tags {
    /// Before the name of a function.
    pub function: &'static str,
    /// Behind that name.
    pub name_end: &'static str,
    /// Behind a function; empty where it ends with what stands around it.
    pub function_end: &'static str,
    /// Before the name of a parameter.
    pub parameter: &'static str,
    /// Behind that name.
    pub key_end: &'static str,
    /// Before the value, where there is more.
    pub value: &'static str,
    /// Behind the value.
    pub parameter_end: &'static str,
    /// Lines of their own are made for values, so that a newline around one is no part of it.
    pub has_lines: bool,
}

const QWEN: Tags = Tags {
    function: "<function=",
    name_end: ">",
    function_end: "</function>",
    parameter: "<parameter=",
    key_end: ">",
    value: "",
    parameter_end: "</parameter>",
    has_lines: true,
};

const MINIMAX: Tags =
    Tags { function: "<invoke name=", function_end: "</invoke>", parameter: "<parameter name=", ..QWEN };

const DSML: Tags = Tags {
    function: "<｜DSML｜invoke name=",
    name_end: ">",
    function_end: "</｜DSML｜invoke>",
    parameter: "<｜DSML｜parameter name=",
    key_end: ">",
    value: "",
    parameter_end: "</｜DSML｜parameter>",
    has_lines: false,
};

const GLM: Tags = Tags {
    function: "",
    name_end: "\n",
    function_end: "",
    parameter: "<arg_key>",
    key_end: "</arg_key>",
    value: "<arg_value>",
    parameter_end: "</arg_value>",
    has_lines: false,
};

impl Tags {
    /// Those of a family.
    pub fn of(family: Family) -> Option<&'static Tags> {
        match family {
            Family::QwenXml | Family::Seed => Some(&QWEN),
            Family::MiniMax => Some(&MINIMAX),
            Family::Dsml => Some(&DSML),
            Family::Glm => Some(&GLM),
            _ => None,
        }
    }
}

/// Follows the calls between two marks.
pub struct Tagged {
    tags: &'static Tags,
    close: &'static str,
    /// The function whose arguments come, and how many have come.
    name: Option<(String, usize)>,
    value: Option<Argument>,
    /// A call has come.
    has_called: bool,
}

/// A value that is being written.
struct Argument {
    kinds: Kinds,
    /// Its beginning has gone out, as JSON text.
    is_open: bool,
    has_begun: bool,
}

impl Tagged {
    /// Behind the mark that begins calls; `close` ends them.
    pub fn new(tags: &'static Tags, close: &'static str) -> Tagged {
        Tagged { tags, close, name: None, value: None, has_called: false }
    }

    /// Takes one thing out of the buffer.
    pub fn step(&mut self, buffer: &mut String, tools: &[Value], out: &mut Vec<Delta>) -> Step {
        match (&self.name, &self.value) {
            (None, _) => self.between(buffer, out),
            (Some(_), None) => self.in_function(buffer, tools, out),
            (Some(_), Some(_)) => self.in_value(buffer, out),
        }
    }

    /// Before a function, or behind the last.
    fn between(&mut self, buffer: &mut String, out: &mut Vec<Delta>) -> Step {
        let blanks = buffer.len() - buffer.trim_start().len();
        let text = &buffer[blanks..];
        if text.starts_with(self.close) && self.has_called {
            buffer.drain(..blanks + self.close.len());
            return Step::Done;
        }
        if self.has_called && self.tags.function.is_empty() {
            return self.beyond(buffer);
        }
        let Some(head) = text.strip_prefix(self.tags.function) else {
            let may_be = [self.tags.function, self.close].iter().any(|mark| mark.starts_with(text));
            return match (may_be, self.has_called) {
                (true, _) => Step::Wait,
                (false, true) => self.beyond(buffer),
                (false, false) => Step::NoCall,
            };
        };
        // A name may end with what comes next, too.
        let ends = [self.tags.name_end, self.tags.parameter, self.close];
        let end = ends.iter().filter_map(|mark| head.find(mark).map(|at| (at, *mark))).min();
        let Some((at, mark)) = end else {
            let certain = head[..head.len() - held(head, &ends)].trim_end();
            return if is_name(certain, true) { Step::Wait } else { Step::NoCall };
        };
        let name = unquoted(&head[..at]);
        if !is_name(&name, false) {
            return Step::NoCall;
        }
        out.push(Delta::Call(name.clone()));
        self.name = Some((name, 0));
        self.has_called = true;
        let behind = if mark == self.tags.name_end { mark.len() } else { 0 };
        buffer.drain(..blanks + self.tags.function.len() + at + behind);
        Step::More
    }

    /// What stands behind a call and is none belongs to nothing.
    fn beyond(&self, buffer: &mut String) -> Step {
        let marks = [self.tags.function, self.close];
        let next = marks.iter().filter(|mark| !mark.is_empty()).filter_map(|mark| buffer.find(mark)).min();
        let keep = next.unwrap_or_else(|| buffer.len() - held(buffer, &marks));
        buffer.drain(..keep);
        if next.is_some() { Step::More } else { Step::Wait }
    }

    fn in_function(&mut self, buffer: &mut String, tools: &[Value], out: &mut Vec<Delta>) -> Step {
        let Some((name, n)) = &mut self.name else { return Step::More };
        let marks = [self.tags.parameter, self.tags.function_end, self.close];
        let found = marks.iter().filter(|mark| !mark.is_empty());
        let found = found.filter_map(|mark| buffer.find(mark).map(|at| (at, *mark))).min();
        let Some((at, mark)) = found else {
            let keep = held(buffer, &marks);
            buffer.drain(..buffer.len() - keep);
            return Step::Wait;
        };
        if mark != self.tags.parameter {
            emit(out, Delta::Arguments, if *n == 0 { "{}" } else { "}" });
            self.name = None;
            buffer.drain(..at + if mark == self.close { 0 } else { mark.len() });
            return Step::More;
        }
        let head = &buffer[at + mark.len()..];
        let Some((key, rest)) = head.split_once(self.tags.key_end) else { return Step::Wait };
        let Some((_, rest)) = rest.split_once(self.tags.value) else { return Step::Wait };
        // DeepSeek says in a second attribute whether it is text.
        let kinds = match () {
            () if key.contains("string=\"true\"") => Kinds::STRING,
            () if key.contains("string=\"false\"") => Kinds::NOT_STRING,
            () => Kinds::ANY,
        };
        let key = unquoted(key);
        let kinds = if kinds == Kinds::ANY { allowed(tools, name, &key) } else { kinds };
        let begin = format!("{}{}: ", if *n == 0 { "{" } else { ", " }, Value::from(key.as_str()));
        emit(out, Delta::Arguments, &begin);
        *n += 1;
        self.value = Some(Argument { kinds, is_open: false, has_begun: false });
        *buffer = rest.to_owned();
        Step::More
    }

    fn in_value(&mut self, buffer: &mut String, out: &mut Vec<Delta>) -> Step {
        let Some(value) = &mut self.value else { return Step::More };
        if self.tags.has_lines && !value.has_begun && !buffer.is_empty() {
            if buffer.starts_with('\n') {
                buffer.drain(..1);
            }
            value.has_begun = true;
        }
        if let Some((text, rest)) = buffer.split_once(self.tags.parameter_end) {
            let text = if self.tags.has_lines { text.strip_suffix('\n').unwrap_or(text) } else { text };
            match (value.is_open, value.kinds) {
                (true, _) => emit(out, Delta::Arguments, &format!("{}\"", escaped(text))),
                (false, kinds) => emit(out, Delta::Arguments, &typed(kinds, text).to_string()),
            }
            self.value = None;
            *buffer = rest.to_owned();
            return Step::More;
        }
        if value.kinds == Kinds::STRING {
            let mark = held(buffer, &[self.tags.parameter_end]);
            let before = &buffer[..buffer.len() - mark];
            let keep = mark + usize::from(self.tags.has_lines && before.ends_with('\n'));
            let certain = buffer.len() - keep;
            if certain > 0 {
                let quote = if value.is_open { "" } else { "\"" };
                emit(out, Delta::Arguments, &format!("{quote}{}", escaped(&buffer[..certain])));
                value.is_open = true;
                buffer.drain(..certain);
            }
        }
        Step::Wait
    }

    /// Takes what is left at the end of the answer; false if it is no call.
    pub fn finish(&self, rest: &str, is_cut: bool, out: &mut Vec<Delta>) -> bool {
        match (&self.name, &self.value) {
            (Some(_), Some(value)) => {
                let rest = &rest[..rest.len() - held(rest, &[self.tags.parameter_end])];
                let rest = if self.tags.has_lines { rest.strip_suffix('\n').unwrap_or(rest) } else { rest };
                match value.kinds {
                    Kinds::STRING if value.is_open => emit(out, Delta::Arguments, &escaped(rest)),
                    Kinds::STRING => emit(out, Delta::Arguments, &format!("\"{}", escaped(rest))),
                    _ => emit(out, Delta::Arguments, rest),
                }
            }
            // The model left the marks out that end it.
            (Some((_, n)), None) if !is_cut => emit(out, Delta::Arguments, if *n == 0 { "{}" } else { "}" }),
            (Some((_, 0)), None) => emit(out, Delta::Arguments, "{"),
            (Some(_), None) => {}
            (None, _) if self.has_called || is_cut => {}
            // GLM's mark around a name and nothing else.
            (None, _) if self.tags.function.is_empty() && is_name(rest.trim(), false) => {
                out.extend([Delta::Call(rest.trim().to_owned()), Delta::Arguments("{}".to_owned())]);
            }
            (None, _) => return false,
        }
        true
    }
}

/// Whether it can be the name of a tool, or the beginning of one.
fn is_name(text: &str, may_be_empty: bool) -> bool {
    let text = text.strip_prefix('"').unwrap_or(text);
    let is_of_names = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '/');
    (may_be_empty || !text.is_empty()) && text.strip_suffix('"').unwrap_or(text).chars().all(is_of_names)
}

/// A name with or without quotes; further attributes left out.
fn unquoted(name: &str) -> String {
    let name = name.trim();
    let name = name.strip_prefix('"').unwrap_or(name);
    name.split('"').next().unwrap_or_default().to_owned()
}

/// A text as it stands between the quotes of JSON.
fn escaped(text: &str) -> String {
    let quoted = Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}
