//! The keys of one architecture, read as scalars or layer by layer, and checked.
//!
//! A header remembers which keys were read: a key that switches on a feature and that nobody asked for is refused, so that
//! a file is never run as something it is not.

mod attention;
mod experts;
mod recurrent;
mod vectors;
mod windows;

use std::cell::RefCell;

use super::config::{
    AttentionConfig, Config, EmbeddingNorm, FfnConfig, HEAD_DIM_MAX, LAYERS_MAX, LayerConfig, MixerConfig, Pairing,
    Residual, Style, WIDTH_MAX,
};
use super::error::{Fault, ModelError, range};
use super::rope::Rope;
use crate::gguf::{Metadata, Value};
use crate::kernels::{Activation, NormKind, QUERY_ROWS_MAX};

pub(super) use experts::{ExpertWidth, Routing};

/// Keys that switch on a feature with a number other than 0. An architecture that does not read one does not have it.
const SWITCHES: [&str; 29] = [
    "expert_count",
    "expert_shared_count",
    "expert_group_count",
    "expert_weights_scale",
    "moe_latent_size",
    "attention.sliding_window",
    "attention.temperature_scale",
    "attention.max_alibi_bias",
    "attention.clamp_kqv",
    "attention.scale",
    "attention.value_scale",
    "attention.rope_pattern",
    "swiglu_clamp_exp",
    "swiglu_clamp_shexp",
    "rope.scaling.alpha",
    "attention.kv_lora_rank",
    "attention.shared_kv_layers",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "router_logit_softcapping",
    "logit_scale",
    "residual_scale",
    "embedding_scale",
    "ssm.state_size",
    "shortconv.l_cache",
    "full_attention_interval",
    "nextn_predict_layers",
    "num_loops",
    "embedding_length_per_layer_input",
];

/// Architectures whose files may have layers that predict ahead (llama.cpp's loaders of `nextn` tensors).
const PREDICTING: [&str; 16] = [
    "bailingmoe2",
    "cohere2moe",
    "deepseek2",
    "exaone-moe",
    "exaone4",
    "glm4",
    "glm4moe",
    "hy_v3",
    "mimo2",
    "mistral4",
    "nemotron_h",
    "nemotron_h_moe",
    "qwen35",
    "qwen35moe",
    "qwen3next",
    "step35",
];

/// Whether a layer may have no heads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Headless {
    Refused,
    Allowed,
}

/// The header of a model of one architecture.
pub(super) struct Header<'m, 'a> {
    meta: &'m Metadata<'a>,
    /// Its architecture, the prefix of its keys.
    name: &'static str,
    /// Layers that are run.
    pub n_layers: usize,
    n_layers_skipped: usize,
    read: RefCell<Vec<String>>,
}

impl<'m, 'a> Header<'m, 'a> {
    /// The header of a model of the architecture `name`; layers that predict ahead are counted out.
    pub(super) fn open(meta: &'m Metadata<'a>, name: &'static str) -> Result<Self, ModelError> {
        let mut header = Header { meta, name, n_layers: 0, n_layers_skipped: 0, read: RefCell::new(Vec::new()) };
        let n_blocks = header.number("block_count", LAYERS_MAX)?;
        header.n_layers_skipped = header.count("nextn_predict_layers", n_blocks - 1)?;
        if header.n_layers_skipped > 0 && !PREDICTING.contains(&name) {
            return header.unsupported(
                "nextn_predict_layers",
                format!("{} in an architecture without layers that predict ahead", header.n_layers_skipped),
            );
        }
        header.n_layers = n_blocks - header.n_layers_skipped;
        Ok(header)
    }

    pub(super) fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.name)
    }

    /// The value of a key, which counts as read.
    fn get(&self, suffix: &str) -> Option<Value<'a>> {
        self.accept(suffix);
        self.meta.get(&self.key(suffix))
    }

    /// Lets a key stand: its feature is there, or is not meant.
    pub(super) fn accept(&self, suffix: &str) {
        self.read.borrow_mut().push(suffix.to_owned());
    }

    /// Whether somebody has read a key.
    fn has_read(&self, suffix: &str) -> bool {
        self.read.borrow().iter().any(|read| read == suffix)
    }

    /// A number that must be there, 1 to `max`.
    pub(super) fn number(&self, suffix: &'static str, max: usize) -> Result<usize, ModelError> {
        match self.single(suffix)? {
            Some(found) => in_range(suffix, found, max),
            None => in_range(suffix, self.meta.required_u32(&self.key(suffix))?, max),
        }
    }

    /// A number that may be an array of one.
    fn single(&self, suffix: &'static str) -> Result<Option<u32>, ModelError> {
        let only = |value: Value<'a>| match value {
            Value::Array(array) if array.len() == 1 => array.iter().next()?.as_integer(),
            _ => None,
        };
        match self.get(suffix).and_then(only).map(u32::try_from) {
            Some(Ok(found)) => Ok(Some(found)),
            _ => Ok(self.meta.u32(&self.key(suffix))?),
        }
    }

    /// A number that must be 1 to `max` if it is there.
    pub(super) fn optional(&self, suffix: &'static str, default: usize, max: usize) -> Result<usize, ModelError> {
        match self.single(suffix)? {
            Some(found) => in_range(suffix, found, max),
            None => Ok(default),
        }
    }

    /// A number up to `max`, 0 without the key.
    pub(super) fn count(&self, suffix: &'static str, max: usize) -> Result<usize, ModelError> {
        match self.single(suffix)?.unwrap_or(0) {
            0 => Ok(0),
            found => in_range(suffix, found, max),
        }
    }

    /// A float that must be finite and not negative if it is there.
    pub(super) fn float(&self, suffix: &'static str) -> Result<Option<f32>, ModelError> {
        self.accept(suffix);
        match self.meta.f32(&self.key(suffix))? {
            Some(found) if !found.is_finite() || found < 0.0 => self.unsupported(suffix, found.to_string()),
            found => Ok(found),
        }
    }

    /// A float above 0, if it is there; 0 counts as absent.
    pub(super) fn positive(&self, suffix: &'static str) -> Result<Option<f32>, ModelError> {
        Ok(self.float(suffix)?.filter(|&found| found > 0.0))
    }

    /// A float above 0 that must be there.
    pub(super) fn required_float(&self, suffix: &'static str) -> Result<f32, ModelError> {
        match self.positive(suffix)? {
            Some(found) => Ok(found),
            None => range(suffix, "missing, or 0", "a number above 0".to_owned()),
        }
    }

    /// A boolean, `false` without the key.
    pub(super) fn flag(&self, suffix: &'static str) -> Result<bool, ModelError> {
        Ok(self.flag_if_there(suffix)?.unwrap_or(false))
    }

    /// A boolean, if it is there.
    pub(super) fn flag_if_there(&self, suffix: &'static str) -> Result<Option<bool>, ModelError> {
        self.accept(suffix);
        Ok(self.meta.bool(&self.key(suffix))?)
    }

    /// A number for each layer, up to `max`: one for all, or an array of one or of one for each block of the file. `None`
    /// without the key.
    pub(super) fn per_layer(&self, suffix: &'static str, max: usize) -> Result<Option<Vec<usize>>, ModelError> {
        let n_blocks = self.n_layers + self.n_layers_skipped;
        let number = |value: Value<'_>| match value.as_integer() {
            Some(found) if (0..=max as i128).contains(&found) => Ok(found as usize),
            Some(found) => range(suffix, found, format!("0 to {max}")),
            None => self.unsupported(suffix, "a value that is not a whole number".to_owned()),
        };
        match self.get(suffix) {
            None => Ok(None),
            Some(Value::Array(array)) if array.len() == 1 || array.len() >= n_blocks => {
                let mut numbers = array.iter().take(self.n_layers).map(number).collect::<Result<Vec<_>, _>>()?;
                numbers.resize(self.n_layers, numbers[0]);
                Ok(Some(numbers))
            }
            Some(Value::Array(array)) => {
                let found = format!("an array of {} values in a model of {n_blocks} layers", array.len());
                self.unsupported(suffix, found)
            }
            Some(value) => Ok(Some(vec![number(value)?; self.n_layers])),
        }
    }

    /// The same, if it is there.
    pub(super) fn flags_if_there(&self, suffix: &'static str) -> Result<Option<Vec<bool>>, ModelError> {
        self.get(suffix).map(|_| self.flags(suffix)).transpose()
    }

    /// A float for each layer, finite and not negative: one for all, or an array of at least as many.
    pub(super) fn floats(&self, suffix: &'static str) -> Result<Option<Vec<f32>>, ModelError> {
        let Some(value) = self.get(suffix) else { return Ok(None) };
        let float = |value: Value<'_>| match value {
            Value::F32(x) if x.is_finite() && x >= 0.0 => Some(x),
            _ => None,
        };
        let floats: Option<Vec<f32>> = match value {
            Value::Array(array) => array.iter().take(self.n_layers).map(float).collect(),
            value => float(value).map(|x| vec![x; self.n_layers]),
        };
        match floats {
            Some(floats) if floats.len() == self.n_layers => Ok(Some(floats)),
            _ => self.unsupported(suffix, format!("not a limit for each of {} layers", self.n_layers)),
        }
    }

    /// A finite float for each layer, of either sign, which must be there: one for all, or an array of one for each. The key
    /// is whole, without the architecture's name.
    pub(super) fn signed_floats(&self, key: &'static str) -> Result<Vec<f32>, ModelError> {
        let float = |value: Value<'_>| match value {
            Value::F32(x) if x.is_finite() => Some(x),
            _ => None,
        };
        let floats: Option<Vec<f32>> = match self.meta.get(key) {
            Some(Value::Array(array)) => array.iter().take(self.n_layers).map(float).collect(),
            value => value.and_then(float).map(|x| vec![x; self.n_layers]),
        };
        match floats {
            Some(floats) if floats.len() == self.n_layers => Ok(floats),
            _ => range(key, "something else", format!("a number for each of {} layers", self.n_layers)),
        }
    }

    /// A yes or no for each layer, in an array of at least as many.
    fn flags(&self, suffix: &'static str) -> Result<Vec<bool>, ModelError> {
        let need = format!("a yes or no for each of {} layers", self.n_layers);
        let Some(Value::Array(array)) = self.get(suffix) else { return range(suffix, "not an array", need) };
        let flag = |value: Value<'_>| match value {
            Value::Bool(flag) => Some(flag),
            other => other.as_integer().map(|n| n != 0),
        };
        let flags: Option<Vec<bool>> = array.iter().take(self.n_layers).map(flag).collect();
        match flags {
            Some(flags) if flags.len() == self.n_layers => Ok(flags),
            _ => range(suffix, format!("an array of {} elements", array.len()), need),
        }
    }

    pub(super) fn unsupported<T>(&self, suffix: &str, value: String) -> Result<T, ModelError> {
        Err(Fault::Unsupported { key: self.key(suffix), value }.into())
    }

    /// Refuses keys that switch on a feature and that nobody has read.
    pub(super) fn refuse_unread(&self) -> Result<(), ModelError> {
        for suffix in SWITCHES.into_iter().filter(|suffix| !self.has_read(suffix)) {
            let value = match self.meta.get(&self.key(suffix)) {
                None | Some(Value::F32(0.0 | 1.0) | Value::Bool(false)) => continue,
                Some(Value::F32(value)) => value.to_string(),
                Some(Value::Array(array)) => format!("an array of {} values", array.len()),
                Some(value) => match value.as_integer() {
                    Some(0) => continue,
                    Some(value) => value.to_string(),
                    None => "a value of another type".to_owned(),
                },
            };
            return self.unsupported(suffix, value);
        }
        Ok(())
    }

    /// A decoder as most headers describe one: every layer has attention to everything before a token, heads rotated, and
    /// a dense feed-forward part.
    pub(super) fn decoder(&self) -> Result<Config, ModelError> {
        self.layered(Headless::Refused)
    }

    /// As [`Header::decoder`]; layers without query heads have no mixer, those without key and value heads alone are
    /// [`MixerConfig::Linear`], and those of width 0 have no feed-forward part.
    pub(super) fn decoder_with_headless_layers(&self) -> Result<Config, ModelError> {
        self.layered(Headless::Allowed)
    }

    /// What is added under the root of norms of the kind `norm`, which the file must say. Nemotron-H, whose layers have
    /// RMSNorm, says it as LayerNorm's.
    pub(super) fn norm_eps(&self, norm: NormKind) -> Result<f32, ModelError> {
        let (rms, layer) = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon");
        let key = match norm {
            NormKind::Rms if self.name.starts_with("nemotron_h") && self.float(rms)?.is_none() => layer,
            NormKind::Rms => rms,
            NormKind::Layer => layer,
        };
        match self.float(key)? {
            Some(eps) if eps < 1.0 => Ok(eps),
            Some(eps) => range(key, eps, "a number below 1".to_owned()),
            None => range(key, "missing", "a number below 1, that of the model's norms".to_owned()),
        }
    }

    fn layered(&self, headless: Headless) -> Result<Config, ModelError> {
        let n_embd = self.number("embedding_length", WIDTH_MAX)?;
        let Some(n_heads) = self.per_layer("attention.head_count", WIDTH_MAX)? else {
            self.meta.required_u32(&self.key("attention.head_count"))?;
            unreachable!("a required key that is not there is an error");
        };
        let n_kv_heads = self.per_layer("attention.head_count_kv", WIDTH_MAX)?.unwrap_or_else(|| n_heads.clone());
        let widest = n_heads.iter().copied().max().unwrap_or(0);
        let a_share = n_heads.iter().find(|&&n| n > 0).map_or(2, |n| n_embd / n);
        let key_dim = self.optional("attention.key_length", a_share, HEAD_DIM_MAX)?;
        let value_dim = self.optional("attention.value_length", key_dim, HEAD_DIM_MAX)?;
        for (what, found) in [("attention.key_length", key_dim), ("attention.value_length", value_dim)] {
            if found == 0 || !found.is_multiple_of(2) || found > HEAD_DIM_MAX {
                return range(what, found, format!("an even number from 2 to {HEAD_DIM_MAX}"));
            }
        }
        if widest.max(1) * key_dim.max(value_dim) > WIDTH_MAX {
            return range("attention.head_count", widest, format!("heads of at most {WIDTH_MAX} values together"));
        }
        let ctx_train = self.optional("context_length", 4096, 1 << 30)?;
        let rope = Rope::from_metadata(self.meta, self.name, key_dim, ctx_train)?;
        let n_ff = self.per_layer("feed_forward_length", WIDTH_MAX)?.unwrap_or_else(|| vec![0; self.n_layers]);
        let attention = |layer: usize| match (n_heads[layer], n_kv_heads[layer]) {
            (0, _) if headless == Headless::Allowed => Ok(MixerConfig::None),
            (_, 0) if headless == Headless::Allowed => Ok(MixerConfig::Linear),
            (n_heads, n_kv_heads) => {
                let fits = n_kv_heads > 0 && n_heads.is_multiple_of(n_kv_heads);
                if !fits || !(1..=QUERY_ROWS_MAX).contains(&(n_heads / n_kv_heads.max(1))) {
                    let need = format!("1 to {QUERY_ROWS_MAX} times attention.head_count_kv ({n_kv_heads})");
                    return range("attention.head_count", n_heads, need);
                }
                Ok(MixerConfig::Attention(AttentionConfig {
                    n_heads,
                    n_kv_heads,
                    key_dim,
                    value_dim,
                    window: None,
                    rope: Some(0),
                    scale: (key_dim as f32).sqrt().recip(),
                    temperature: None,
                    gate: None,
                    value_scale: 1.0,
                    normed_after_rope: false,
                    clamp: None,
                    alibi: None,
                    score_cap: None,
                    kv_of: None,
                }))
            }
        };
        let layer = |layer: usize| {
            let ffn = match (n_ff[layer], headless) {
                (0, Headless::Allowed) => FfnConfig::None,
                (n_ff, _) => FfnConfig::Dense { n_ff },
            };
            Ok(LayerConfig { mixer: attention(layer)?, ffn })
        };
        Ok(Config {
            layers: (0..self.n_layers).map(layer).collect::<Result<_, ModelError>>()?,
            n_layers_skipped: self.n_layers_skipped,
            loops: 1,
            norm_after_loops: false,
            n_embd,
            ropes: vec![rope],
            style: Style { pairing: Pairing::Neighbours, activation: Activation::Silu, residual: Residual::InTurn },
            norm: NormKind::Rms,
            has_branch: false,
            embedding_scale: 1.0,
            embedding_norm: EmbeddingNorm::None,
            learned_positions: false,
            gated_ffn: true,
            activations: Vec::new(),
            residual_scale: 1.0,
            logit_scale: 1.0,
            logit_cap: None,
            // Read once it is known which norms there are.
            norm_eps: 0.0,
            n_embd_per_layer: 0,
            vectors: None,
            both_ways: false,
            ends_normed: false,
            token_kinds: false,
            suppressed: Vec::new(),
            ctx_train,
        })
    }

    /// Tokens of the vocabulary, 0 if the header does not say.
    pub(super) fn vocabulary(&self) -> usize {
        match (self.get("vocab_size").and_then(|size| size.as_integer()), self.meta.get("tokenizer.ggml.tokens")) {
            (Some(size), _) => usize::try_from(size).unwrap_or(0),
            (None, Some(Value::Array(tokens))) => tokens.len(),
            _ => 0,
        }
    }
}

fn in_range(what: &'static str, found: u32, max: usize) -> Result<usize, ModelError> {
    match found as usize {
        found @ 1.. if found <= max => Ok(found),
        found => range(what, found, format!("1 to {max}")),
    }
}
