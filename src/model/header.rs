//! The keys of one architecture, read as scalars or layer by layer, and checked.
//!
//! A header remembers which keys were read: a key that switches on a feature and that nobody asked for is refused, so that
//! a file is never run as something it is not.

use std::cell::RefCell;

use super::config::{
    AttentionConfig, Config, DELTA_DIM_MAX, DeltaNetConfig, EXPERTS_MAX, EmbeddingNorm, ExpertGroups, Experts,
    FfnConfig, Gating, HEAD_DIM_MAX, HeadOrder, LAYERS_MAX, LatentConfig, LayerConfig, Mamba2Config, MambaConfig,
    MixerConfig, Pairing, QueryTemperature, RATED_STATE_DIM_MAX, Residual, STATE_DIM_MAX, Style, TAPS_MAX, WIDTH_MAX,
};
use super::error::{Fault, ModelError, range};
use super::rope::Rope;
use crate::gguf::{Metadata, Value};
use crate::kernels::{Activation, NormKind, QUERY_ROWS_MAX, STATE_STEP, Window};
use crate::quant::PANEL_ROWS;

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

/// What a router does where the file does not say.
#[derive(Clone, Copy)]
pub(super) struct Routing {
    pub gating: Gating,
    /// Whether weights are scaled to the sum 1; `None`: the file says, and does not mean it when it is silent.
    pub normalised: Option<bool>,
    pub width: ExpertWidth,
}

/// The width of an expert.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ExpertWidth {
    /// That of a dense layer.
    Dense,
    /// Its own; without one that of a dense layer.
    OwnOrDense,
    /// Its own; without one its share of a dense layer's.
    OwnOrShare,
}

impl Routing {
    /// Softmax over all experts, scaled to the sum 1 over the chosen ones.
    pub(super) const SOFTMAX: Routing =
        Routing { gating: Gating::Softmax, normalised: Some(true), width: ExpertWidth::OwnOrDense };
    /// Softmax over all experts as it is.
    pub(super) const SOFTMAX_AS_IS: Routing = Routing { normalised: Some(false), ..Routing::SOFTMAX };
    /// Sigmoids, scaled if the file says so.
    pub(super) const SIGMOID: Routing =
        Routing { gating: Gating::Sigmoid, normalised: None, width: ExpertWidth::OwnOrShare };
}

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
        let read = self.read.borrow();
        for suffix in SWITCHES.into_iter().filter(|suffix| !read.iter().any(|read| read == suffix)) {
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

    /// What is added under the root of norms: that of RMSNorm, else that of LayerNorm.
    fn norm_eps(&self) -> Result<f32, ModelError> {
        for key in ["attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"] {
            match self.float(key)? {
                Some(eps) if eps >= 1.0 => return range(key, eps, "a number below 1".to_owned()),
                Some(eps) => return Ok(eps),
                None => {}
            }
        }
        Ok(1e-5)
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
        let norm_eps = self.norm_eps()?;
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
            norm_eps,
            n_embd_per_layer: 0,
            suppressed: Vec::new(),
            ctx_train,
        })
    }

    /// A decoder with experts in all layers but the leading dense ones.
    pub(super) fn decoder_with_experts(&self, routing: Routing) -> Result<Config, ModelError> {
        let mut config = self.decoder()?;
        let n_dense = self.count("leading_dense_block_count", LAYERS_MAX)?;
        config.set_experts(n_dense, self.required_experts(routing)?);
        Ok(config)
    }

    /// A decoder with experts in all layers, and beside them one more, as wide as the file says or as a dense layer.
    pub(super) fn decoder_with_shared_expert(&self, routing: Routing) -> Result<Config, ModelError> {
        let (mut config, mut experts) = (self.decoder()?, self.required_experts(routing)?);
        self.set_shared_width(&mut experts)?;
        config.set_experts(0, experts);
        Ok(config)
    }

    /// Gives `experts` a shared one of a dense layer's width where the file does not tell of one.
    pub(super) fn set_shared_width(&self, experts: &mut Experts) -> Result<(), ModelError> {
        if experts.n_ff_shared == 0 {
            experts.n_ff_shared = self.number("feed_forward_length", WIDTH_MAX)?;
        }
        Ok(())
    }

    /// The experts, if the file has any.
    pub(super) fn experts(&self, routing: Routing) -> Result<Option<Experts>, ModelError> {
        if self.count("expert_count", EXPERTS_MAX)? == 0 {
            return Ok(None);
        }
        self.required_experts(routing).map(Some)
    }

    /// The experts of an architecture that must have them.
    pub(super) fn required_experts(&self, routing: Routing) -> Result<Experts, ModelError> {
        let count = self.number("expert_count", EXPERTS_MAX)?;
        let used = self.number("expert_used_count", count)?;
        let own = match routing.width {
            ExpertWidth::Dense => 0,
            _ => self.count("expert_feed_forward_length", WIDTH_MAX)?,
        };
        let n_ff = match (own, routing.width) {
            (0, ExpertWidth::OwnOrShare) => self.number("feed_forward_length", WIDTH_MAX)? / used,
            (0, _) => self.number("feed_forward_length", WIDTH_MAX)?,
            (own, _) => own,
        };
        self.experts_of(routing, used, n_ff)
    }

    /// The experts of a layer in which `used` of width `n_ff` are chosen for each token.
    pub(super) fn experts_of(&self, routing: Routing, used: usize, n_ff: usize) -> Result<Experts, ModelError> {
        let count = self.number("expert_count", EXPERTS_MAX)?;
        if used == 0 || used > count {
            return range("expert_used_count", used, format!("1 to {count}"));
        }
        if n_ff == 0 {
            return range("the width of an expert", 0, "at least 1".to_owned());
        }
        let n_shared = self.count("expert_shared_count", 64)?;
        let n_ff_shared = match self.count("expert_shared_feed_forward_length", WIDTH_MAX)? {
            0 => n_shared * n_ff,
            width => width,
        };
        self.accept("expert_gating_func");
        let gating = match self.meta.u32(&self.key("expert_gating_func"))? {
            None | Some(0) => routing.gating,
            Some(1) => Gating::Softmax,
            Some(2) => Gating::Sigmoid,
            Some(3) => Gating::SoftmaxOfChosen,
            Some(other) => return self.unsupported("expert_gating_func", other.to_string()),
        };
        let own_norm = self.flag("expert_weights_norm")?;
        let normalised = routing.normalised.unwrap_or(own_norm) && gating != Gating::SoftmaxOfChosen;
        let scale = self.positive("expert_weights_scale")?.unwrap_or(1.0);
        let groups = self.expert_groups(count, used)?;
        Ok(Experts {
            count,
            used,
            n_ff,
            n_ff_shared,
            gating,
            normalised,
            scale,
            groups,
            latent: None,
            weighs_input: false,
            activations: [None; 2],
            shared_scale: 1.0,
            apart: false,
        })
    }

    fn expert_groups(&self, n_experts: usize, n_experts_used: usize) -> Result<Option<ExpertGroups>, ModelError> {
        // One group is none.
        let count = self.count("expert_group_count", n_experts)?;
        if count <= 1 {
            self.accept("expert_group_used_count");
            return Ok(None);
        }
        let used = self.number("expert_group_used_count", count)?;
        if !n_experts.is_multiple_of(count) || n_experts / count < 2 {
            let need = format!("a divisor of {n_experts} experts that leaves at least 2 for each group");
            return range("expert_group_count", count, need);
        }
        if n_experts / count * used < n_experts_used {
            let need = format!("groups that hold the {n_experts_used} experts of a token");
            return range("expert_group_used_count", used, need);
        }
        Ok(Some(ExpertGroups { count, used }))
    }

    /// The length of sliding windows and which layers have one, in a pattern of which every `usual`th layer sees everything
    /// unless the file has another.
    pub(super) fn windows(&self, usual: usize) -> Result<Option<(usize, Vec<bool>)>, ModelError> {
        self.windows_by((usual, 0), |n| n - 1)
    }

    /// The same; where the file has no length it is `usual_len`.
    pub(super) fn windows_or(&self, usual: usize, usual_len: usize) -> Result<Option<(usize, Vec<bool>)>, ModelError> {
        self.windows_by((usual, usual_len), |n| n - 1)
    }

    /// The same where the first layer of so many sees everything, not the last.
    pub(super) fn windows_after_first(&self, usual: usize) -> Result<Option<(usize, Vec<bool>)>, ModelError> {
        self.windows_by((usual, 0), |_| 0)
    }

    fn windows_by(
        &self,
        (usual, usual_len): (usize, usize),
        full: fn(usize) -> usize,
    ) -> Result<Option<(usize, Vec<bool>)>, ModelError> {
        let len = match self.get("attention.sliding_window") {
            None => usual_len,
            Some(_) => self.count("attention.sliding_window", 1 << 30)?,
        };
        match len {
            0 => {
                self.accept("attention.sliding_window_pattern");
                Ok(None)
            }
            len => Ok(Some((len, self.window_pattern(usual, full)?))),
        }
    }

    /// The layers of such a pattern that do not see everything.
    pub(super) fn layers_with_window(&self, usual: usize) -> Result<Vec<bool>, ModelError> {
        self.window_pattern(usual, |n| n - 1)
    }

    /// Those of a pattern of as many layers of which the one with the number `full` sees everything.
    pub(super) fn window_pattern(&self, usual: usize, full: fn(usize) -> usize) -> Result<Vec<bool>, ModelError> {
        let key = "attention.sliding_window_pattern";
        let every = |n: usize| (0..self.n_layers).map(|layer| n == 0 || layer % n != full(n)).collect();
        match self.get(key) {
            None => Ok(every(usual)),
            Some(Value::Array(_)) => self.flags(key),
            Some(_) => Ok(every(self.count(key, LAYERS_MAX)?)),
        }
    }

    /// The same of a file that must say how long windows are.
    pub(super) fn required_windows(&self, usual: usize) -> Result<(usize, Vec<bool>), ModelError> {
        Ok((self.number("attention.sliding_window", 1 << 30)?, self.layers_with_window(usual)?))
    }

    /// The same of a file that must say how long windows are, and list the layers that have one.
    pub(super) fn listed_windows(&self) -> Result<(usize, Vec<bool>), ModelError> {
        let len = self.number("attention.sliding_window", 1 << 30)?;
        Ok((len, self.flags("attention.sliding_window_pattern")?))
    }

    /// How many values of a head are rotated in layers with a window: by themselves as many as in the others.
    pub(super) fn rope_dim_of_windows(&self, config: &Config) -> Result<usize, ModelError> {
        let most = config.attention_max(|attention| attention.key_dim);
        match self.optional("rope.dimension_count_swa", config.ropes[0].dim, most)? {
            dim if dim.is_multiple_of(2) => Ok(dim),
            dim => range("rope.dimension_count_swa", dim, "an even number".to_owned()),
        }
    }

    /// Refuses YaRN where layers with a window have a rotation of their own: what its magnitude would be there is not known.
    pub(super) fn refuse_yarn(&self, config: &Config) -> Result<(), ModelError> {
        match config.ropes[0].yarn {
            None => Ok(()),
            Some(_) => self.unsupported("rope.scaling.type", "yarn".to_owned()),
        }
    }

    /// Gives the layers of `windows` their window, rotated by `rope` with the base of windows, if the file has one.
    pub(super) fn set_windows(
        &self,
        config: &mut Config,
        (len, layers): (usize, Vec<bool>),
        rope: impl FnOnce(&Rope, Option<f32>) -> Rope,
    ) -> Result<(), ModelError> {
        let rope = rope(&config.ropes[0], self.float("rope.freq_base_swa")?);
        if rope.base <= 1.0 {
            return self.unsupported("rope.freq_base_swa", rope.base.to_string());
        }
        let own_rope = config.ropes.len();
        config.ropes.push(rope);
        for (layer, has_window) in config.layers.iter_mut().zip(layers) {
            if let Some(attention) = layer.attention_mut().filter(|_| has_window) {
                (attention.window, attention.rope) = (Some(Window::Sliding(len)), Some(own_rope));
            }
        }
        Ok(())
    }

    /// Gives layers with a window heads of their own size.
    pub(super) fn set_window_heads(&self, config: &mut Config) -> Result<(), ModelError> {
        let dim = self.number("attention.key_length_swa", HEAD_DIM_MAX)?;
        let value_dim = self.optional("attention.value_length_swa", dim, HEAD_DIM_MAX)?;
        if !dim.is_multiple_of(2) || value_dim != dim {
            let need = format!("an even number, as attention.value_length_swa ({value_dim})");
            return range("attention.key_length_swa", dim, need);
        }
        for attn in config.layers.iter_mut().filter_map(|layer| layer.attention_mut()) {
            if attn.window.is_some() {
                (attn.key_dim, attn.value_dim) = (dim, dim);
            }
            if attn.q_width() > WIDTH_MAX {
                let need = format!("heads of at most {WIDTH_MAX} values together");
                return range("attention.head_count", attn.n_heads, need);
            }
        }
        Ok(())
    }

    /// Lets the last layers, as many as the file says, read the keys and values of those before them: of the last of these
    /// without a window, or of the one before it, which has one.
    pub(super) fn share_kv(&self, config: &mut Config) -> Result<(), ModelError> {
        let key = "attention.shared_kv_layers";
        let first = config.n_layers() - self.count(key, config.n_layers() - 1)?;
        for layer in first..config.n_layers() {
            let Some(own) = config.layers[layer].attention().copied() else { continue };
            let behind = if own.window.is_some() { 2 } else { 1 };
            let of = first.checked_sub(behind).and_then(|of| Some((of, config.layers[of].attention()?)));
            let kind = |attn: &AttentionConfig| (attn.window, attn.n_kv_heads, attn.key_dim, attn.value_dim);
            match of.filter(|(_, attn)| kind(attn) == kind(&own)) {
                Some((of, _)) => config.layers[layer].attention_mut().expect("it has attention").kv_of = Some(of),
                None => {
                    let found =
                        format!("{} where layer {layer} is unlike that {behind} before", config.n_layers() - first);
                    return self.unsupported(key, found);
                }
            }
        }
        Ok(())
    }

    /// The delta rule that the `ssm` keys tell of.
    pub(super) fn delta_net(&self, order: HeadOrder) -> Result<DeltaNetConfig, ModelError> {
        let n_key_heads = self.number("ssm.group_count", WIDTH_MAX)?;
        let n_value_heads = self.number("ssm.time_step_rank", WIDTH_MAX)?;
        let head_dim = self.number("ssm.state_size", DELTA_DIM_MAX)?;
        let taps = self.taps()?;
        if !head_dim.is_multiple_of(STATE_STEP) {
            return range("ssm.state_size", head_dim, format!("a multiple of {STATE_STEP}, up to {DELTA_DIM_MAX}"));
        }
        if !n_value_heads.is_multiple_of(n_key_heads) {
            let need = format!("a multiple of ssm.group_count, {n_key_heads}");
            return range("ssm.time_step_rank", n_value_heads, need);
        }
        if 2 * (n_key_heads + n_value_heads) * head_dim > WIDTH_MAX {
            return range("ssm.time_step_rank", n_value_heads, format!("heads of at most {WIDTH_MAX} values together"));
        }
        let inner = self.number("ssm.inner_size", WIDTH_MAX)?;
        if inner != n_value_heads * head_dim {
            let need = format!("ssm.time_step_rank times ssm.state_size, {}", n_value_heads * head_dim);
            return range("ssm.inner_size", inner, need);
        }
        Ok(DeltaNetConfig { n_key_heads, n_value_heads, head_dim, order, taps })
    }

    fn taps(&self) -> Result<usize, ModelError> {
        match self.number("ssm.conv_kernel", TAPS_MAX)? {
            1 => range("ssm.conv_kernel", 1, format!("2 to {TAPS_MAX}")),
            taps => Ok(taps),
        }
    }

    /// The state space of Mamba-2 that the `ssm` keys tell of.
    pub(super) fn mamba2(&self) -> Result<Mamba2Config, ModelError> {
        let inner = self.number("ssm.inner_size", WIDTH_MAX)?;
        let n_heads = self.number("ssm.time_step_rank", inner)?;
        let n_groups = self.number("ssm.group_count", n_heads)?;
        let state_dim = self.number("ssm.state_size", STATE_DIM_MAX)?;
        let taps = self.taps()?;
        let head_dim = inner / n_heads;
        if inner != n_heads * head_dim || !head_dim.is_multiple_of(STATE_STEP) {
            let need = format!("ssm.time_step_rank, {n_heads}, times a multiple of {STATE_STEP}");
            return range("ssm.inner_size", inner, need);
        }
        if !n_heads.is_multiple_of(n_groups) {
            return range("ssm.time_step_rank", n_heads, format!("a multiple of ssm.group_count, {n_groups}"));
        }
        if !state_dim.is_multiple_of(STATE_STEP) {
            return range("ssm.state_size", state_dim, format!("a multiple of {STATE_STEP}, up to {STATE_DIM_MAX}"));
        }
        let mamba = Mamba2Config { n_heads, head_dim, n_groups, state_dim, taps };
        if mamba.conv_width() > WIDTH_MAX {
            let need = format!("at most {WIDTH_MAX} channels of the convolution");
            return range("ssm.inner_size and ssm.group_count", mamba.conv_width(), need);
        }
        Ok(mamba)
    }

    /// The state space of the first Mamba that the `ssm` keys tell of.
    pub(super) fn mamba(&self) -> Result<MambaConfig, ModelError> {
        let inner = self.number("ssm.inner_size", WIDTH_MAX)?;
        let state_dim = self.number("ssm.state_size", RATED_STATE_DIM_MAX)?;
        let dt_rank = self.number("ssm.time_step_rank", inner)?;
        if !inner.is_multiple_of(STATE_STEP) {
            return range("ssm.inner_size", inner, format!("a multiple of {STATE_STEP}"));
        }
        Ok(MambaConfig { inner, state_dim, dt_rank, taps: self.taps()?, normed: self.flag("ssm.dt_b_c_rms")? })
    }

    /// The factor of dot products of queries and keys, if the file has one of its own.
    pub(super) fn set_attention_scale(&self, config: &mut Config) -> Result<(), ModelError> {
        if let Some(scale) = self.positive("attention.scale")? {
            config
                .layers
                .iter_mut()
                .filter_map(LayerConfig::attention_mut)
                .for_each(|attention| attention.scale = scale);
        }
        Ok(())
    }

    /// Refuses sections of the rotated pairs, in turn of time, height and width, that leave out a pair: it would not be
    /// rotated. Where none is left out, text, whose three positions are the same, is rotated as if there were none.
    pub(super) fn check_interleaved_sections(&self, n_pairs: usize) -> Result<(), ModelError> {
        let suffix = "rope.dimension_sections";
        let sections: Vec<i32> = self.meta.i32s(&self.key(suffix))?.into_iter().flat_map(|n| n.iter()).collect();
        let pairs_of = |axis: usize| sections.get(axis).map_or(0, |&n| usize::try_from(n).unwrap_or(0));
        let covers = |pair: usize| pair < 3 * pairs_of(pair % 3);
        match (0..n_pairs).all(covers) || sections.iter().all(|&n| n == 0) {
            true => Ok(()),
            false => self.unsupported(suffix, format!("{sections:?} for {n_pairs} pairs")),
        }
    }

    /// Which layers are recurrent: as the file lists them, or all but every so many.
    pub(super) fn recurrent_layers(&self, usual_interval: usize) -> Result<Vec<bool>, ModelError> {
        let interval = self.optional("full_attention_interval", usual_interval, LAYERS_MAX)?;
        match self.get("attention.recurrent_layers") {
            None => Ok((1..=self.n_layers).map(|n| !n.is_multiple_of(interval)).collect()),
            Some(_) => self.flags("attention.recurrent_layers"),
        }
    }

    /// The latent attention of every layer, of a decoder whose attention was read as if it had none.
    pub(super) fn latent(&self, config: &Config) -> Result<LatentConfig, ModelError> {
        let plain = config.layers[0].attention().expect("Header::decoder gives every layer attention");
        if config.attentions().any(|attention| attention != plain) {
            return self.unsupported("attention.head_count", "numbers that differ from layer to layer".to_owned());
        }
        let kv_rank = self.number("attention.kv_lora_rank", HEAD_DIM_MAX)?;
        let q_rank = self.count("attention.q_lora_rank", WIDTH_MAX)?;
        // Files whose maps are not split give the sizes of heads, others those of what is kept of a position.
        let key_dim = self.optional("attention.key_length_mla", plain.key_dim, HEAD_DIM_MAX)?;
        let value_dim = self.optional("attention.value_length_mla", plain.value_dim, HEAD_DIM_MAX)?;
        let (rope_dim, n_heads) = (config.ropes[0].dim, plain.n_heads);
        if key_dim <= rope_dim {
            let need = format!("more than the {rope_dim} values of a head that are rotated");
            return range("attention.key_length_mla", key_dim, need);
        }
        for (what, found) in [("attention.kv_lora_rank", kv_rank), ("rope.dimension_count", rope_dim)] {
            if !found.is_multiple_of(PANEL_ROWS) || kv_rank + rope_dim > HEAD_DIM_MAX {
                let need = format!("a multiple of {PANEL_ROWS}, both together at most {HEAD_DIM_MAX}");
                return range(what, found, need);
            }
        }
        if n_heads * (kv_rank + rope_dim).max(key_dim).max(value_dim) > WIDTH_MAX {
            return range("attention.head_count", n_heads, format!("heads of at most {WIDTH_MAX} values together"));
        }
        let (plain_dim, scale) = (key_dim - rope_dim, (key_dim as f32).sqrt().recip());
        Ok(LatentConfig { n_heads, q_rank, kv_rank, plain_dim, rope_dim, value_dim, scale, temperature: None })
    }

    /// What scores of latent attention are multiplied by where contexts are stretched by YaRN. Files have a tenth of the
    /// strength of that; `length` is what they mean cosines and sines to be multiplied by then.
    pub(super) fn latent_stretch(
        &self,
        rope: &mut Rope,
        length: impl FnOnce(&Rope, f32) -> f32,
    ) -> Result<f32, ModelError> {
        let strength = 10.0 * self.float("rope.scaling.yarn_log_multiplier")?.unwrap_or(0.0);
        if rope.yarn.is_none() && rope.scale != 1.0 {
            return self.unsupported("rope.scaling.factor", format!("{} without YaRN", rope.scale));
        }
        if rope.yarn.is_some() && strength != 0.0 {
            rope.magnitude = self.float("rope.scaling.attn_factor")?.unwrap_or(1.0) * length(rope, strength);
        }
        Ok((rope.magnitude * rope.length(strength)).powi(2))
    }

    /// Tokens of the vocabulary, 0 if the header does not say.
    pub(super) fn vocabulary(&self) -> usize {
        match (self.get("vocab_size").and_then(|size| size.as_integer()), self.meta.get("tokenizer.ggml.tokens")) {
            (Some(size), _) => usize::try_from(size).unwrap_or(0),
            (None, Some(Value::Array(tokens))) => tokens.len(),
            _ => 0,
        }
    }

    /// The scale of queries by position, if the file has one.
    pub(super) fn query_temperature(&self, length: usize) -> Result<Option<QueryTemperature>, ModelError> {
        let length = self.optional("attention.temperature_length", length, 1 << 30)?;
        let beta = self.positive("attention.temperature_scale")?;
        Ok(beta.map(|beta| QueryTemperature { beta, length, offset: 0 }))
    }
}

fn in_range(what: &'static str, found: u32, max: usize) -> Result<usize, ModelError> {
    match found as usize {
        found @ 1.. if found <= max => Ok(found),
        found => range(what, found, format!("1 to {max}")),
    }
}
