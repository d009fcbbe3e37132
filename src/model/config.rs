//! What a model is: the numbers of its header, checked against each other.

use super::error::ModelError;
use super::rope::Rope;
use crate::gguf::{Metadata, Value};
use crate::kernels::QUERY_ROWS_MAX;

/// The architectures there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// Llama, Mistral, SmolLM; with experts Mixtral.
    Llama,
    /// Qwen2, with biases on Q, K and V.
    Qwen2,
    /// Qwen3, with a norm on every head of Q and K.
    Qwen3,
    /// Qwen3 with experts.
    Qwen3Moe,
    /// MiniMax M2.
    MiniMaxM2,
    /// gpt-oss.
    GptOss,
    /// GLM-4.5 and later, with experts.
    Glm4Moe,
    /// Gemma 3, text.
    Gemma3,
    /// Phi-3 and Phi-4.
    Phi3,
}

impl Arch {
    /// All of them.
    pub const ALL: [Arch; 9] = [
        Arch::Llama,
        Arch::Qwen2,
        Arch::Qwen3,
        Arch::Qwen3Moe,
        Arch::MiniMaxM2,
        Arch::GptOss,
        Arch::Glm4Moe,
        Arch::Gemma3,
        Arch::Phi3,
    ];

    /// `general.architecture`, and the prefix of the other keys.
    pub const fn name(self) -> &'static str {
        match self {
            Arch::Llama => "llama",
            Arch::Qwen2 => "qwen2",
            Arch::Qwen3 => "qwen3",
            Arch::Qwen3Moe => "qwen3moe",
            Arch::MiniMaxM2 => "minimax-m2",
            Arch::GptOss => "gpt-oss",
            Arch::Glm4Moe => "glm4moe",
            Arch::Gemma3 => "gemma3",
            Arch::Phi3 => "phi3",
        }
    }
}

/// What a router makes of its scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gating {
    /// Softmax over all experts.
    Softmax,
    /// Softmax over those chosen.
    SoftmaxOfChosen,
    /// Each score by itself.
    Sigmoid,
}

/// The experts of feed-forward layers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Experts {
    /// All.
    pub count: usize,
    /// Chosen for each token.
    pub used: usize,
    /// Width of each.
    pub n_ff: usize,
    /// Width of the expert that every token meets besides; 0 if there is none.
    pub n_ff_shared: usize,
    /// How scores become weights.
    pub gating: Gating,
    /// Whether the weights of those chosen are scaled to the sum 1.
    pub normalised: bool,
    /// What the weights are multiplied by in the end.
    pub scale: f32,
    /// The first layers that have a dense feed-forward layer instead.
    pub leading_dense: usize,
}

/// Layers whose tokens see only what is near.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// Positions a token sees, itself among them.
    pub len: usize,
    /// Which layers these are.
    pub layers: Vec<bool>,
    /// Their rotation.
    pub rope: Rope,
}

/// The numbers of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Architecture.
    pub arch: Arch,
    /// Layers.
    pub n_layers: usize,
    /// Further layers of the file, which predict tokens ahead and are left there.
    pub n_layers_skipped: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Width of dense feed-forward layers; 0 if there are none.
    pub n_ff: usize,
    /// The experts, where there are any.
    pub experts: Option<Experts>,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// The rotation of heads.
    pub rope: Rope,
    /// Layers with a sliding window, where there are any.
    pub window: Option<Window>,
    /// What the dot products of attention are multiplied by.
    pub attention_scale: f32,
    /// What rows of the embedding are multiplied by.
    pub embedding_scale: f32,
    /// Logits are squeezed into plus and minus this, `cap * tanh(logit / cap)`.
    pub logit_cap: Option<f32>,
    /// Added under the root of every RMSNorm.
    pub norm_eps: f32,
    /// Context length the model was trained for.
    pub ctx_train: usize,
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

/// The header of one architecture.
struct Header<'m, 'a> {
    meta: &'m Metadata<'a>,
    arch: Arch,
}

impl Header<'_, '_> {
    fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.arch.name())
    }

    /// A number that must be there, 1 to `max`.
    fn number(&self, suffix: &'static str, max: usize) -> Result<usize, ModelError> {
        in_range(suffix, self.meta.required_u32(&self.key(suffix))?, max)
    }

    /// A number that must be 1 to `max` if it is there.
    fn optional(&self, suffix: &'static str, default: usize, max: usize) -> Result<usize, ModelError> {
        match self.meta.u32(&self.key(suffix))? {
            Some(found) => in_range(suffix, found, max),
            None => Ok(default),
        }
    }

    /// A number up to `max`, 0 without the key.
    fn count(&self, suffix: &'static str, max: usize) -> Result<usize, ModelError> {
        match self.meta.u32(&self.key(suffix))?.unwrap_or(0) {
            0 => Ok(0),
            found => in_range(suffix, found, max),
        }
    }

    /// A float that must be finite and positive if it is there.
    fn float(&self, suffix: &'static str) -> Result<Option<f32>, ModelError> {
        match self.meta.f32(&self.key(suffix))? {
            Some(found) if !found.is_finite() || found < 0.0 => self.unsupported(suffix, found.to_string()),
            found => Ok(found),
        }
    }

    fn unsupported<T>(&self, suffix: &str, value: String) -> Result<T, ModelError> {
        Err(ModelError::Unsupported { key: self.key(suffix), value })
    }
}

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
        let header = Header { meta, arch };
        let width = WIDTH_MAX as usize;
        let n_embd = header.number("embedding_length", width)?;
        let n_heads = header.number("attention.head_count", width)?;
        let n_kv_heads = header.optional("attention.head_count_kv", n_heads, n_heads)?;
        let head_dim = header.optional("attention.key_length", n_embd / n_heads, HEAD_DIM_MAX)?;
        let value_dim = header.optional("attention.value_length", head_dim, HEAD_DIM_MAX)?;
        let range = |what, found: usize, need| Err(ModelError::Range { what, found: found as u64, need });
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return range("the size of a head", head_dim, "an even number");
        }
        if value_dim != head_dim {
            return range("attention.value_length", value_dim, "the same as attention.key_length");
        }
        if !n_heads.is_multiple_of(n_kv_heads) || n_heads / n_kv_heads > QUERY_ROWS_MAX {
            return range("attention.head_count", n_heads, "1 to 192 times attention.head_count_kv");
        }
        let ctx_train = header.optional("context_length", 4096, 1 << 30)?;
        let n_blocks = header.number("block_count", LAYERS_MAX)?;
        let n_layers_skipped = match arch {
            Arch::Glm4Moe => header.count("nextn_predict_layers", n_blocks - 1)?,
            _ => 0,
        };
        let n_layers = n_blocks - n_layers_skipped;
        let experts = experts(&header)?;
        let n_ff = match experts {
            Some(experts) if experts.leading_dense == 0 => 0,
            _ => header.number("feed_forward_length", width)?,
        };
        let rope = Rope::from_metadata(meta, name, head_dim, ctx_train)?;
        let norm_eps = header.float("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5);
        if norm_eps >= 1.0 {
            return range("attention.layer_norm_rms_epsilon", norm_eps as usize, "less than 1");
        }
        for suffix in lacking(arch) {
            if let Some(found) = meta.u32(&header.key(suffix))?.filter(|&n| n > 0) {
                return header.unsupported(suffix, found.to_string());
            }
        }
        // Divided into groups of which only some are chosen from; one group is none.
        if let Some(groups) = meta.u32(&header.key("expert_group_count"))?.filter(|&n| n > 1) {
            return header.unsupported("expert_group_count", groups.to_string());
        }
        Ok(Config {
            arch,
            n_layers,
            n_layers_skipped,
            n_embd,
            n_ff,
            experts,
            n_heads,
            n_kv_heads,
            head_dim,
            window: window(&header, n_layers, &rope)?,
            rope,
            attention_scale: match arch {
                // Of the published sizes the one with 62 layers alone scales by the width of the stream.
                Arch::Gemma3 if n_layers == 62 => ((n_embd / n_heads) as f32).sqrt().recip(),
                _ => (head_dim as f32).sqrt().recip(),
            },
            embedding_scale: if arch == Arch::Gemma3 { (n_embd as f32).sqrt() } else { 1.0 },
            logit_cap: match arch {
                Arch::Gemma3 => header.float("final_logit_softcapping")?.filter(|&cap| cap > 0.0),
                _ => None,
            },
            norm_eps,
            ctx_train,
        })
    }

    /// Query heads per key and value head.
    pub fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// Positions that a token of `layer` sees; `usize::MAX` for all.
    pub fn window_of(&self, layer: usize) -> usize {
        self.window.as_ref().filter(|window| window.layers[layer]).map_or(usize::MAX, |window| window.len)
    }

    /// The widest dense feed-forward layer, experts that every token meets among them; 0 if there is none.
    pub fn n_ff_dense(&self) -> usize {
        self.n_ff.max(self.experts.map_or(0, |experts| experts.n_ff_shared))
    }

    /// Whether `layer` has experts.
    pub fn has_experts(&self, layer: usize) -> bool {
        self.experts.is_some_and(|experts| layer >= experts.leading_dense)
    }
}

/// Features that a key switches on with a number above 0 and that `arch` lacks. Qwen2 and Phi-3 files carry a sliding window
/// that is not meant: Qwen2's configuration switches it off, and llama.cpp, which writes Phi-3's, leaves it out.
fn lacking(arch: Arch) -> impl Iterator<Item = &'static str> {
    const KEYS: [&str; 4] = ["expert_count", "expert_shared_count", "attention.sliding_window", "nextn_predict_layers"];
    let has = move |key: &str| match arch {
        Arch::Llama => key == "expert_count",
        Arch::Qwen2 | Arch::Phi3 | Arch::Gemma3 => key == "attention.sliding_window",
        Arch::Qwen3 => false,
        Arch::Qwen3Moe | Arch::MiniMaxM2 => key == "expert_count",
        Arch::GptOss => key == "expert_count" || key == "attention.sliding_window",
        Arch::Glm4Moe => key != "attention.sliding_window",
    };
    KEYS.into_iter().filter(move |key| !has(key))
}

fn experts(header: &Header<'_, '_>) -> Result<Option<Experts>, ModelError> {
    let arch = header.arch;
    match arch {
        Arch::Llama if header.count("expert_count", EXPERTS_MAX)? == 0 => return Ok(None),
        Arch::Qwen2 | Arch::Qwen3 | Arch::Gemma3 | Arch::Phi3 => return Ok(None),
        _ => {}
    }
    let within = |what: &'static str, max: usize, need| match header.meta.required_u32(&header.key(what))? as usize {
        found if (1..=max).contains(&found) => Ok(found),
        found => Err(ModelError::Range { what, found: found as u64, need }),
    };
    let count = within("expert_count", EXPERTS_MAX, "1 to 512, which is what the table for sorting tokens holds")?;
    let used = within("expert_used_count", count, "at least 1 and no more than expert_count")?;
    let width = WIDTH_MAX as usize;
    let own = if arch == Arch::Llama { 0 } else { header.count("expert_feed_forward_length", width)? };
    let n_ff = match (own, arch) {
        // Without a width of its own, an expert has its share of a dense layer's.
        (0, Arch::Qwen3Moe | Arch::Glm4Moe) => header.number("feed_forward_length", width)? / used,
        (0, _) => header.number("feed_forward_length", width)?,
        (own, _) => own,
    };
    if n_ff == 0 {
        return Err(ModelError::Range { what: "the width of an expert", found: 0, need: "at least 1" });
    }
    let shared = if arch == Arch::Glm4Moe { header.count("expert_shared_count", 64)? } else { 0 };
    let gating = match arch {
        Arch::GptOss => Gating::SoftmaxOfChosen,
        Arch::MiniMaxM2 | Arch::Glm4Moe => match header.meta.u32(&header.key("expert_gating_func"))? {
            None | Some(0 | 2) => Gating::Sigmoid,
            Some(1) => Gating::Softmax,
            Some(3) => Gating::SoftmaxOfChosen,
            Some(other) => return header.unsupported("expert_gating_func", other.to_string()),
        },
        _ => Gating::Softmax,
    };
    let scale = match header.float("expert_weights_scale")? {
        None | Some(0.0) => 1.0,
        Some(scale) if scale != 1.0 && arch != Arch::Glm4Moe => {
            return header.unsupported("expert_weights_scale", scale.to_string());
        }
        Some(scale) => scale,
    };
    let (normalised, leading_dense) = match arch {
        Arch::GptOss => (false, 0),
        Arch::Glm4Moe => (
            header.meta.bool(&header.key("expert_weights_norm"))?.unwrap_or(false),
            header.count("leading_dense_block_count", LAYERS_MAX)?,
        ),
        _ => (true, 0),
    };
    Ok(Some(Experts { count, used, n_ff, n_ff_shared: shared * n_ff, gating, normalised, scale, leading_dense }))
}

fn window(header: &Header<'_, '_>, n_layers: usize, rope: &Rope) -> Result<Option<Window>, ModelError> {
    // Every so many layers the last sees everything.
    let usual = match header.arch {
        Arch::GptOss => 2,
        Arch::Gemma3 => 6,
        _ => return Ok(None),
    };
    let len = header.count("attention.sliding_window", 1 << 30)?;
    if len == 0 {
        return Ok(None);
    }
    let key = "attention.sliding_window_pattern";
    let every = |n: usize| (0..n_layers).map(|layer| n == 0 || layer % n < n - 1).collect();
    let layers: Vec<bool> = match header.meta.get(&header.key(key)) {
        None => every(usual),
        Some(Value::Array(array)) => {
            let flag = |value: Value<'_>| match value {
                Value::Bool(flag) => Some(flag),
                other => other.as_integer().map(|n| n != 0),
            };
            let flags: Option<Vec<bool>> = array.iter().take(n_layers).map(flag).collect();
            match flags {
                Some(flags) if flags.len() == n_layers => flags,
                _ => return header.unsupported(key, format!("an array of {} elements", array.len())),
            }
        }
        Some(_) => every(header.count(key, LAYERS_MAX)?),
    };
    let base = header.float("rope.freq_base_swa")?;
    let rope = match header.arch {
        // Layers that see little need no stretching.
        Arch::Gemma3 => rope.unscaled(base.unwrap_or(10_000.0)),
        _ => Rope { base: base.unwrap_or(rope.base), ..rope.clone() },
    };
    if rope.base <= 1.0 {
        return header.unsupported("rope.freq_base_swa", rope.base.to_string());
    }
    Ok(Some(Window { len, layers, rope }))
}

fn in_range(what: &'static str, found: u32, max: usize) -> Result<usize, ModelError> {
    match found as usize {
        found @ 1.. if found <= max => Ok(found),
        _ => Err(ModelError::Range {
            what,
            found: u64::from(found),
            need: "at least 1 and no more than the format's bound",
        }),
    }
}
