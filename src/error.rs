//! The one error that reaches `main`: what failed, in whose words, and the exit code it maps to.
//!
//! Rooms keep their own small enums and implement `From<RoomError> for Error` beside them, so this file
//! knows none of them.

use std::fmt;

/// Exit codes: an interface, never renumbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Something brim did not foresee.
    Unexpected = 1,
    /// Wrong or contradictory options.
    Usage = 2,
    /// The board file.
    Board = 3,
    /// The model file.
    Model = 4,
    /// Memory: pool, box or cgroup too small.
    Memory = 5,
    /// The CPU lacks what was asked for.
    Cpu = 6,
    /// The listen address.
    Listen = 7,
}

/// What to do where the system gives no further thread or process.
pub const PROCESS_ADVICE: &str = "raise RLIMIT_NPROC (`ulimit -u`, or TasksMax= of the unit) or pids.max of the cgroup";

/// The known word nearest to `word`, if it is near enough to be meant.
pub fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let near = |distance: usize, name: &str| distance <= (word.len().max(name.len()) / 2).max(1);
    known
        .map(|name| (edit_distance(word, name), name))
        .filter(|&(distance, name)| near(distance, name))
        .min()
        .map(|(_, name)| name)
}

/// Insertions, deletions and replacements between two words.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// An error on its way to the operator.
#[derive(Debug)]
pub struct Error {
    exit: Exit,
    context: Option<String>,
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl Error {
    /// Wraps `source` under an exit code.
    pub fn new(exit: Exit, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Error { exit, context: None, source: source.into() }
    }

    /// A usage error (exit 2) with its sentence.
    pub fn usage(message: impl Into<String>) -> Self {
        Error::new(Exit::Usage, message.into())
    }

    /// A thread that the system does not give (exit 1).
    pub fn thread(source: std::io::Error) -> Self {
        Error::new(Exit::Unexpected, format!("a thread cannot be started: {source}: {PROCESS_ADVICE}"))
    }

    /// Puts `context: ` before the message, usually the path of the file at fault.
    #[must_use]
    pub fn at(mut self, context: impl fmt::Display) -> Self {
        self.context = Some(match self.context.take() {
            Some(inner) => format!("{context}: {inner}"),
            None => context.to_string(),
        });
        self
    }

    /// Adds what it was noticed by.
    #[must_use]
    pub fn also(self, noticed: &Error) -> Self {
        let text = format!("{self}; noticed by: {noticed}");
        Error::new(self.exit, text)
    }

    /// The exit code of the process.
    pub fn exit(&self) -> Exit {
        self.exit
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(context) = &self.context {
            write!(f, "{context}: ")?;
        }
        self.source.fmt(f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(self.source.as_ref())
    }
}

/// Result with the crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_nests_outside_in() {
        let e = Error::usage("bad").at("inner").at("outer");
        assert_eq!(e.to_string(), "outer: inner: bad");
        assert_eq!(e.exit() as u8, 2);
    }

    #[test]
    fn distances() {
        for (a, b, want) in [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("hvo", "hvo", 0)] {
            assert_eq!(edit_distance(a, b), want);
            assert_eq!(edit_distance(b, a), want);
        }
    }
}
