//! Pieces of an answer, and text that waits until it is certain what it belongs to.

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Delta {
    /// The model thinks.
    Reasoning(String),
    /// The model says.
    Content(String),
    /// The model calls this tool; its arguments follow.
    Call(String),
    /// A piece of the arguments of the last call, which together are JSON.
    Arguments(String),
}

/// A tool call.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The tool.
    pub name: String,
    /// Its arguments, as JSON.
    pub arguments: String,
}

pub(super) fn emit(out: &mut Vec<Delta>, kind: fn(String) -> Delta, text: &str) {
    if !text.is_empty() {
        out.push(kind(text.to_owned()));
    }
}

/// A call that came as a whole.
pub(super) fn emit_call(out: &mut Vec<Delta>, Call { name, arguments }: Call) {
    out.extend([Delta::Call(name), Delta::Arguments(arguments)]);
}

/// Emits all of the buffer but `keep` bytes at its end.
pub(super) fn release(buffer: &mut String, keep: usize, out: &mut Vec<Delta>, kind: fn(String) -> Delta) {
    let rest = buffer.split_off(buffer.len() - keep);
    let certain = std::mem::replace(buffer, rest);
    emit(out, kind, &certain);
}

pub(super) fn trailing_blanks(text: &str) -> usize {
    text.len() - text.trim_end().len()
}

/// Bytes at the end of `text` that may be the beginning of one of `marks`.
pub fn held(text: &str, marks: &[&str]) -> usize {
    let of = |mark: &&str| {
        let longest = text.len().min(mark.len().saturating_sub(1));
        let begins = |n: &usize| mark.as_bytes().starts_with(&text.as_bytes()[text.len() - n..]);
        (1..=longest).rev().find(begins).unwrap_or(0)
    };
    marks.iter().map(of).max().unwrap_or(0)
}
