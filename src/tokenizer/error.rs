//! What can be wrong with a vocabulary.

use std::fmt;

use super::pre;
use crate::error::{Error, Exit};

/// A name from the file, cut to what fits an error message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named(String);

impl Named {
    /// Longest name shown, in characters.
    const SHOWN: usize = 48;

    /// Keeps the first characters of `name`.
    pub fn new(name: &str) -> Self {
        Named(name.chars().take(Self::SHOWN).collect())
    }
}

/// A vocabulary that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenizerError {
    /// `tokenizer.ggml.model` is not one brim has.
    UnknownModel(Named),
    /// `tokenizer.ggml.pre` is not one brim has.
    UnknownPre(Named),
    /// A key that this kind of vocabulary needs is absent.
    Missing(&'static str),
    /// The file has no tokens.
    NoTokens,
    /// More tokens or merges, or more bytes of text, than ids and offsets can count.
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many the file claims.
        have: u64,
        /// The most brim takes.
        limit: u64,
    },
    /// An array that goes with the tokens is shorter than they are.
    Short {
        /// The array's key.
        what: &'static str,
        /// Its elements.
        have: u64,
        /// The tokens.
        need: u64,
    },
    /// Two tokens have the same text.
    Duplicate {
        /// The first of them.
        first: u32,
        /// The second.
        second: u32,
    },
    /// A score is not a number.
    ScoreNotANumber {
        /// The token.
        id: u32,
    },
    /// A merge is not two tokens with a blank between.
    BadMerge {
        /// Its position in the list.
        index: u32,
    },
    /// A special id lies outside the vocabulary.
    IdOutOfRange {
        /// The key.
        what: &'static str,
        /// The id.
        id: u32,
        /// The tokens there are.
        n_tokens: u32,
    },
    /// The memory handed over for the tables is too small.
    Region {
        /// Bytes handed over.
        have: u64,
        /// Bytes needed.
        need: u64,
    },
}

impl fmt::Display for TokenizerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownModel(Named(name)) => write!(
                f,
                "tokenizer.ggml.model is {name:?}; brim supports \"llama\" (SPM), \"gpt2\" (byte-level BPE), \
                 \"gemma4\", \"bert\" (WordPiece) and \"t5\" (unigram); no architecture it runs comes with another"
            ),
            Self::UnknownPre(Named(name)) => write!(
                f,
                "tokenizer.ggml.pre is {name:?}, which brim does not know; cutting text another way would give wrong \
                 tokens. If it cuts like one of these, name that one with --pre: {}",
                pre::list()
            ),
            Self::Missing(key) => write!(f, "the file has no {key}; convert the model again with its vocabulary"),
            Self::NoTokens => write!(f, "tokenizer.ggml.tokens is empty; convert the model again with its vocabulary"),
            Self::TooMany { what, have, limit } => {
                write!(f, "{have} {what} in the vocabulary, brim takes at most {limit}; the file is damaged")
            }
            Self::Short { what, have, need } => {
                write!(f, "{what} has {have} elements for {need} tokens; the file is damaged, fetch it again")
            }
            Self::Duplicate { first, second } => {
                write!(f, "tokens {first} and {second} have the same text; convert the model again")
            }
            Self::ScoreNotANumber { id } => {
                write!(f, "the score of token {id} is not a number; the file is damaged, fetch it again")
            }
            Self::BadMerge { index } => write!(
                f,
                "merge {index} does not join two tokens of the vocabulary into a third; convert the model again"
            ),
            Self::IdOutOfRange { what, id, n_tokens } => {
                write!(f, "{what} is {id}, the vocabulary has {n_tokens} tokens; set it to one of them or remove it")
            }
            Self::Region { have, need } => {
                write!(f, "the vocabulary needs {need} bytes, its region has {have}; this is a fault in the plan")
            }
        }
    }
}

impl std::error::Error for TokenizerError {}

impl From<TokenizerError> for Error {
    fn from(error: TokenizerError) -> Self {
        Error::new(Exit::Model, error)
    }
}
