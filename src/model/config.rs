//! What a model is: the numbers of its header, checked against each other.

use std::fmt;

use crate::error::{Error, Exit};
use crate::gguf::{GgufError, Metadata};
use crate::kernels::QUERY_ROWS_MAX;

/// The architectures there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// Llama and Mistral.
    Llama,
    /// Qwen2, with biases on Q, K and V.
    Qwen2,
    /// Qwen3, with a norm on every head of Q and K.
    Qwen3,
    /// Qwen3 with experts.
    Qwen3Moe,
}

impl Arch {
    const ALL: [Arch; 4] = [Arch::Llama, Arch::Qwen2, Arch::Qwen3, Arch::Qwen3Moe];

    /// `general.architecture`, and the prefix of the other keys.
    pub const fn name(self) -> &'static str {
        match self {
            Arch::Llama => "llama",
            Arch::Qwen2 => "qwen2",
            Arch::Qwen3 => "qwen3",
            Arch::Qwen3Moe => "qwen3moe",
        }
    }
}

/// How many experts a feed-forward layer has, and how many of them a token meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Experts {
    /// All.
    pub count: usize,
    /// Chosen for each token.
    pub used: usize,
}

/// The numbers of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Architecture.
    pub arch: Arch,
    /// Layers.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Width of the feed-forward layer, or of each of its experts.
    pub n_ff: usize,
    /// Its experts, where it has any.
    pub experts: Option<Experts>,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// How many of them are rotated.
    pub rope_dim: usize,
    /// Base of the rotary frequencies.
    pub rope_base: f32,
    /// Positions are divided by this (linear scaling).
    pub rope_scale: f32,
    /// Added under the root of every RMSNorm.
    pub norm_eps: f32,
    /// Context length the model was trained for.
    pub ctx_train: usize,
}

/// A model that cannot be run, with the number at fault.
#[derive(Debug)]
pub enum ModelError {
    /// The header.
    Gguf(GgufError),
    /// `general.architecture` is none of ours.
    Arch(String),
    /// A number out of its range.
    Range {
        /// Which.
        what: &'static str,
        /// Found.
        found: u64,
        /// Needed, in words.
        need: &'static str,
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
        match self {
            ModelError::Gguf(e) => e.fmt(f),
            ModelError::Arch(name) => write!(
                f,
                "architecture `{name}` is not supported: this version runs llama, qwen2, qwen3 and qwen3moe; convert \
                 the model to one of these or use another file"
            ),
            ModelError::Range { what, found, need } => {
                write!(f, "{what} is {found}, needed: {need}; the file is damaged or not meant for inference")
            }
            ModelError::Unsupported { key, value } => {
                write!(f, "`{key}` = {value} is not supported by this version; use a file without it")
            }
            ModelError::MissingTensor(name) => {
                write!(
                    f,
                    "tensor `{name}` is missing: the file is incomplete or its architecture is misnamed; convert the model again"
                )
            }
            ModelError::Shape { tensor, found, need } => {
                let words = |[matrices, rows, cols]: &[u64; 3]| match matrices {
                    1 => format!("{rows} rows of {cols}"),
                    n => format!("{n} matrices of {rows} rows of {cols}"),
                };
                let (found, need) = (words(found), words(need));
                write!(f, "tensor `{tensor}` has {found}, the header's numbers need {need}; convert the model again")
            }
            ModelError::TensorType { tensor, ty } => write!(
                f,
                "tensor `{tensor}` has type {ty}, which is no type of weights: use a file in any of ggml's float and quantised \
                 types up to id 42"
            ),
            ModelError::UnknownTensor(name) => write!(
                f,
                "tensor `{name}` belongs to no part of this architecture: running without it would give wrong answers; \
                 use a file of a supported model"
            ),
            ModelError::Vocabulary { tokens, rows } => {
                write!(
                    f,
                    "the vocabulary has {tokens} tokens, the embedding {rows} rows: the file is damaged; convert the model again"
                )
            }
        }
    }
}

impl std::error::Error for ModelError {}

impl From<GgufError> for ModelError {
    fn from(e: GgufError) -> Self {
        ModelError::Gguf(e)
    }
}

impl From<ModelError> for Error {
    fn from(e: ModelError) -> Self {
        Error::new(Exit::Model, e)
    }
}

/// Most layers: the deepest published dense model has 126.
pub const LAYERS_MAX: usize = 256;

/// Most experts of a layer: the largest published number is 512. Sorting tokens by expert counts them in a table of so
/// many entries on the caller's stack.
pub const EXPERTS_MAX: usize = 512;

/// Bound on every width, so that products of two widths and a context stay far below 2^63.
const WIDTH_MAX: u64 = 1 << 20;

/// Most values of a head: four times what the largest known model has; one head is worked on in a worker's stack.
pub const HEAD_DIM_MAX: usize = 1024;

impl Config {
    /// Reads and checks the numbers of a header.
    ///
    /// # Errors
    /// The first number that is missing, out of range, or asks for a feature that is not there.
    pub fn from_metadata(meta: &Metadata<'_>) -> Result<Config, ModelError> {
        let name = meta.required_str("general.architecture")?;
        let Some(arch) = Arch::ALL.into_iter().find(|a| a.name() == name) else {
            return Err(ModelError::Arch(name.chars().take(64).collect()));
        };
        let key = |suffix: &str| format!("{name}.{suffix}");
        let number = |suffix: &'static str, max: u64| -> Result<usize, ModelError> {
            in_range(suffix, u64::from(meta.required_u32(&key(suffix))?), max)
        };
        let optional = |suffix: &'static str, default: usize, max: u64| -> Result<usize, ModelError> {
            match meta.u32(&key(suffix))? {
                Some(found) => in_range(suffix, u64::from(found), max),
                None => Ok(default),
            }
        };
        let n_embd = number("embedding_length", WIDTH_MAX)?;
        let n_heads = number("attention.head_count", WIDTH_MAX)?;
        let n_kv_heads = optional("attention.head_count_kv", n_heads, n_heads as u64)?;
        let head_dim = optional("attention.key_length", n_embd / n_heads, HEAD_DIM_MAX as u64)?;
        let value_dim = optional("attention.value_length", head_dim, HEAD_DIM_MAX as u64)?;
        let rope_dim = optional("rope.dimension_count", head_dim, head_dim as u64)?;
        let experts = match arch {
            Arch::Qwen3Moe => Some(experts(meta, name)?),
            _ => None,
        };
        let n_ff = match experts {
            // Without a width of its own, an expert has its share of a dense layer's.
            Some(experts) if meta.u32(&key("expert_feed_forward_length"))?.is_none() => {
                number("feed_forward_length", WIDTH_MAX)? / experts.used
            }
            Some(_) => number("expert_feed_forward_length", WIDTH_MAX)?,
            None => number("feed_forward_length", WIDTH_MAX)?,
        };
        let config = Config {
            arch,
            n_layers: number("block_count", LAYERS_MAX as u64)?,
            n_embd,
            n_ff,
            experts,
            n_heads,
            n_kv_heads,
            head_dim,
            rope_dim,
            rope_base: meta.f32(&key("rope.freq_base"))?.unwrap_or(10_000.0),
            rope_scale: rope_scale(meta, name)?,
            norm_eps: meta.f32(&key("attention.layer_norm_rms_epsilon"))?.unwrap_or(1e-5),
            ctx_train: optional("context_length", 4096, 1 << 30)?,
        };
        let range = |what, found: usize, need| Err(ModelError::Range { what, found: found as u64, need });
        if head_dim == 0 || !head_dim.is_multiple_of(2) || !rope_dim.is_multiple_of(2) {
            return range("the size of a head", head_dim, "an even number");
        }
        if value_dim != head_dim {
            return range("attention.value_length", value_dim, "the same as attention.key_length");
        }
        if !n_heads.is_multiple_of(n_kv_heads) || n_heads / n_kv_heads > QUERY_ROWS_MAX {
            return range("attention.head_count", n_heads, "1 to 96 times attention.head_count_kv");
        }
        if !(config.rope_base.is_finite() && config.rope_base > 0.0 && config.norm_eps >= 0.0 && config.norm_eps < 1.0)
        {
            return range("rope.freq_base or attention.layer_norm_rms_epsilon", 0, "a positive, finite number");
        }
        if config.n_ff == 0 {
            return range("the width of an expert", 0, "at least 1");
        }
        for suffix in ["expert_count", "expert_shared_count", "attention.sliding_window"] {
            if let Some(found) = meta.u32(&key(suffix))?.filter(|&n| n > 0 && arch_lacks(arch, suffix)) {
                return Err(ModelError::Unsupported { key: key(suffix), value: found.to_string() });
            }
        }
        Ok(config)
    }

    /// Query heads per key and value head.
    pub fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }
}

/// Whether a feature that only some architectures have is one that this one lacks. Qwen2 files carry a sliding window that
/// their configuration switches off; elsewhere it counts.
fn arch_lacks(arch: Arch, suffix: &str) -> bool {
    !matches!((arch, suffix), (Arch::Qwen2, "attention.sliding_window") | (Arch::Qwen3Moe, "expert_count"))
}

fn experts(meta: &Metadata<'_>, arch: &str) -> Result<Experts, ModelError> {
    let within = |what: &'static str, max: usize, need| match meta.required_u32(&format!("{arch}.{what}"))? as usize {
        found if (1..=max).contains(&found) => Ok(found),
        found => Err(ModelError::Range { what, found: found as u64, need }),
    };
    let count = within("expert_count", EXPERTS_MAX, "1 to 512, which is what the table for sorting tokens holds")?;
    let used = within("expert_used_count", count, "at least 1 and no more than expert_count")?;
    let key = format!("{arch}.expert_weights_scale");
    match meta.f32(&key)? {
        Some(scale) if scale != 0.0 && scale != 1.0 => Err(ModelError::Unsupported { key, value: scale.to_string() }),
        _ => Ok(Experts { count, used }),
    }
}

fn in_range(what: &'static str, found: u64, max: u64) -> Result<usize, ModelError> {
    match found {
        1.. if found <= max => Ok(found as usize),
        _ => Err(ModelError::Range { what, found, need: "at least 1 and no more than the format's bound" }),
    }
}

fn rope_scale(meta: &Metadata<'_>, arch: &str) -> Result<f32, ModelError> {
    let kind = format!("{arch}.rope.scaling.type");
    match meta.str(&kind)? {
        None | Some("none") => Ok(1.0),
        Some("linear") => {
            let factor = meta.f32(&format!("{arch}.rope.scaling.factor"))?.unwrap_or(1.0);
            match factor.is_finite() && factor > 0.0 {
                true => Ok(factor),
                false => Err(ModelError::Unsupported {
                    key: format!("{arch}.rope.scaling.factor"),
                    value: factor.to_string(),
                }),
            }
        }
        Some(other) => Err(ModelError::Unsupported { key: kind, value: other.chars().take(64).collect() }),
    }
}
