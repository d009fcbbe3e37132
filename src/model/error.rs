//! What makes a model impossible to run.

use std::fmt;

use super::known::Known;
use crate::error::{Error, Exit};
use crate::gguf::GgufError;

/// A model that cannot be run. In a box of its own, as results of hundreds of calls pass on by value what they found.
#[derive(Debug)]
pub struct ModelError(Box<Fault>);

/// Why, with the number at fault.
#[derive(Debug)]
pub(super) enum Fault {
    /// The header.
    Gguf(GgufError),
    /// `general.architecture` is not one that this version runs.
    Arch {
        /// Found.
        name: String,
        /// What is known of it.
        known: Option<&'static Known>,
    },
    /// A number out of its range.
    Range {
        /// Which.
        what: String,
        /// Found.
        found: String,
        /// Needed, in words.
        need: String,
    },
    /// A feature this version does not have.
    Unsupported {
        /// The key.
        key: String,
        /// Its value.
        value: String,
    },
    /// A tensor that is not there.
    MissingTensor(String),
    /// A tensor of another shape.
    Shape {
        /// Which.
        tensor: String,
        /// Found: matrices, rows, columns.
        found: [u64; 3],
        /// Needed.
        need: [u64; 3],
    },
    /// A tensor type without kernels.
    TensorType {
        /// Which.
        tensor: String,
        /// Its type.
        ty: &'static str,
    },
    /// A tensor that no part of the model uses.
    UnknownTensor(String),
    /// A file of nothing but layers that predict ahead.
    OnlyAhead {
        /// How many.
        layers: usize,
    },
    /// Heads that a KV cache of q8_0 cannot hold.
    HeadOfQ8 {
        /// Values of one.
        dim: usize,
    },
    /// The vocabulary has another size than the embedding.
    Vocabulary {
        /// Tokens.
        tokens: usize,
        /// Rows of the embedding.
        rows: usize,
    },
}

impl fmt::Display for ModelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Fault::Gguf(e) => e.fmt(f),
            Fault::Arch { name, known: None } => write!(
                f,
                "architecture `{name}` is not supported, and not known either: `brim models` lists those that run; use a \
                 file of one of them"
            ),
            Fault::Arch { name, known: Some(known) } => {
                write!(f, "architecture `{name}` ({}) is not supported: {}", known.models, known.lacks)?;
                if !known.nearest.is_empty() {
                    write!(f, "; the nearest that runs is `{}`", known.nearest)?;
                }
                f.write_str("; `brim models` lists those that run")
            }
            Fault::Range { what, found, need } => {
                write!(f, "{what} is {found}, needed: {need}; the file is damaged or not meant for inference")
            }
            Fault::Unsupported { key, value } => {
                write!(f, "`{key}` = {value} is not supported by this version; use a file without it")
            }
            Fault::MissingTensor(name) => {
                write!(
                    f,
                    "tensor `{name}` is missing: the file is incomplete or its architecture is misnamed; convert the model again"
                )
            }
            Fault::Shape { tensor, found, need } => {
                let words = |[matrices, rows, cols]: &[u64; 3]| match matrices {
                    1 => format!("{rows} rows of {cols}"),
                    n => format!("{n} matrices of {rows} rows of {cols}"),
                };
                let (found, need) = (words(found), words(need));
                write!(f, "tensor `{tensor}` has {found}, but the header calls for {need}; convert the model again")
            }
            Fault::TensorType { tensor, ty } => write!(
                f,
                "tensor `{tensor}` has type {ty}, which is not a weight type: use a file in any of ggml's float and \
                 quantised types"
            ),
            Fault::UnknownTensor(name) => write!(
                f,
                "tensor `{name}` is not part of this architecture: running without it would give wrong answers; \
                 use a file of a supported model"
            ),
            Fault::OnlyAhead { layers } => {
                let some = if *layers == 1 {
                    "the layer that predicts".to_owned()
                } else {
                    format!("{layers} layers that predict")
                };
                write!(
                    f,
                    "this file holds only {some} ahead (MTP, `nextn`), not the model: use the file with all layers"
                )
            }
            Fault::HeadOfQ8 { dim } => write!(
                f,
                "--kv-type q8_0 keeps values in groups of 32, and heads of this model have {dim}: use --kv-type f16"
            ),
            Fault::Vocabulary { tokens, rows } => {
                write!(
                    f,
                    "the vocabulary has {tokens} tokens, the embedding {rows} rows: the file is damaged; convert the model again"
                )
            }
        }
    }
}

impl std::error::Error for ModelError {}

impl From<Fault> for ModelError {
    #[cold]
    fn from(fault: Fault) -> Self {
        ModelError(Box::new(fault))
    }
}

impl From<GgufError> for ModelError {
    #[cold]
    fn from(e: GgufError) -> Self {
        Fault::Gguf(e).into()
    }
}

impl From<ModelError> for Error {
    fn from(e: ModelError) -> Self {
        Error::new(Exit::Model, e)
    }
}

impl ModelError {
    /// A vocabulary of another size than the embedding.
    pub fn vocabulary(tokens: usize, rows: usize) -> ModelError {
        Fault::Vocabulary { tokens, rows }.into()
    }

    /// A tensor that is not there.
    pub(super) fn missing_tensor(name: &str) -> ModelError {
        Fault::MissingTensor(name.to_owned()).into()
    }
}

/// A number out of its range.
pub(super) fn range<T>(what: &str, found: impl ToString, need: String) -> Result<T, ModelError> {
    Err(Fault::Range { what: what.to_owned(), found: found.to_string(), need }.into())
}
