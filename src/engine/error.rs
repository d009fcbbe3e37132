//! Why the engine cannot go on with a sequence.

use std::fmt;

use crate::error::{Error, Exit};
use crate::load::rows::RowError;
use crate::memory::{MemoryError, NotPopulated};
use crate::sampling::SamplingError;

/// What a sequence cannot do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum EngineError {
    /// More tokens than the context holds.
    ContextFull {
        /// Tokens there would be.
        need: usize,
        /// Positions there are.
        ctx: usize,
    },
    /// A token id that the model does not have.
    Token {
        /// The id.
        id: u32,
        /// Tokens of the vocabulary.
        n_vocab: usize,
    },
    /// A row of an embedding table on the disk that cannot be read.
    Embedding(RowError),
    /// Logits that no token can be drawn from.
    Sampling(SamplingError),
    /// A value of a hidden state is not a finite number.
    HiddenState {
        /// Which.
        index: usize,
    },
    /// Memory that was set aside for the KV cache cannot be had after all.
    Memory(NotPopulated),
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EngineError::ContextFull { need, ctx } => {
                write!(
                    f,
                    "the context is full: {need} tokens needed, {ctx} positions planned; use a shorter prompt or a larger --ctx"
                )
            }
            EngineError::Token { id, n_vocab } => {
                write!(f, "token {id} does not exist: the model has {n_vocab} tokens")
            }
            EngineError::Embedding(error) => error.fmt(f),
            EngineError::Sampling(error) => error.fmt(f),
            EngineError::HiddenState { index } => write!(
                f,
                "value {index} of the hidden state is not a finite number: the weights or the memory are damaged; check the file's \
                 checksum and run `brim selftest`"
            ),
            EngineError::Memory(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for EngineError {}

impl From<EngineError> for Error {
    fn from(e: EngineError) -> Self {
        match e {
            EngineError::Embedding(error) => error.into(),
            EngineError::Sampling(error) => error.into(),
            EngineError::Memory(error) => MemoryError::from(error).into(),
            EngineError::HiddenState { .. } => Error::new(Exit::Unexpected, e),
            EngineError::ContextFull { .. } | EngineError::Token { .. } => Error::new(Exit::Usage, e),
        }
    }
}
