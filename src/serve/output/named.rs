//! Calls whose name stands before arguments in JSON, with marks between them. Arguments go out piece by piece.

use super::family::Family;
use super::json::Object;
use super::pieces::{Delta, emit, release};
use super::syntax::Step;

/// Marks around one call among several.
pub struct Heads {
    /// Before a call; empty where each has what stands around calls.
    begin: &'static str,
    /// Behind its arguments.
    end: &'static str,
    /// Between name and arguments.
    separator: &'static str,
}

const DEEPSEEK: Heads =
    Heads { begin: "<｜tool▁call▁begin｜>", end: "<｜tool▁call▁end｜>", separator: "<｜tool▁sep｜>" };
const KIMI: Heads =
    Heads { begin: "<|tool_call_begin|>", end: "<|tool_call_end|>", separator: "<|tool_call_argument_begin|>" };
const MINISTRAL: Heads = Heads { begin: "", end: "", separator: "[ARGS]" };

/// Longest head of a call; more is none.
const HEAD_BYTES_MAX: usize = 512;

impl Heads {
    /// Those of a family.
    pub fn of(family: Family) -> Option<&'static Heads> {
        match family {
            Family::DeepSeek | Family::DeepSeek31 => Some(&DEEPSEEK),
            Family::Kimi => Some(&KIMI),
            Family::Mistral | Family::Ministral => Some(&MINISTRAL),
            _ => None,
        }
    }

    /// The name in what stands before arguments.
    fn name(&self, head: &str) -> Option<String> {
        let head = match head.split_once(self.separator) {
            // DeepSeek's first form has a kind before it, and a fence behind it.
            Some(("function", name)) => name.split("```").next().unwrap_or_default(),
            Some((name, _)) => name,
            None => head,
        };
        let name = head.split("[CALL_ID]").next().unwrap_or_default().trim();
        // Kimi counts its calls: `functions.NAME:0`.
        let name = name.strip_prefix("functions.").unwrap_or(name);
        let name = match name.rsplit_once(':') {
            Some((name, n)) if n.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => name,
        };
        let is_name = !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || "<>[]{}\"".contains(c));
        is_name.then(|| name.to_owned())
    }
}

/// Follows the calls between two marks.
pub struct Named {
    heads: &'static Heads,
    /// What ends them; empty where one ends with its arguments.
    close: &'static str,
    part: Part,
    has_called: bool,
}

enum Part {
    Between,
    Head,
    Arguments(Object),
}

impl Named {
    /// Behind the mark that begins calls; `close` ends them.
    pub fn new(heads: &'static Heads, close: &'static str) -> Named {
        let part = if heads.begin.is_empty() { Part::Head } else { Part::Between };
        Named { heads, close, part, has_called: false }
    }

    /// Whether nothing has come yet, and a list may come as well.
    pub fn may_be_list(&self) -> bool {
        self.heads.begin.is_empty() && matches!(self.part, Part::Head)
    }

    /// Takes one thing out of the buffer.
    pub fn step(&mut self, buffer: &mut String, out: &mut Vec<Delta>) -> Step {
        match &mut self.part {
            Part::Between => {
                let marks = [self.heads.begin, self.close];
                let Some((at, mark)) = marks.iter().filter_map(|mark| buffer.find(mark).map(|at| (at, *mark))).min()
                else {
                    return Step::Wait;
                };
                if !self.has_called && (mark == self.close || !buffer[..at].trim().is_empty()) {
                    return Step::NoCall;
                }
                buffer.drain(..at + mark.len());
                if mark == self.close {
                    return Step::Done;
                }
                self.part = Part::Head;
                Step::More
            }
            Part::Head => self.head(buffer, out),
            Part::Arguments(object) => {
                let n = object.scan(buffer);
                let has_ended = object.has_ended;
                let keep = buffer.len() - n;
                release(buffer, keep, out, Delta::Arguments);
                match (has_ended, self.heads.begin.is_empty()) {
                    (false, _) => Step::Wait,
                    (true, true) => Step::Done,
                    (true, false) => {
                        self.part = Part::Between;
                        Step::More
                    }
                }
            }
        }
    }

    fn head(&mut self, buffer: &mut String, out: &mut Vec<Delta>) -> Step {
        let arguments = buffer.find('{');
        // A call without arguments has none to begin with.
        let end = Some(self.heads.end).filter(|end| !end.is_empty()).and_then(|end| buffer.find(end));
        let at = match (arguments, end) {
            (Some(at), end) if end.is_none_or(|end| at < end) => at,
            (_, Some(end)) => end,
            (None, None) if buffer.len() > HEAD_BYTES_MAX && !self.has_called => return Step::NoCall,
            (_, None) => return Step::Wait,
        };
        let Some(name) = self.heads.name(&buffer[..at]) else {
            self.part = Part::Between;
            return if self.has_called { Step::More } else { Step::NoCall };
        };
        out.push(Delta::Call(name));
        self.has_called = true;
        buffer.drain(..at);
        if buffer.starts_with('{') {
            self.part = Part::Arguments(Object::default());
        } else {
            emit(out, Delta::Arguments, "{}");
            self.part = Part::Between;
        }
        Step::More
    }

    /// Takes what is left at the end of the answer; false if it is no call.
    pub fn finish(&self, rest: &str, is_cut: bool, out: &mut Vec<Delta>) -> bool {
        match &self.part {
            Part::Arguments(_) => emit(out, Delta::Arguments, rest),
            Part::Head if rest.contains(self.heads.separator) => {
                out.extend(self.heads.name(rest).map(Delta::Call));
                if !is_cut {
                    emit(out, Delta::Arguments, "{}");
                }
            }
            _ => return self.has_called || is_cut,
        }
        true
    }
}
