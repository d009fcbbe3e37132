//! What can be wrong with a chat template, and with what it is given.

use std::fmt;

use super::bounds::Bound;
use crate::error::{Error, Exit};

/// Whose fault it is that there is no text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The template does not compile, refuses these messages, or stumbles over them.
    Chat,
    /// The template takes more than it may.
    Template,
    /// The values that the template is given are larger or more nested than they may be.
    Values,
    /// The system gives no thread for it, or the thread has ended.
    System,
}

/// A template that does not compile, or gives no text for these messages.
#[derive(Debug)]
pub struct ChatError {
    /// The file or name it was asked for by; `None` is the model's own.
    origin: Option<String>,
    fault: Fault,
    cause: String,
}

impl ChatError {
    /// From what minijinja says, or from the bound that made it say so.
    pub(super) fn new(origin: Option<&str>, cause: &minijinja::Error) -> ChatError {
        let bound = Bound::of(cause);
        let cause = match bound {
            None => format!("{cause:#}"),
            Some(bound) => match cause.line() {
                Some(line) => format!("{bound} (line {line})"),
                None => bound.to_string(),
            },
        };
        ChatError { fault: if bound.is_some() { Fault::Template } else { Fault::Chat }, ..ChatError::of(origin, cause) }
    }

    /// A source beyond a bound.
    pub(super) fn bound(origin: Option<&str>, bound: Bound) -> ChatError {
        ChatError { fault: Fault::Template, ..ChatError::of(origin, bound.to_string()) }
    }

    /// Values beyond a bound.
    pub(super) fn values(origin: Option<&str>, cause: &minijinja::Error) -> ChatError {
        let cause = cause.detail().map_or_else(|| cause.to_string(), str::to_owned);
        ChatError { fault: Fault::Values, ..ChatError::of(origin, cause) }
    }

    /// A thread that there is none of.
    pub(super) fn system(origin: Option<&str>, cause: impl fmt::Display) -> ChatError {
        ChatError { fault: Fault::System, ..ChatError::of(origin, format!("there is no thread for it: {cause}")) }
    }

    fn of(origin: Option<&str>, cause: String) -> ChatError {
        ChatError { origin: origin.map(str::to_owned), fault: Fault::Chat, cause }
    }

    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        self.fault
    }
}

impl fmt::Display for ChatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cause = &self.cause;
        match (&self.origin, self.fault) {
            (_, Fault::Values) => write!(f, "the messages, tools and variables of this chat are too large: {cause}"),
            (None, Fault::Chat | Fault::Template) => write!(
                f,
                "the model's chat template fails: {cause}; use another with --chat-template, or --raw and write the \
                 whole prompt yourself"
            ),
            (None, Fault::System) => write!(f, "the model's chat template fails: {cause}"),
            (Some(origin), _) => write!(f, "the chat template {origin} fails: {cause}"),
        }
    }
}

impl std::error::Error for ChatError {}

impl From<ChatError> for Error {
    fn from(e: ChatError) -> Self {
        let exit = match (e.fault, &e.origin) {
            (Fault::System, _) => Exit::Unexpected,
            (Fault::Values, _) | (_, Some(_)) => Exit::Usage,
            (_, None) => Exit::Model,
        };
        Error::new(exit, e)
    }
}
