//! What a model is: the numbers of its header, layer by layer.

use super::rope::Rope;
use crate::kernels::{Activation, NormKind, Window};

/// How the scores of a router become weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gating {
    /// Softmax over all experts.
    Softmax,
    /// Softmax over the chosen experts.
    SoftmaxOfChosen,
    /// Sigmoid of each score.
    Sigmoid,
}

/// Experts that are chosen from the best groups only (DeepSeek-V3, arXiv:2412.19437, section 2.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertGroups {
    /// Groups of equal size.
    pub count: usize,
    /// Groups that a token may choose from.
    pub used: usize,
}

/// The experts of a feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Experts {
    /// All experts.
    pub count: usize,
    /// Experts chosen for each token.
    pub used: usize,
    /// Width of each.
    pub n_ff: usize,
    /// Width of the shared expert, which every token meets; 0 without one.
    pub n_ff_shared: usize,
    /// How scores become weights.
    pub gating: Gating,
    /// Whether the weights of the chosen experts are scaled to the sum 1.
    pub normalised: bool,
    /// Factor of the weights, applied last.
    pub scale: f32,
    /// Groups that limit the choice, if there are any.
    pub groups: Option<ExpertGroups>,
    /// Whether weights multiply what experts are given instead of what they give.
    pub weighs_input: bool,
    /// What these experts do in the place of the layer's activation, and what the shared one does.
    pub activations: [Option<Activation>; 2],
    /// Factor of what the shared expert gives.
    pub shared_scale: f32,
    /// Whether the shared expert and the chosen ones read the stream, and add to it, through norms of their own.
    pub apart: bool,
    /// Width of what experts work on, where it is not that of the stream: one map leads there, another back.
    pub latent: Option<usize>,
}

impl Experts {
    /// Width of what experts work on.
    pub fn width(&self, n_embd: usize) -> usize {
        self.latent.unwrap_or(n_embd)
    }
}

/// Scale of queries that grows with the position: `1 + beta * ln(1 + floor((position + offset) / length))` (Llama 4,
/// Ministral 3).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueryTemperature {
    /// Strength.
    pub beta: f32,
    /// Positions from step to step.
    pub length: usize,
    /// Positions that the first step comes earlier.
    pub offset: usize,
}

/// What the results of attention are multiplied by: a function of a projection that has a value for each of theirs, or one
/// for each head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputGate {
    /// `1 / (1 + e^-x)`
    Sigmoid,
    /// `ln(1 + e^x)`
    Softplus,
}

/// Attention of one layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionConfig {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Values of a query or key head.
    pub key_dim: usize,
    /// Values of a value head.
    pub value_dim: usize,
    /// Which positions a token sees; `None` for all before it and its own.
    pub window: Option<Window>,
    /// Index of the rotation in [`Config::ropes`]; `None` in a layer without one.
    pub rope: Option<usize>,
    /// Factor of the dot products of queries and keys.
    pub scale: f32,
    /// Scale of queries by position, if there is one.
    pub temperature: Option<QueryTemperature>,
    /// What results are multiplied by, of a projection of their own, if they are.
    pub gate: Option<OutputGate>,
    /// Factor of the values.
    pub value_scale: f32,
    /// Queries, keys and values are kept within plus and minus this.
    pub clamp: Option<f32>,
    /// Whether heads of queries and keys are normed behind their rotation instead of before it, without weights where the
    /// model has none.
    pub normed_after_rope: bool,
    /// Greatest exponent of the slopes by which scores fall with distance, if they do (ALiBi).
    pub alibi: Option<f32>,
    /// Scores are squeezed into plus and minus this, `cap * tanh(score / cap)`.
    pub score_cap: Option<f32>,
    /// The earlier layer whose keys and values it reads in place of its own.
    pub kv_of: Option<usize>,
}

impl AttentionConfig {
    /// What a score loses for every position between query and key, by head: with `n` the greatest power of two among
    /// `n_heads` and `b` the bias, the powers 1 to `n` of `2^(-b / n)`, then the odd ones of its root (ALiBi,
    /// arXiv:2108.12409).
    pub fn alibi_slope(&self, head: usize) -> f32 {
        let Some(bias) = self.alibi else { return 0.0 };
        let n = (1 << self.n_heads.ilog2()) as f32;
        match head as f32 {
            head if head < n => (-bias / n * (head + 1.0)).exp2(),
            head => (-bias / 2.0 / n * (2.0 * (head - n) + 1.0)).exp2(),
        }
    }

    /// Query heads per key and value head.
    pub fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// Rows of the query projection.
    pub fn q_width(&self) -> usize {
        self.n_heads * self.key_dim
    }

    /// Rows of the key projection.
    pub fn k_width(&self) -> usize {
        self.n_kv_heads * self.key_dim
    }

    /// Rows of the value projection.
    pub fn v_width(&self) -> usize {
        self.n_kv_heads * self.value_dim
    }

    /// Columns of the output projection.
    pub fn output_width(&self) -> usize {
        self.n_heads * self.value_dim
    }

    /// The most positions that a token sees; `usize::MAX` for all.
    pub fn window_len(&self) -> usize {
        self.window.unwrap_or(Window::ALL).span()
    }
}

/// Multi-head latent attention of one layer (DeepSeek-V2, arXiv:2405.04434, section 2.1): every position leaves a latent
/// that keys and values of all heads are made of, and one key part that is rotated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LatentConfig {
    /// Query heads.
    pub n_heads: usize,
    /// Values that queries are made of; 0 if they are made of the stream.
    pub q_rank: usize,
    /// Values of the latent.
    pub kv_rank: usize,
    /// Values of a query head that are not rotated.
    pub plain_dim: usize,
    /// Values of a query head that are, and of the part of the key that all heads share.
    pub rope_dim: usize,
    /// Values of a value head.
    pub value_dim: usize,
    /// Factor of the dot products of queries and keys.
    pub scale: f32,
    /// Scale of queries by position, if there is one.
    pub temperature: Option<QueryTemperature>,
}

impl LatentConfig {
    /// Values of a query head: those that are not rotated, then those that are.
    pub fn key_dim(&self) -> usize {
        self.plain_dim + self.rope_dim
    }

    /// Rows of the query projection.
    pub fn q_width(&self) -> usize {
        self.n_heads * self.key_dim()
    }

    /// Values of what is kept of a position: the latent, then the rotated part.
    pub fn row_dim(&self) -> usize {
        self.kv_rank + self.rope_dim
    }

    /// Columns of the output projection.
    pub fn output_width(&self) -> usize {
        self.n_heads * self.value_dim
    }

    /// Blocks of as many heads each that attention is shared out by: as few as leave no block more than 16 heads.
    pub fn head_blocks(&self) -> usize {
        let divides = |blocks: &usize| self.n_heads.is_multiple_of(*blocks);
        (self.n_heads.div_ceil(16)..=self.n_heads).find(divides).unwrap_or(1)
    }
}

/// Which key head a value head of a delta rule goes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadOrder {
    /// Value heads follow each other as key heads do, time and again: key head = value head modulo key heads.
    Repeated,
    /// The value heads of a key head lie together.
    Grouped,
}

/// The gated delta rule of one layer (Gated DeltaNet, arXiv:2412.06464).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaNetConfig {
    /// Key heads, and as many of queries.
    pub n_key_heads: usize,
    /// Value heads, each with a state of its own.
    pub n_value_heads: usize,
    /// Values of a head, of whatever kind.
    pub head_dim: usize,
    /// Which key head belongs to a value head.
    pub order: HeadOrder,
    /// Tokens that an output of the convolution depends on, its own among them.
    pub taps: usize,
}

impl DeltaNetConfig {
    /// Values of all queries, or of all keys.
    pub fn key_width(&self) -> usize {
        self.n_key_heads * self.head_dim
    }

    /// Values of all value heads.
    pub fn value_width(&self) -> usize {
        self.n_value_heads * self.head_dim
    }

    /// Channels of the convolution: queries, keys and values.
    pub fn conv_width(&self) -> usize {
        2 * self.key_width() + self.value_width()
    }

    /// Value heads of a key head.
    pub fn group(&self) -> usize {
        self.n_value_heads / self.n_key_heads
    }

    /// The key head of a value head.
    pub fn key_head(&self, value_head: usize) -> usize {
        match self.order {
            HeadOrder::Repeated => value_head % self.n_key_heads,
            HeadOrder::Grouped => value_head / self.group(),
        }
    }

    /// Values of the inputs that the convolution keeps of a sequence.
    pub fn conv_state_len(&self) -> usize {
        (self.taps - 1) * self.conv_width()
    }

    /// Values of the states of all heads.
    pub fn delta_state_len(&self) -> usize {
        self.value_width() * self.head_dim
    }
}

/// The selective state space of one layer (Mamba-2, arXiv:2405.21060).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mamba2Config {
    /// Heads, each with a state of its own.
    pub n_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Groups of heads that are written and read with the same vectors, `b` and `c`, and normed together.
    pub n_groups: usize,
    /// Values that the state has of a channel, and values of `b` and of `c`.
    pub state_dim: usize,
    /// Tokens that an output of the convolution depends on, its own among them.
    pub taps: usize,
}

impl Mamba2Config {
    /// Channels of all heads.
    pub fn inner(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Channels of the convolution: those of all heads, and `b` and `c` of all groups.
    pub fn conv_width(&self) -> usize {
        self.inner() + 2 * self.n_groups * self.state_dim
    }

    /// Values of the inputs that the convolution keeps of a sequence.
    pub fn conv_state_len(&self) -> usize {
        (self.taps - 1) * self.conv_width()
    }

    /// Values of the states of all heads.
    pub fn ssm_state_len(&self) -> usize {
        self.inner() * self.state_dim
    }
}

/// The selective state space of one layer of the first kind, in which every channel has rates of its own (Mamba,
/// arXiv:2312.00752).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MambaConfig {
    /// Channels.
    pub inner: usize,
    /// Values that the state has of a channel, and values of `b` and of `c`.
    pub state_dim: usize,
    /// Values that the steps of all channels are made of.
    pub dt_rank: usize,
    /// Tokens that an output of the convolution depends on, its own among them.
    pub taps: usize,
    /// Whether what steps are made of, `b` and `c` are normed without weights.
    pub normed: bool,
}

impl MambaConfig {
    /// Values that steps are made of, `b` and `c`.
    pub fn selection_width(&self) -> usize {
        self.dt_rank + 2 * self.state_dim
    }

    /// Values of the inputs that the convolution keeps of a sequence.
    pub fn conv_state_len(&self) -> usize {
        (self.taps - 1) * self.inner
    }

    /// Values of the states of all channels.
    pub fn ssm_state_len(&self) -> usize {
        self.inner * self.state_dim
    }
}

/// Widths of what a mixer with a state works with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecurrentWidths {
    /// Channels of its convolution.
    pub conv: usize,
    /// Values of its results.
    pub values: usize,
    /// Numbers that rates are made of, of two kinds.
    pub made_of: [usize; 2],
    /// Numbers for its rates.
    pub rates: usize,
}

/// How a layer mixes tokens of a sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MixerConfig {
    /// Not at all: the layer has a feed-forward part alone.
    None,
    /// Attention over the KV cache.
    Attention(AttentionConfig),
    /// Multi-head latent attention over the KV cache.
    Latent(LatentConfig),
    /// Not at all, but one matrix stands where attention would be (Nemotron's pruned layers).
    Linear,
    /// A gated causal convolution over so many tokens (LFM2).
    ShortConv {
        /// Tokens that an output depends on, its own among them.
        taps: usize,
    },
    /// A gated delta rule.
    DeltaNet(DeltaNetConfig),
    /// A selective state space.
    Mamba2(Mamba2Config),
    /// A selective state space of the first kind.
    Mamba(MambaConfig),
    /// Attention and a state space beside it, over the same normed stream.
    AttentionAndMamba2(AttentionConfig, Mamba2Config),
}

impl MixerConfig {
    /// Values that it keeps of a sequence, whatever its length.
    pub fn state_len(&self, n_embd: usize) -> usize {
        match self {
            MixerConfig::None | MixerConfig::Linear | MixerConfig::Attention(_) | MixerConfig::Latent(_) => 0,
            MixerConfig::ShortConv { taps } => (taps - 1) * n_embd,
            MixerConfig::DeltaNet(delta) => delta.conv_state_len() + delta.delta_state_len(),
            MixerConfig::Mamba(mamba) => mamba.conv_state_len() + mamba.ssm_state_len(),
            MixerConfig::Mamba2(mamba) | MixerConfig::AttentionAndMamba2(_, mamba) => {
                mamba.conv_state_len() + mamba.ssm_state_len()
            }
        }
    }

    /// The widths of a recurrence behind a convolution, if it is one.
    fn recurrent_widths(&self) -> RecurrentWidths {
        match self {
            MixerConfig::DeltaNet(delta) => RecurrentWidths {
                conv: delta.conv_width(),
                values: delta.value_width(),
                made_of: [2 * delta.n_value_heads, delta.n_value_heads],
                rates: 2 * delta.n_value_heads,
            },
            MixerConfig::Mamba(mamba) => RecurrentWidths {
                conv: mamba.inner,
                values: mamba.inner,
                made_of: [mamba.selection_width(), mamba.inner],
                rates: 0,
            },
            MixerConfig::Mamba2(mamba) | MixerConfig::AttentionAndMamba2(_, mamba) => RecurrentWidths {
                conv: mamba.conv_width(),
                values: mamba.inner(),
                made_of: [0, mamba.n_heads],
                rates: 2 * mamba.n_heads,
            },
            _ => RecurrentWidths::default(),
        }
    }
}

/// The feed-forward part of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FfnConfig {
    /// There is none.
    None,
    /// One for all tokens, of this width.
    Dense {
        /// Width.
        n_ff: usize,
    },
    /// A few experts of many for each token.
    Experts(Experts),
    /// The same in layers that have a router in the file; one for all tokens, as wide as an expert, in the others.
    ExpertsIfRouted(Experts),
}

/// One layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerConfig {
    /// How it mixes tokens.
    pub mixer: MixerConfig,
    /// Its feed-forward part.
    pub ffn: FfnConfig,
}

impl LayerConfig {
    /// Its attention, if that is its mixer.
    pub fn attention(&self) -> Option<&AttentionConfig> {
        match &self.mixer {
            MixerConfig::Attention(attention) | MixerConfig::AttentionAndMamba2(attention, _) => Some(attention),
            _ => None,
        }
    }

    /// Its attention, to be changed.
    pub(super) fn attention_mut(&mut self) -> Option<&mut AttentionConfig> {
        match &mut self.mixer {
            MixerConfig::Attention(attention) | MixerConfig::AttentionAndMamba2(attention, _) => Some(attention),
            _ => None,
        }
    }

    /// Its experts, if it has any.
    pub fn experts(&self) -> Option<&Experts> {
        match &self.ffn {
            FfnConfig::Experts(experts) | FfnConfig::ExpertsIfRouted(experts) => Some(experts),
            _ => None,
        }
    }

    /// Width of what every token meets in the feed-forward part: a dense layer or a shared expert; 0 without either.
    pub fn n_ff_dense(&self) -> usize {
        match self.ffn {
            FfnConfig::None => 0,
            FfnConfig::Dense { n_ff } => n_ff,
            FfnConfig::Experts(experts) => experts.n_ff_shared,
            FfnConfig::ExpertsIfRouted(experts) => experts.n_ff_shared.max(experts.n_ff),
        }
    }
}

/// Which values of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// `(2i, 2i + 1)`
    Neighbours,
    /// `(i, i + rope_dim / 2)`
    Halves,
}

/// Whether the feed-forward part of a layer sees what attention has added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// It does.
    InTurn,
    /// Both see the stream before the layer; the feed-forward part through its own norm if it has one, else through that of
    /// attention.
    Parallel,
}

/// What differs between layers that are much the same, where the architecture does not write its own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Style {
    /// How heads are rotated.
    pub pairing: Pairing,
    /// Of the feed-forward part.
    pub activation: Activation,
    /// In which order.
    pub residual: Residual,
}

/// What happens to embeddings before the first layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmbeddingNorm {
    /// Nothing.
    None,
    /// A norm without weights.
    Plain,
    /// A norm with the weights of `token_embd_norm`.
    Weighted,
}

/// How the hidden states of a text's tokens, after the model's last norm, become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// That of the first token.
    First,
    /// That of the last token.
    Last,
    /// The mean of all.
    Mean,
}

/// What a model makes that makes no text: one vector of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vectors {
    /// How hidden states become one.
    pub pooling: Pooling,
    /// Values of a classifier's results, which are the vector then, the first of them how well a document answers a query; 0
    /// without one: the vector is where the text lies among others.
    pub n_scores: usize,
    /// Whether the softmax of the classifier's results is taken.
    pub softmax: bool,
    /// Values between the two maps that the pooled vector meets; 0 without them.
    pub n_dense: usize,
}

impl Vectors {
    /// The vectors of texts, of a model that has no classifier.
    pub const fn of_texts(pooling: Pooling) -> Vectors {
        Vectors { pooling, n_scores: 0, softmax: false, n_dense: 0 }
    }

    /// Values of a vector, of a model of this width.
    pub fn len(&self, n_embd: usize) -> usize {
        if self.n_scores > 0 { self.n_scores } else { n_embd }
    }

    /// Whether texts are ranked.
    pub fn ranks(&self) -> bool {
        self.n_scores > 0
    }
}

/// The numbers of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The layers.
    pub layers: Vec<LayerConfig>,
    /// Further layers of the file, which predict tokens ahead and are left there.
    pub n_layers_skipped: usize,
    /// How often the layers of the file are run, one after the other; `layers` has them as often.
    pub loops: usize,
    /// Whether the stream meets the last norm after each time, not only the last.
    pub norm_after_loops: bool,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// The rotations that layers refer to; the first is that of full attention.
    pub ropes: Vec<Rope>,
    /// How layers are made that are not written out.
    pub style: Style,
    /// Which norms the stream meets.
    pub norm: NormKind,
    /// Whether what layers add to the stream is held aside first, to be normed or scaled, or until something else is added.
    pub has_branch: bool,
    /// Factor of the rows of the embedding.
    pub embedding_scale: f32,
    /// The norm of embeddings.
    pub embedding_norm: EmbeddingNorm,
    /// Whether a vector is added to the embedding at each of the positions that the model was trained for.
    pub learned_positions: bool,
    /// Whether feed-forward parts have a gate.
    pub gated_ffn: bool,
    /// The activation of every layer, where that differs from layer to layer.
    pub activations: Vec<Activation>,
    /// Factor of what layers add to the stream.
    pub residual_scale: f32,
    /// Factor of logits.
    pub logit_scale: f32,
    /// Logits are squeezed into plus and minus this, `cap * tanh(logit / cap)`.
    pub logit_cap: Option<f32>,
    /// Added under the root of every norm.
    pub norm_eps: f32,
    /// Width of the embedding of a token that every layer has of its own; 0 without them.
    pub n_embd_per_layer: usize,
    /// What it makes in place of text, if it makes none.
    pub vectors: Option<Vectors>,
    /// Whether tokens see those that come after them, so that a text is read in one pass.
    pub both_ways: bool,
    /// Whether the norm of the last layer is the last: there is no other behind it.
    pub ends_normed: bool,
    /// Whether there are kinds of tokens, of which all are the first, and whose vector is added to the embedding.
    pub token_kinds: bool,
    /// Tokens that are never drawn: their logits are minus infinity.
    pub suppressed: Vec<u32>,
    /// Context length the model was trained for.
    pub ctx_train: usize,
}

/// Most layers: the deepest published dense model has 126.
pub const LAYERS_MAX: usize = 256;

/// Most experts of a layer: the largest published number is 512. Sorting tokens by expert counts them in a table of so
/// many entries on the caller's stack.
pub const EXPERTS_MAX: usize = 512;

/// Bound on every width, so that products of two widths and a context stay far below 2^63.
pub(super) const WIDTH_MAX: usize = 1 << 20;

/// Most values of a head: four times what the largest known model has; one head is worked on in a worker's stack.
pub const HEAD_DIM_MAX: usize = 1024;

/// Most values of a head of a delta rule, and most channels of a convolution that are worked on at once: twice what heads of
/// published models have; a worker keeps the weights of their convolution on its stack.
pub const DELTA_DIM_MAX: usize = 256;

/// Most values that a state space has of a channel: four times what published models have.
pub const STATE_DIM_MAX: usize = 1024;

/// The same where every value has a rate of its own: eight times what published models have; a worker keeps the rates of some
/// channels on its stack.
pub const RATED_STATE_DIM_MAX: usize = 128;

/// Most taps of a convolution: published models have 3 and 4; a sequence keeps one row of the stream for each but one.
pub const TAPS_MAX: usize = 16;

impl Config {
    /// Layers that are run.
    pub fn n_layers(&self) -> usize {
        self.layers.len()
    }

    /// Layers of the file that are run.
    pub fn n_layers_of_file(&self) -> usize {
        self.layers.len() / self.loops
    }

    /// Most positions that a sequence can have.
    pub fn ctx_max(&self) -> usize {
        if self.learned_positions { self.ctx_train } else { usize::MAX }
    }

    /// Positions that the model was trained for, or that its rotation is stretched to.
    pub fn ctx_known(&self) -> usize {
        let stretched =
            self.ropes.first().map_or(0, |rope| (rope.ctx_original as f64 * f64::from(rope.scale)) as usize);
        self.ctx_train.max(stretched)
    }

    /// Lets scores fall with distance, by slopes of this greatest exponent, in the place of rotation.
    pub(super) fn set_alibi(&mut self, bias: f32) {
        self.do_not_rotate();
        self.layers
            .iter_mut()
            .filter_map(LayerConfig::attention_mut)
            .for_each(|attention| attention.alibi = Some(bias));
    }

    /// Lets tokens see what comes after them, as far as what is before them.
    pub(super) fn see_both_ways(&mut self) {
        self.both_ways = true;
        for attention in self.layers.iter_mut().filter_map(LayerConfig::attention_mut) {
            // Half of a window lies on either side (llama.cpp's symmetric windows).
            attention.window = Some(match attention.window {
                Some(window) => Window::Around(window.span() / 2),
                None => Window::Around(usize::MAX),
            });
        }
    }

    /// Most values of what the pooled vector becomes.
    pub fn head_width(&self) -> usize {
        self.vectors
            .map_or(0, |vectors| if vectors.ranks() { self.n_embd.max(vectors.n_scores) } else { vectors.n_dense })
    }

    /// Leaves heads as they are: positions are known in another way.
    pub(super) fn do_not_rotate(&mut self) {
        self.layers.iter_mut().filter_map(LayerConfig::attention_mut).for_each(|attention| attention.rope = None);
    }

    /// Whether a pass holds rows aside from the stream: what layers add, or what is known of a position.
    pub fn holds_aside(&self) -> bool {
        self.has_branch
            || self.learned_positions
            || self.residual_scale != 1.0
            || self.style.residual == Residual::Parallel
    }

    /// Positions that a token sees in the attention of `layer`; `usize::MAX` for all.
    pub fn window_of(&self, layer: usize) -> usize {
        self.layers[layer].attention().map_or(usize::MAX, AttentionConfig::window_len)
    }

    /// The largest of each width of the layers with a recurrence; 0 without any.
    pub fn recurrent_widths(&self) -> RecurrentWidths {
        let widest = |most: RecurrentWidths, layer: &LayerConfig| {
            let RecurrentWidths { conv, values, made_of, rates } = layer.mixer.recurrent_widths();
            RecurrentWidths {
                conv: most.conv.max(conv),
                values: most.values.max(values),
                made_of: [0, 1].map(|i| most.made_of[i].max(made_of[i])),
                rates: most.rates.max(rates),
            }
        };
        self.layers.iter().fold(RecurrentWidths::default(), widest)
    }

    /// The attention of every layer that has one.
    pub fn attentions(&self) -> impl Iterator<Item = &AttentionConfig> {
        self.layers.iter().filter_map(LayerConfig::attention)
    }

    /// The largest of a number of the layers with attention; 0 without any.
    pub fn attention_max(&self, number: impl Fn(&AttentionConfig) -> usize) -> usize {
        self.attentions().map(number).max().unwrap_or(0)
    }

    /// The latent attention of every layer that has one.
    pub fn latents(&self) -> impl Iterator<Item = &LatentConfig> {
        self.layers.iter().filter_map(|layer| match &layer.mixer {
            MixerConfig::Latent(latent) => Some(latent),
            _ => None,
        })
    }

    /// The largest of a number of the layers with latent attention; 0 without any.
    pub fn latent_max(&self, number: impl Fn(&LatentConfig) -> usize) -> usize {
        self.latents().map(number).max().unwrap_or(0)
    }

    /// The widest feed-forward part that every token meets; 0 without any.
    pub fn n_ff_dense(&self) -> usize {
        self.layers.iter().map(LayerConfig::n_ff_dense).max().unwrap_or(0)
    }

    /// Gives those of `layers` a window.
    pub(super) fn set_windows(&mut self, window: Window, layers: &[bool]) {
        for (layer, _) in self.layers.iter_mut().zip(layers).filter(|(_, has_window)| **has_window) {
            if let Some(attention) = layer.attention_mut() {
                attention.window = Some(window);
            }
        }
    }

    /// Takes the rotation from the layers that see everything.
    pub(super) fn rotate_windows_alone(&mut self) {
        for attention in self.layers.iter_mut().filter_map(LayerConfig::attention_mut) {
            attention.rope = attention.rope.filter(|_| attention.window.is_some());
        }
    }

    /// Gives every layer with attention this gate.
    pub(super) fn set_gate(&mut self, gate: OutputGate) {
        self.layers.iter_mut().filter_map(LayerConfig::attention_mut).for_each(|attn| attn.gate = Some(gate));
    }

    /// The widest of what experts work on: at least that of the stream.
    pub fn experts_width(&self) -> usize {
        let widths = self.layers.iter().filter_map(LayerConfig::experts).map(|experts| experts.width(self.n_embd));
        widths.fold(self.n_embd, usize::max)
    }

    /// Gives all layers from `first` on experts instead of a dense feed-forward part.
    pub(super) fn set_experts(&mut self, first: usize, experts: Experts) {
        for layer in self.layers.iter_mut().skip(first) {
            layer.ffn = FfnConfig::Experts(experts);
        }
    }
}
