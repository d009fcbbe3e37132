//! What can be wrong with a board file.

use std::fmt;

use super::embedded::EMBEDDED;
use crate::error::{Error, Exit, nearest};

/// A board that was refused.
#[derive(Clone, Debug, PartialEq)]
pub enum BoardError {
    /// No board of that name is embedded, and no file has that path.
    NoSuchBoard {
        /// The name asked for.
        name: String,
    },
    /// The file cannot be read.
    Unreadable {
        /// The system's words.
        cause: String,
    },
    /// Not TOML, or a value of the wrong type.
    Syntax {
        /// Line, from 1.
        line: usize,
        /// The parser's words.
        message: String,
    },
    /// A key or value that does not exist.
    Unknown {
        /// Line, from 1.
        line: usize,
        /// `key` or `value`.
        kind: &'static str,
        /// What was found.
        found: String,
        /// What is known at that place.
        known: Vec<String>,
    },
    /// A number outside its range.
    Range {
        /// The key.
        key: &'static str,
        /// What was found.
        found: f64,
        /// Least allowed.
        min: f64,
        /// Most allowed.
        max: f64,
    },
    /// A text that is not a checksum.
    NotSha256 {
        /// What was found.
        found: String,
    },
    /// A value that this box or another setting rules out.
    Refused {
        /// The key.
        key: &'static str,
        /// Why, and what to do.
        why: String,
    },
    /// A feature that this version does not have.
    NotSupported {
        /// Key and value.
        setting: &'static str,
    },
}

impl fmt::Display for BoardError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BoardError::NoSuchBoard { name } => {
                let names = || EMBEDDED.iter().map(|(name, _)| *name);
                write!(f, "no board or file is named {name}")?;
                if let Some(near) = nearest(name, names()) {
                    write!(f, "; did you mean {near}?")?;
                }
                write!(f, "; embedded boards: {}", names().collect::<Vec<_>>().join(", "))
            }
            BoardError::Unreadable { cause } => write!(f, "cannot read the board file: {cause}"),
            BoardError::Syntax { line, message } => write!(f, "line {line}: {message}"),
            BoardError::Unknown { line, kind, found, known } => {
                write!(f, "line {line}: unknown {kind} `{found}`; ")?;
                match nearest(found, known.iter().map(String::as_str)) {
                    Some(near) => write!(f, "did you mean `{near}`?"),
                    None => write!(f, "known: {}", known.join(", ")),
                }
            }
            BoardError::Range { key, found, min, max } => {
                write!(f, "{key} is {found}; it must be {min} to {max}")
            }
            BoardError::NotSha256 { found } => {
                write!(f, "model.sha256 is {found:?}: needs 64 hexadecimal digits, as `sha256sum` prints them")
            }
            BoardError::Refused { key, why } => write!(f, "{key}: {why}"),
            BoardError::NotSupported { setting } => {
                write!(f, "{setting} is not supported by this version of brim; remove it from the board file")
            }
        }
    }
}

impl std::error::Error for BoardError {}

impl From<BoardError> for Error {
    fn from(error: BoardError) -> Self {
        Error::new(Exit::Board, error)
    }
}
