//! Where every weight lies in the weights region, and what it is to its layer. [`super::tensors`] finds them in the file.

use sha2::{Digest, Sha256};

use super::config::{Config, Experts};
use crate::bytes;
use crate::kernels::{NormKind, RowNorm};
use crate::quant::{PANEL_ROWS, WeightType};

/// Every weight starts on a cache line.
pub(super) const ALIGN: usize = 64;

/// How a tensor is laid down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Panels for matrix products (see [`crate::quant`]).
    Panels,
    /// The file's rows as they are, for look-ups.
    Rows,
    /// A vector in f32, or some of the same length.
    Vector,
    /// Nowhere in the region: rows are read from the file when they are needed.
    File,
}

/// Where the embedding table of an untied model is to be. That of a tied one is its output matrix and always in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Embedding {
    /// In the weights region.
    #[default]
    InMemory,
    /// Left in the file.
    InFile,
}

/// One weight in the weights region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight {
    /// Its type in the file.
    pub ty: WeightType,
    /// How it is laid down.
    pub form: Form,
    /// Rows: outputs.
    pub rows: usize,
    /// Columns: inputs.
    pub cols: usize,
    /// Matrices of this shape, one after another, each in panels of its own: the experts of a layer, else 1.
    pub n_matrices: usize,
    /// How many of them a token meets.
    pub n_used: usize,
    /// First byte in the region.
    pub offset: usize,
    /// Bytes it takes there.
    pub bytes: usize,
    /// Where in the region lie factors of its products, an f32 for each matrix, if it has any.
    pub factors: Option<usize>,
}

impl Weight {
    /// Its bytes in the region.
    pub fn of<'a>(&self, region: &'a [u8]) -> &'a [u8] {
        &region[self.offset..][..self.bytes]
    }

    /// The bytes of one of its matrices.
    pub fn matrix_of<'a>(&self, region: &'a [u8], index: usize) -> &'a [u8] {
        let each = self.bytes / self.n_matrices;
        &self.of(region)[index * each..][..each]
    }

    /// What the products of one of its matrices are multiplied by.
    pub fn factor_of(&self, region: &[u8], index: usize) -> f32 {
        self.factors.map_or(1.0, |at| bytes::cast::<f32>(&region[at..][..self.n_matrices * 4])[index])
    }

    /// Bytes read for a token.
    pub fn bytes_per_token(&self) -> usize {
        self.bytes / self.n_matrices * self.n_used
    }

    /// Multiplications of a token.
    pub fn macs_per_token(&self) -> u64 {
        self.rows as u64 * self.cols as u64 * self.n_used as u64
    }

    /// A vector's values.
    pub fn values<'a>(&self, region: &'a [u8]) -> &'a [f32] {
        assert_eq!(self.form, Form::Vector);
        bytes::cast(self.of(region))
    }

    /// Those of one of some vectors.
    pub fn values_of<'a>(&self, region: &'a [u8], index: usize) -> &'a [f32] {
        &self.values(region)[index * self.cols..][..self.cols]
    }
}

/// A weight and the tensor it is loaded from.
#[derive(Clone, Copy, Debug)]
pub struct Placement {
    /// The weight.
    pub weight: Weight,
    /// Index into the file's tensor table.
    pub tensor: usize,
    /// The first row that belongs to it in each of the tensor's matrices: others have the rest where several share a
    /// tensor.
    pub first_row: usize,
    /// Rows of each of the tensor's matrices.
    pub tensor_rows: usize,
}

impl Placement {
    /// Bytes of the file that it is made of.
    pub fn file_bytes(&self) -> u64 {
        (self.weight.n_matrices * self.weight.rows * self.weight.ty.row_bytes(self.weight.cols)) as u64
    }
}

/// A linear map: the product with a matrix, times its scale if it has one ([`Weight::factors`]), plus a bias if it has one.
/// Of the experts of a layer it is one map each, and `bias` one vector each.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    /// The matrix.
    pub weight: Weight,
    /// Added to the product, `[rows]`.
    pub bias: Option<Weight>,
}

impl Linear {
    /// The bias of one of its matrices.
    pub fn bias_of<'a>(&self, region: &'a [u8], index: usize) -> Option<&'a [f32]> {
        self.bias.as_ref().map(|bias| bias.values_of(region, index))
    }
}

/// A norm of rows of `len` values.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    /// Which.
    pub kind: NormKind,
    /// Ones if there are none.
    pub weight: Option<Weight>,
    /// Zeros if there are none.
    pub bias: Option<Weight>,
    /// Values of a row.
    pub len: usize,
    /// Added under the root.
    pub eps: f32,
}

impl Config {
    /// A norm of this model without weights.
    pub(super) fn plain_norm(&self, len: usize) -> Norm {
        Norm { kind: self.norm, weight: None, bias: None, len, eps: self.norm_eps }
    }
}

impl Norm {
    /// With the values of its weights.
    pub fn of<'a>(&self, region: &'a [u8]) -> RowNorm<'a> {
        let values = |weight: &Option<Weight>| weight.as_ref().map(|weight| weight.values(region));
        RowNorm { kind: self.kind, weight: values(&self.weight), bias: values(&self.bias), eps: self.eps }
    }
}

/// Attention: projections of the normed stream to queries, keys and values, and of the heads' results back.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the names of the tensors")]
pub struct AttentionWeights {
    pub q: Linear,
    /// None in layers that read the keys and values of another.
    pub k: Option<Linear>,
    /// None there, and where values are what keys are before they are normed and rotated.
    pub v: Option<Linear>,
    /// Norms of queries and of keys: for every head, or over the width of all heads.
    pub qk_norms: [Option<Norm>; 2],
    /// Whether those norms are over the width of all heads.
    pub qk_norms_are_whole: bool,
    /// The norm of every head of values.
    pub v_norm: Option<Norm>,
    pub sinks: Option<Weight>,
    /// What results are multiplied by the sigmoid of, in layers that are gated.
    pub gate: Option<Linear>,
    pub output: Linear,
}

/// What makes queries that meet latents of those that meet keys, head by head: keys are made of latents by its transpose.
#[derive(Clone, Copy, Debug)]
pub enum LatentKeys {
    /// As the file has it, `[n_heads][kv_rank, plain_dim]`.
    Absorbed(Linear),
    /// The map from latents to keys, `[n_heads][plain_dim, kv_rank]` in f32: the rows that file has of it are inputs.
    Rows(Weight),
}

/// Multi-head latent attention.
#[derive(Clone, Copy, Debug)]
pub struct LatentWeights {
    /// To what queries are made of, and its norm; without it they are made of the stream.
    pub q_a: Option<(Linear, Norm)>,
    /// To queries, `[n_heads * key_dim, q_rank or n_embd]`.
    pub q: Linear,
    /// To the latent and the rotated part of the key, `[row_dim, n_embd]`.
    pub kv_a: Linear,
    /// The norm of the latent.
    pub kv_norm: Norm,
    /// From queries to what meets latents.
    pub keys: LatentKeys,
    /// From latents to values, `[n_heads][value_dim, kv_rank]`.
    pub values: Linear,
    /// Back to the stream.
    pub output: Linear,
}

/// The gated convolution of LFM2.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the names of the tensors")]
pub struct ShortConvWeights {
    /// To two gates and what is convolved, `[3 * n_embd, n_embd]`.
    pub in_proj: Linear,
    /// `[n_embd, taps]`, the oldest token first.
    pub conv: Weight,
    pub out_proj: Linear,
}

/// The maps to the strength and the decay of every value head.
#[derive(Clone, Copy, Debug)]
pub enum DeltaRates {
    /// One each, `[n_value_heads, n_embd]`.
    Apart {
        /// To strengths.
        strength: Linear,
        /// To decays.
        decay: Linear,
    },
    /// Both in one, `[2 * n_value_heads, n_embd]`: for each key head the strengths of its value heads, then their decays.
    Together(Linear),
}

/// The gated delta rule of one layer.
#[derive(Clone, Copy, Debug)]
pub struct DeltaNetWeights {
    /// To queries, keys and values, `[conv_width, n_embd]`.
    pub qkv: Linear,
    /// To what results are gated by, `[value_width, n_embd]`.
    pub z: Linear,
    /// To strengths and decays.
    pub rates: DeltaRates,
    /// Of every channel of queries, keys and values, `[conv_width, taps]`, the oldest token first.
    pub conv: Weight,
    /// Added to what becomes decays, `[n_value_heads]`.
    pub decay_bias: Weight,
    /// Factor of the decays' logarithms, below 0, `[n_value_heads]`.
    pub decay_factor: Weight,
    /// The norm of every head's results, `[head_dim]`.
    pub norm: Weight,
    /// Back to the stream.
    pub output: Linear,
}

/// The selective state space of one layer.
#[derive(Clone, Copy, Debug)]
pub struct Mamba2Weights {
    /// To what results are gated by, `[inner, n_embd]`.
    pub z: Linear,
    /// To the channels of the convolution: of heads, then `b` and `c` of groups, `[conv_width, n_embd]`.
    pub conv_inputs: Linear,
    /// To steps, `[n_heads, n_embd]`.
    pub dt: Linear,
    /// Of every channel, `[conv_width, taps]`, the oldest token first.
    pub conv: Weight,
    /// Added to what is convolved, `[conv_width]`.
    pub conv_bias: Option<Weight>,
    /// Added to steps, `[n_heads]`.
    pub dt_bias: Weight,
    /// Factor of steps in the decays' logarithms, below 0, `[n_heads]`.
    pub a: Weight,
    /// Factor of what skips the state, `[n_heads]`.
    pub d: Weight,
    /// The norm of gated results, group by group, `[inner]`.
    pub norm: Option<Norm>,
    /// Back to the stream.
    pub output: Linear,
}

/// The selective state space of one layer of the first kind.
#[derive(Clone, Copy, Debug)]
pub struct MambaWeights {
    /// To the channels, `[inner, n_embd]`.
    pub conv_inputs: Linear,
    /// To what results are gated by, `[inner, n_embd]`.
    pub z: Linear,
    /// Of every channel, `[inner, taps]`, the oldest token first.
    pub conv: Weight,
    /// Added to what is convolved, `[inner]`.
    pub conv_bias: Option<Weight>,
    /// From the channels to what steps are made of, `b` and `c`, `[selection_width, inner]`.
    pub selection: Linear,
    /// Norms of the three.
    pub norms: Option<[Norm; 3]>,
    /// To the steps, `[inner, dt_rank]`.
    pub dt: Linear,
    /// Factor of steps in the decays' logarithms, below 0, `[inner, state_dim]`.
    pub a: Weight,
    /// Factor of what skips the state, `[inner]`.
    pub d: Weight,
    /// Back to the stream.
    pub output: Linear,
}

/// How a layer mixes tokens.
#[derive(Clone, Debug, Default)]
pub enum Mixer {
    /// Not at all.
    #[default]
    None,
    /// Attention.
    Attention(Box<AttentionWeights>),
    /// Multi-head latent attention.
    Latent(Box<LatentWeights>),
    /// A convolution.
    ShortConv(Box<ShortConvWeights>),
    /// A gated delta rule.
    DeltaNet(Box<DeltaNetWeights>),
    /// A selective state space.
    Mamba2(Box<Mamba2Weights>),
    /// A selective state space of the first kind.
    Mamba(Box<MambaWeights>),
    /// Attention and a state space beside it.
    AttentionAndMamba2(Box<(AttentionWeights, Mamba2Weights)>),
    /// One matrix on the normed stream.
    Linear(Box<Linear>),
}

impl Mixer {
    /// The matrix whose product is added to the stream, the last one if there are two.
    pub(super) fn output(&self) -> Option<&Linear> {
        match self {
            Mixer::None => None,
            Mixer::Attention(attention) => Some(&attention.output),
            Mixer::Latent(latent) => Some(&latent.output),
            Mixer::ShortConv(conv) => Some(&conv.out_proj),
            Mixer::DeltaNet(delta) => Some(&delta.output),
            Mixer::Mamba2(mamba) => Some(&mamba.output),
            Mixer::Mamba(mamba) => Some(&mamba.output),
            Mixer::AttentionAndMamba2(both) => Some(&both.1.output),
            Mixer::Linear(linear) => Some(linear),
        }
    }
}

/// A feed-forward layer: `down(activation(gate(x)) * up(x))`, or `down(activation(up(x)))` without a gate.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the names of the tensors")]
pub struct DenseFfn {
    pub gate: Option<Linear>,
    pub up: Linear,
    pub down: Linear,
}

impl DenseFfn {
    /// The matrix that the stream meets first.
    pub fn first(&self) -> &Weight {
        &self.gate.as_ref().unwrap_or(&self.up).weight
    }
}

/// The expert that every token meets.
#[derive(Clone, Copy, Debug)]
pub struct SharedExpert {
    /// The norm of what it reads, if that is not what experts read.
    pub norm: Option<Norm>,
    /// The expert.
    pub ffn: DenseFfn,
    /// Its output is multiplied by the sigmoid of the stream's dot product with this, `[n_embd]`.
    pub gate: Option<Weight>,
}

/// The norms of experts beside a dense part that has norms of its own.
#[derive(Clone, Copy, Debug)]
pub struct ApartNorms {
    /// Of what the router reads, which is scaled to the length 1 before the weights.
    pub router: Norm,
    /// Of what the experts read.
    pub experts: Option<Norm>,
    /// Of what the experts come to.
    pub experts_post: Norm,
    /// Of what the dense part comes to.
    pub dense_post: Norm,
}

/// A feed-forward layer made of experts: `gate`, `up` and `down` hold a map for each.
#[derive(Clone, Copy, Debug)]
pub struct MoeFfn {
    /// The numbers of its layer.
    pub experts: Experts,
    /// Scores the experts.
    pub router: Linear,
    /// Added to what scores have become, to choose by.
    pub selection_bias: Option<Weight>,
    /// All gate maps, if experts have gates.
    pub gate: Option<Linear>,
    /// All up maps.
    pub up: Linear,
    /// All down maps.
    pub down: Linear,
    /// To what experts work on, and back, where that is not the stream.
    pub latent: Option<[Linear; 2]>,
    /// The expert that every token meets.
    pub shared: Option<SharedExpert>,
    /// Norms of experts that are apart from the shared one.
    pub apart: Option<ApartNorms>,
}

impl MoeFfn {
    /// The matrix of experts that the stream meets first.
    pub fn first(&self) -> &Weight {
        &self.gate.as_ref().unwrap_or(&self.up).weight
    }

    /// The norms of experts that are apart, and the dense part beside them.
    pub(super) fn apart(&self) -> (&ApartNorms, &DenseFfn) {
        match (&self.apart, &self.shared) {
            (Some(norms), Some(shared)) => (norms, &shared.ffn),
            _ => unreachable!("the architecture has a dense part beside experts"),
        }
    }
}

/// How the embedding that a token has for one layer is added to the stream: `norm(proj(gelu(gate(x)) * embedding))`.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "told above")]
pub struct PerLayerMaps {
    pub gate: Linear,
    pub proj: Linear,
    pub norm: Option<Norm>,
}

/// Embeddings of tokens for every layer: rows of a table that stays in the file, and what is made of the stream.
#[derive(Clone, Copy, Debug)]
pub struct PerLayerEmbedding {
    /// `[n_vocab, n_layers * n_embd_per_layer]`, in the file.
    pub table: Weight,
    /// From the stream to as much.
    pub proj: Linear,
    /// The norm of what that comes to, of every layer's part, `[n_embd_per_layer]`.
    pub norm: Norm,
}

/// The feed-forward part of a layer.
#[derive(Clone, Debug, Default)]
pub enum FeedForward {
    /// There is none.
    #[default]
    None,
    /// One for all tokens.
    Dense(Box<DenseFfn>),
    /// A few of many for each token.
    Experts(Box<MoeFfn>),
}

impl FeedForward {
    /// The matrix that the stream meets first.
    pub(super) fn first(&self) -> Option<&Weight> {
        match self {
            FeedForward::None => None,
            FeedForward::Dense(ffn) => Some(ffn.first()),
            FeedForward::Experts(moe) => Some(&moe.router.weight),
        }
    }
}

/// The weights of a layer.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    /// The norm of what the mixer reads.
    pub attn_norm: Option<Norm>,
    /// How it mixes tokens.
    pub mixer: Mixer,
    /// The norm of what the mixer adds to the stream, or, in BitNet, of what its last matrix reads.
    pub attn_post_norm: Option<Norm>,
    /// The norm of what the feed-forward part reads.
    pub ffn_norm: Option<Norm>,
    /// The feed-forward part.
    pub ffn: FeedForward,
    /// The norm of what the feed-forward part adds to the stream, or of what its last matrix reads.
    pub ffn_post_norm: Option<Norm>,
    /// What the layer makes of the embedding that tokens have for it.
    pub per_layer: Option<PerLayerMaps>,
    /// Factor of the stream behind the layer.
    pub output_scale: Option<Weight>,
}

impl Layer {
    /// The attention of an architecture that has it in every layer.
    pub(super) fn attention(&self) -> &AttentionWeights {
        match &self.mixer {
            Mixer::Attention(attention) => attention,
            _ => unreachable!("Header::decoder gives every layer attention"),
        }
    }

    /// The mixer of an architecture that has latent attention in every layer.
    pub(super) fn latent(&self) -> &LatentWeights {
        match &self.mixer {
            Mixer::Latent(latent) => latent,
            _ => unreachable!("the architecture gives every layer latent attention"),
        }
    }

    /// The feed-forward part of an architecture without experts.
    pub(super) fn dense(&self) -> &DenseFfn {
        match &self.ffn {
            FeedForward::Dense(ffn) => ffn,
            _ => unreachable!("Header::decoder gives every layer a dense feed-forward part"),
        }
    }
}

/// Divisors of the rotary frequencies, `[rope_dim / 2]`.
#[derive(Clone, Copy, Debug)]
pub enum RopeFactors {
    /// Llama 3's.
    Always(Weight),
    /// LongRoPE's, for contexts up to the original length and beyond.
    ByContext(Weight, Weight),
}

impl RopeFactors {
    /// Those for a context of `ctx` positions, of a model that was trained for `ctx_original` first.
    pub fn of(&self, ctx: usize, ctx_original: usize) -> &Weight {
        match self {
            RopeFactors::Always(factors) => factors,
            RopeFactors::ByContext(short, _) if ctx <= ctx_original => short,
            RopeFactors::ByContext(_, long) => long,
        }
    }
}

/// What is done to what a map of the pooled vector gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadFunction {
    /// Nothing.
    None,
    /// The hyperbolic tangent of each value.
    Tanh,
    /// The softmax of all.
    Softmax,
}

/// All weights of a model.
#[derive(Clone, Debug)]
pub struct Weights {
    /// The embedding table; in panels where it is the output matrix as well.
    pub embedding: Weight,
    /// What is added to the embedding of a token at each position, `[ctx_train, n_embd]`.
    pub positions: Option<Weight>,
    /// What is added to the embedding of every token: the vector of the first kind of tokens.
    pub token_kind: Option<Weight>,
    /// The norm of embeddings.
    pub embedding_norm: Option<Norm>,
    /// The last norm.
    pub output_norm: Norm,
    /// The output matrix: the embedding itself where the file has no other. Nothing meets it in a model of vectors.
    pub output: Linear,
    /// What the pooled vector of a text meets, one after the other.
    pub head: Vec<(Linear, HeadFunction)>,
    /// Divisors of the rotary frequencies.
    pub rope_factors: Option<RopeFactors>,
    /// Embeddings of tokens for every layer.
    pub per_layer: Option<PerLayerEmbedding>,
    /// The layers.
    pub layers: Vec<Layer>,
    /// Where in the region each layer begins, and where the last ends.
    pub layer_offsets: Vec<usize>,
    /// Everything in the order of the region: what the loader does.
    pub placements: Vec<Placement>,
    /// Bytes of the region.
    pub bytes: usize,
    /// Bytes read for every token: all matrices, of experts those used, and one row of the embedding.
    pub bytes_per_token: usize,
    /// Multiplications per token, the output matrix and unused experts not counted.
    pub macs_per_token: u64,
}

impl Weights {
    /// Tokens of the vocabulary.
    pub fn n_vocab(&self) -> usize {
        self.embedding.rows
    }

    /// Where in the region the matrices begin that only output rows meet: those behind the mixer of the last layer, and the
    /// output matrix.
    pub fn end_of_prefill(&self) -> usize {
        let last = self.layers.last().and_then(|last| match last.mixer.output() {
            Some(output) => Some(output.weight.offset),
            None => last.ffn.first().map(|first| first.offset),
        });
        last.unwrap_or(self.bytes)
    }

    /// SHA-256, in hexadecimal, of the way weights lie in their region: the place and form of every tensor, and for each type
    /// of panels what certain bytes become in one. Whoever has the same reads the same weights.
    pub fn layout_sha256(&self) -> String {
        let mut hash = Sha256::new();
        let mut types = Vec::new();
        for Placement { weight, tensor, first_row, .. } in &self.placements {
            let numbers =
                [*tensor, *first_row, weight.offset, weight.bytes, weight.rows, weight.cols, weight.n_matrices];
            numbers.iter().for_each(|number| hash.update(number.to_le_bytes()));
            hash.update([weight.form as u8]);
            hash.update(weight.ty.name());
            if weight.form == Form::Panels && !types.contains(&weight.ty) {
                types.push(weight.ty);
            }
        }
        for ty in types {
            let cols = 2 * ty.block_len();
            // The upper half of multiples of 2^16 over the golden ratio: bytes that do not repeat.
            let bytes = (0..PANEL_ROWS * ty.row_bytes(cols)).map(|i| (i * 40503).to_le_bytes()[1]);
            let mut panel = vec![0; ty.panel_bytes(cols)];
            ty.repack_panel(&bytes.collect::<Vec<u8>>(), cols, &mut panel);
            hash.update(panel);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The longest row of any matrix, in bytes of the file: what the loader's buffers must hold sixteen of.
    pub fn row_bytes_max(&self) -> usize {
        self.placements.iter().map(|p| p.weight.ty.row_bytes(p.weight.cols)).max().unwrap_or(0)
    }
}
