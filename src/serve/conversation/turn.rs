//! Messages with their places, and why there is no prompt of them.

use std::fmt;

use crate::chat::{ChatError, Message};

/// A message, and where it stands in the request.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    /// The path of the field.
    pub at: String,
    /// What is said.
    pub message: Message,
}

/// What a template has no place for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The text of a system message.
    System,
    /// What user or model say.
    Text,
    /// A call of a tool.
    Call,
    /// What a tool answers.
    Result,
}

/// Why there is no prompt.
#[derive(Debug)]
pub enum Unrendered {
    /// The template refuses the chat, or cannot be run.
    Template(ChatError),
    /// It leaves out this part of the message at this place.
    LeftOut(String, Part),
    /// It does not let the last message go on, which stands at this place.
    NotContinued(String),
}

impl fmt::Display for Unrendered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unrendered::Template(e) => write!(f, "the chat template cannot render this chat: {e}"),
            Unrendered::LeftOut(at, part) => {
                let (what, advice) = match part {
                    Part::System => ("a system message", "say it in a user's message"),
                    Part::Text => ("the text of this message", "join it with its neighbour, or leave it out"),
                    Part::Call => ("the call of a tool", "say it as text"),
                    Part::Result => ("the answer of a tool", "say it in a user's message"),
                };
                write!(
                    f,
                    "{at}: the chat template of this model has no place for {what} here and would drop it silently; \
                     {advice}, or start the server with another --chat-template"
                )
            }
            Unrendered::NotContinued(at) => write!(
                f,
                "{at}: the chat template of this model does not let the last message go on; end with a message of the \
                 user, or set add_generation_prompt"
            ),
        }
    }
}
