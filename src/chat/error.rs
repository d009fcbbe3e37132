//! Why a chat is not rendered.

use std::fmt;

use super::bounds;
use crate::error::{Error, Exit};

/// A template that does not compile, fails on these messages, or cannot be rendered here.
#[derive(Debug)]
pub struct ChatError {
    /// The file or name it was asked for by; `None` is the model's own.
    pub(super) origin: Option<String>,
    pub(super) cause: Cause,
}

/// What kept a template from being rendered.
#[derive(Debug)]
pub(super) enum Cause {
    /// It is wrong, or refuses the messages.
    Fails(String),
    /// It takes more than its process may have.
    BeyondBounds,
    /// The system has no process for it.
    Unavailable(String),
}

impl ChatError {
    /// Whether the system is at fault, and not the template.
    pub fn is_unavailable(&self) -> bool {
        matches!(self.cause, Cause::Unavailable(_))
    }

    /// Whether the template has run and says no, which it may not say of another chat.
    pub fn is_refusal(&self) -> bool {
        matches!(self.cause, Cause::Fails(_))
    }
}

impl fmt::Display for ChatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Cause::Unavailable(why) = &self.cause {
            return write!(f, "the chat template cannot be rendered: {why}");
        }
        match &self.origin {
            None => f.write_str("the model's chat template ")?,
            Some(origin) => write!(f, "the chat template {origin} ")?,
        }
        match &self.cause {
            Cause::Fails(why) => write!(f, "fails: {why}")?,
            _ => write!(f, "goes beyond its bounds ({})", bounds::sentence())?,
        }
        match (&self.origin, &self.cause) {
            (None, _) => {
                f.write_str("; use another with --chat-template, or --raw and write the whole prompt yourself")
            }
            (Some(_), Cause::BeyondBounds) => f.write_str("; give --chat-template a simpler one"),
            // It says itself what it stumbled over.
            (Some(_), _) => Ok(()),
        }
    }
}

impl std::error::Error for ChatError {}

impl From<ChatError> for Error {
    fn from(e: ChatError) -> Self {
        let exit = match (&e.cause, &e.origin) {
            (Cause::Unavailable(_), _) => Exit::Unexpected,
            (_, None) => Exit::Model,
            (_, Some(_)) => Exit::Usage,
        };
        Error::new(exit, e)
    }
}
