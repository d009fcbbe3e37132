//! Finds the tensors an architecture needs in a file, checks their shapes, and gives them places in the weights region.

use std::ops::Range;

use super::config::{
    AttentionConfig, Config, DeltaNetConfig, EmbeddingNorm, Experts, FfnConfig, LatentConfig, LayerConfig,
    Mamba2Config, MambaConfig, MixerConfig,
};
use super::error::{Fault, ModelError, range};
use super::weights::{
    ALIGN, ApartNorms, AttentionWeights, DeltaNetWeights, DeltaRates, DenseFfn, Embedding, FeedForward, Form,
    LatentKeys, LatentWeights, Layer, Linear, Mamba2Weights, MambaWeights, Mixer, MoeFfn, Norm, PerLayerEmbedding,
    PerLayerMaps, Placement, RopeFactors, SharedExpert, ShortConvWeights, Weight, Weights,
};
use crate::gguf::{TensorInfo, sort_tensors};
use crate::quant::{PANEL_ROWS, WeightType};

/// Most tokens of a vocabulary.
const VOCAB_MAX: u64 = 1 << 24;

/// The names of tables whose rows may be read from the file.
pub(super) const EMBEDDING_TABLE: &str = "token_embd.weight";
pub(super) const PER_LAYER_TABLE: &str = "per_layer_token_embd.weight";

/// Norms of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QkNorms {
    /// None.
    None,
    /// The same weights for every head.
    PerHead,
    /// As [`QkNorms::PerHead`] where the file has them.
    PerHeadIfThere,
    /// Over every head, with weights of its own, where the file has them.
    EachHeadIfThere,
    /// Over all heads together.
    Whole,
}

/// Finds the tensors of a layer.
pub(super) type TensorsFn = fn(&mut LayerTensors<'_, '_>) -> Result<Layer, ModelError>;

/// Finds the weights of `config` among `tensors`, those of a layer with `layer`; `output_norm` is the name of the last norm,
/// if it has weights.
///
/// # Errors
/// A tensor that is missing, of a wrong shape, of a type without kernels, or unknown to the architecture.
pub(super) fn place(
    config: &Config,
    (layer, output_norm): (TensorsFn, Option<&str>),
    tensors: &[TensorInfo],
    embedding: Embedding,
) -> Result<Weights, ModelError> {
    let mut finder = TensorFinder::new(tensors);
    if config.n_layers_skipped > 0 && !tensors.iter().any(|tensor| tensor.name().starts_with("blk.0.")) {
        return Err(Fault::OnlyAhead { layers: config.n_layers_skipped }.into());
    }
    let e = config.n_embd;
    let n_vocab = finder.rows(EMBEDDING_TABLE)?;
    let tied = !finder.has("output.weight");
    let form = match embedding {
        _ if tied => Form::Panels,
        Embedding::InMemory => Form::Rows,
        Embedding::InFile => Form::File,
    };
    let embedding = finder.take(EMBEDDING_TABLE, form, n_vocab, e)?;
    let positions = match config.learned_positions {
        true => Some(finder.take("position_embd.weight", Form::Rows, config.ctx_train, e)?),
        false => None,
    };
    let embedding_norm = match config.embedding_norm {
        EmbeddingNorm::None => None,
        EmbeddingNorm::Plain => Some(config.plain_norm(e)),
        EmbeddingNorm::Weighted => Some(finder.norm(config, "token_embd_norm", e)?),
    };
    let per_layer = match config.n_embd_per_layer {
        0 => None,
        width => Some(finder.per_layer_embedding(config, n_vocab, width)?),
    };
    let (mut layers, mut layer_offsets) = (Vec::new(), vec![finder.bytes()]);
    let n_layers = config.n_layers_of_file();
    for i in 0..n_layers {
        layers.push(finder.layer(config, layer, i)?);
        layer_offsets.push(finder.bytes());
    }
    for _ in 1..config.loops {
        layers.extend_from_within(..n_layers);
    }
    let output_norm = match output_norm {
        Some(name) => finder.norm(config, name, e)?,
        None => config.plain_norm(e),
    };
    let output = match tied {
        true => Linear { weight: embedding, bias: finder.optional_vector("output.bias", n_vocab)? },
        false => finder.linear("output", n_vocab, e)?,
    };
    let rope_factors = finder.rope_factors(config.ropes.iter().map(|rope| rope.dim / 2).max().unwrap_or(0))?;
    for i in n_layers..n_layers + config.n_layers_skipped {
        finder.skip(&format!("blk.{i}."));
    }
    let (placements, bytes) = finder.finish()?;
    let matrices = placements.iter().map(|p| p.weight).filter(|w| w.form == Form::Panels);
    let layer_macs: u64 = matrices.clone().map(|w| w.macs_per_token()).sum();
    let layer_bytes: usize = matrices.map(|w| w.bytes_per_token()).sum();
    let (output_macs, output_bytes) = (output.weight.macs_per_token(), output.weight.bytes_per_token());
    Ok(Weights {
        bytes_per_token: config.loops * (layer_bytes - output_bytes) + output_bytes + embedding.ty.row_bytes(e),
        per_layer,
        macs_per_token: config.loops as u64 * (layer_macs - output_macs),
        embedding,
        positions,
        embedding_norm,
        output_norm,
        output,
        rope_factors,
        layers,
        layer_offsets,
        bytes,
        placements,
    })
}

/// The tensors of a file, and which of them have a place.
pub(super) struct TensorFinder<'t> {
    tensors: &'t [TensorInfo],
    by_name: Vec<u16>,
    used: Vec<bool>,
    placements: Vec<Placement>,
    bytes: usize,
}

/// The matrices of a tensor: how many, and how many of them a token meets.
#[derive(Clone, Copy)]
struct Matrices {
    count: usize,
    used: usize,
}

impl Matrices {
    const ONE: Matrices = Matrices { count: 1, used: 1 };

    fn of(experts: &Experts) -> Matrices {
        Matrices { count: experts.count, used: experts.used }
    }
}

impl<'t> TensorFinder<'t> {
    pub(super) fn new(tensors: &'t [TensorInfo]) -> TensorFinder<'t> {
        let mut by_name: Vec<u16> = (0..tensors.len()).map(|index| index as u16).collect();
        sort_tensors(&mut by_name, tensors, |a, b| a.name().cmp(b.name()));
        TensorFinder { tensors, by_name, used: vec![false; tensors.len()], placements: Vec::new(), bytes: 0 }
    }

    /// Bytes of the region so far.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Everything in the order of the region, and the bytes of the region.
    ///
    /// # Errors
    /// A tensor that nothing has asked for.
    pub(super) fn finish(self) -> Result<(Vec<Placement>, usize), ModelError> {
        match self.used.iter().position(|used| !used) {
            Some(unused) => Err(Fault::UnknownTensor(self.tensors[unused].name().to_owned()).into()),
            None => Ok((self.placements, self.bytes)),
        }
    }

    /// The tensors of layer `i`.
    fn layer(&mut self, config: &Config, tensors_of: TensorsFn, i: usize) -> Result<Layer, ModelError> {
        let mut tensors = LayerTensors {
            finder: self,
            config,
            layer: &config.layers[i],
            index: i,
            biases_required: false,
            shared_suffix: "_shexp",
        };
        tensors_of(&mut tensors)
    }

    fn index(&self, name: &str) -> Option<usize> {
        let found = self.by_name.binary_search_by(|&i| self.tensors[usize::from(i)].name().cmp(name));
        found.ok().map(|at| usize::from(self.by_name[at]))
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.index(name).is_some()
    }

    /// Leaves out what begins with `prefix`.
    pub(super) fn skip(&mut self, prefix: &str) {
        for (tensor, used) in self.tensors.iter().zip(&mut self.used) {
            *used |= tensor.name().starts_with(prefix);
        }
    }

    /// Rows of a tensor, tokens of the vocabulary.
    pub(super) fn rows(&self, name: &str) -> Result<usize, ModelError> {
        let index = self.index(name).ok_or_else(|| ModelError::missing_tensor(name))?;
        match self.tensors[index].rows() {
            found @ 1..=VOCAB_MAX => Ok(found as usize),
            found => range("the number of tokens", found, format!("1 to {VOCAB_MAX}")),
        }
    }

    pub(super) fn vector(&mut self, name: &str, len: usize) -> Result<Weight, ModelError> {
        self.take(name, Form::Vector, 1, len)
    }

    pub(super) fn optional_vector(&mut self, name: &str, len: usize) -> Result<Option<Weight>, ModelError> {
        if self.has(name) { self.vector(name, len).map(Some) } else { Ok(None) }
    }

    /// A norm of the model's kind, with a bias where the file has one.
    pub(super) fn norm(&mut self, config: &Config, name: &str, len: usize) -> Result<Norm, ModelError> {
        let weight = Some(self.vector(&format!("{name}.weight"), len)?);
        let bias = self.optional_vector(&format!("{name}.bias"), len)?;
        Ok(Norm { weight, bias, ..config.plain_norm(len) })
    }

    /// A tensor of one matrix, or of some vectors of `cols` values.
    pub(super) fn take(&mut self, name: &str, form: Form, rows: usize, cols: usize) -> Result<Weight, ModelError> {
        self.take_rows(name, form, Matrices::ONE, (rows, cols), 0..rows, None)
    }

    /// `stem.weight` with its scale, and `stem.bias` if it is there.
    pub(super) fn linear(&mut self, stem: &str, rows: usize, cols: usize) -> Result<Linear, ModelError> {
        let [linear] = self.linear_parts(stem, [rows], cols)?;
        Ok(linear)
    }

    /// Linear maps, of so many rows each, that lie one after another in one tensor.
    pub(super) fn linear_parts<const N: usize>(
        &mut self,
        stem: &str,
        parts: [usize; N],
        cols: usize,
    ) -> Result<[Linear; N], ModelError> {
        let bias = self.optional_vector(&format!("{stem}.bias"), parts.iter().sum())?;
        let weights = self.weight_parts(stem, Matrices::ONE, parts, cols)?;
        let mut offset = bias.map_or(0, |bias| bias.offset);
        Ok(weights.map(|weight| {
            let bias = bias.map(|whole| Weight { cols: weight.rows, offset, bytes: weight.rows * 4, ..whole });
            offset += weight.rows * 4;
            Linear { weight, bias }
        }))
    }

    /// The same of every expert; biases are of parts that have a tensor of their own.
    fn expert_parts<const N: usize>(
        &mut self,
        stem: &str,
        experts: &Experts,
        parts: [usize; N],
        cols: usize,
    ) -> Result<[Linear; N], ModelError> {
        let name = format!("{stem}.bias");
        let bias = match N == 1 && self.has(&name) {
            true => Some(self.take(&name, Form::Vector, experts.count, parts[0])?),
            false => None,
        };
        let weights = self.weight_parts(stem, Matrices::of(experts), parts, cols)?;
        Ok(weights.map(|weight| Linear { weight, bias }))
    }

    fn weight_parts<const N: usize>(
        &mut self,
        stem: &str,
        matrices: Matrices,
        parts: [usize; N],
        cols: usize,
    ) -> Result<[Weight; N], ModelError> {
        let name = format!("{stem}.weight");
        let factors = self.factors(stem, matrices.count)?;
        let rows = parts.iter().sum();
        let mut first = 0;
        let mut taken = heapless::Vec::<Weight, N>::new();
        for part in parts {
            let own = first..first + part;
            let weight = self.take_rows(&name, Form::Panels, matrices, (rows, cols), own, factors)?;
            taken.push(weight).expect("there are N parts");
            first += part;
        }
        Ok(taken.into_array().expect("there are N parts"))
    }

    /// Rows of one matrix whose tensor has `n_blocks` blocks of `block_rows`: those in `parts` of every block, one part of
    /// all blocks after the other.
    ///
    /// # Errors
    /// Parts that are not whole panels: what lies in panels cannot be cut within one.
    fn weight_of_blocks(
        &mut self,
        name: &str,
        (n_blocks, block_rows): (usize, usize),
        parts: &[Range<usize>],
        cols: usize,
        factors: Option<usize>,
    ) -> Result<Weight, ModelError> {
        if let Some(part) = parts.iter().find(|part| !part.len().is_multiple_of(PANEL_ROWS)) {
            return range(&format!("what `{name}` has of one head"), part.len(), format!("a multiple of {PANEL_ROWS}"));
        }
        let (index, ty) = self.of_shape(name, [1, n_blocks * block_rows, cols])?;
        let first = self.bytes;
        let mut rows = 0;
        for part in parts {
            let bytes = n_blocks * ty.matrix_bytes(part.len(), cols);
            let (n_matrices, offset) = (n_blocks, self.bytes);
            let weight = Weight {
                ty,
                form: Form::Panels,
                rows: part.len(),
                cols,
                n_matrices,
                n_used: n_matrices,
                offset,
                bytes,
                factors,
            };
            self.placements.push(Placement { weight, tensor: index, first_row: part.start, tensor_rows: block_rows });
            self.bytes += bytes;
            rows += n_blocks * part.len();
        }
        let bytes = self.bytes - first;
        self.bytes = self.bytes.next_multiple_of(ALIGN);
        self.used[index] = true;
        Ok(Weight { ty, form: Form::Panels, rows, cols, n_matrices: 1, n_used: 1, offset: first, bytes, factors })
    }

    /// Of a tensor whose rows are blocks, one for each head, the rows `own` of every block as a matrix each.
    fn head_matrices(
        &mut self,
        name: &str,
        form: Form,
        (n_heads, block_rows): (usize, usize),
        own: Range<usize>,
        cols: usize,
    ) -> Result<Weight, ModelError> {
        let found = self.of_shape(name, [1, n_heads * block_rows, cols])?;
        let matrices = Matrices { count: n_heads, used: n_heads };
        Ok(self.place_rows(found, form, matrices, (block_rows, cols), own, None))
    }

    /// The tensor of this name, if it has this shape: matrices, rows, columns.
    fn of_shape(&self, name: &str, need: [usize; 3]) -> Result<(usize, WeightType), ModelError> {
        let index = self.index(name).ok_or_else(|| ModelError::missing_tensor(name))?;
        let tensor = &self.tensors[index];
        let found = [tensor.dims[2] * tensor.dims[3], tensor.dims[1], tensor.dims[0]];
        let need = need.map(|n| n as u64);
        if found != need {
            return Err(Fault::Shape { tensor: name.to_owned(), found, need }.into());
        }
        let no_kernels = || Fault::TensorType { tensor: name.to_owned(), ty: tensor.ty.name() };
        Ok((index, WeightType::of(tensor.ty).ok_or_else(no_kernels)?))
    }

    /// Factors of the products of the matrices of `stem`, which the scales of NVFP4 alone cannot reach. What goes with them
    /// for multiplying in four bits (`input_scale`) has no use here.
    fn factors(&mut self, stem: &str, n_matrices: usize) -> Result<Option<usize>, ModelError> {
        if let Some(index) = self.index(&format!("{stem}.input_scale")) {
            self.used[index] = true;
        }
        Ok(self.optional_vector(&format!("{stem}.scale"), n_matrices)?.map(|factors| factors.offset))
    }

    /// Divisors of the rotary frequencies, `len` of them, if the file has any.
    pub(super) fn rope_factors(&mut self, len: usize) -> Result<Option<RopeFactors>, ModelError> {
        if let Some(factors) = self.optional_vector("rope_freqs.weight", len)? {
            return Ok(Some(RopeFactors::Always(factors)));
        }
        if self.has("rope_factors_long.weight") || self.has("rope_factors_short.weight") {
            let short = self.vector("rope_factors_short.weight", len)?;
            return Ok(Some(RopeFactors::ByContext(short, self.vector("rope_factors_long.weight", len)?)));
        }
        Ok(None)
    }

    /// The embeddings that tokens have for every layer.
    fn per_layer_embedding(
        &mut self,
        config: &Config,
        n_vocab: usize,
        width: usize,
    ) -> Result<PerLayerEmbedding, ModelError> {
        let total = config.n_layers() * width;
        Ok(PerLayerEmbedding {
            table: self.take(PER_LAYER_TABLE, Form::File, n_vocab, total)?,
            proj: self.linear("per_layer_model_proj", total, config.n_embd)?,
            norm: self.norm(config, "per_layer_proj_norm", width)?,
        })
    }

    /// The rows `own` of every matrix, of `rows` x `cols`, of a tensor.
    fn take_rows(
        &mut self,
        name: &str,
        form: Form,
        matrices: Matrices,
        (rows, cols): (usize, usize),
        own: Range<usize>,
        factors: Option<usize>,
    ) -> Result<Weight, ModelError> {
        let found = self.of_shape(name, [matrices.count, rows, cols])?;
        Ok(self.place_rows(found, form, matrices, (rows, cols), own, factors))
    }

    fn place_rows(
        &mut self,
        (index, ty): (usize, WeightType),
        form: Form,
        Matrices { count: n_matrices, used: n_used }: Matrices,
        (tensor_rows, cols): (usize, usize),
        own: Range<usize>,
        factors: Option<usize>,
    ) -> Weight {
        let own_rows = own.len();
        let bytes = n_matrices
            * match form {
                Form::Panels => ty.matrix_bytes(own_rows, cols),
                Form::Rows => own_rows * ty.row_bytes(cols),
                Form::Vector => own_rows * cols * 4,
                Form::File => 0,
            };
        let weight = Weight { ty, form, rows: own_rows, cols, n_matrices, n_used, offset: self.bytes, bytes, factors };
        self.bytes += bytes.next_multiple_of(ALIGN);
        self.used[index] = true;
        if form != Form::File {
            self.placements.push(Placement { weight, tensor: index, first_row: own.start, tensor_rows });
        }
        weight
    }
}

/// The tensors of one layer, `blk.N.`; what an architecture calls them by is the rest of their names.
pub(super) struct LayerTensors<'f, 't> {
    finder: &'f mut TensorFinder<'t>,
    /// The model's numbers.
    pub config: &'f Config,
    /// The layer's numbers.
    pub layer: &'f LayerConfig,
    index: usize,
    biases_required: bool,
    /// What follows `ffn_gate`, `ffn_up` and `ffn_down` of the shared expert.
    shared_suffix: &'static str,
}

impl LayerTensors<'_, '_> {
    fn name(&self, name: &str) -> String {
        format!("blk.{}.{name}", self.index)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.finder.has(&self.name(name))
    }

    /// From here on a linear map without a bias is refused, but for Q, K and V, which no architecture demands one of.
    pub(super) fn require_biases(&mut self) {
        self.biases_required = true;
    }

    /// The shared expert has the names of a dense feed-forward part.
    pub(super) fn name_shared_expert_as_dense(&mut self) {
        self.shared_suffix = "";
    }

    fn checked(&self, stem: &str, linear: Linear) -> Result<Linear, ModelError> {
        match linear.bias {
            None if self.biases_required => Err(ModelError::missing_tensor(&self.name(&format!("{stem}.bias")))),
            _ => Ok(linear),
        }
    }

    /// Leaves out what begins with `prefix`.
    pub(super) fn skip(&mut self, prefix: &str) {
        self.finder.skip(&self.name(prefix));
    }

    /// A norm of the residual stream.
    pub(super) fn norm(&mut self, name: &str) -> Result<Option<Norm>, ModelError> {
        self.norm_of(name, self.config.n_embd).map(Some)
    }

    /// The same where the file has it.
    pub(super) fn norm_if_there(&mut self, name: &str) -> Result<Option<Norm>, ModelError> {
        if self.has(&format!("{name}.weight")) { self.norm(name) } else { Ok(None) }
    }

    /// A norm without weights.
    pub(super) fn plain_norm(&self) -> Norm {
        self.config.plain_norm(self.config.n_embd)
    }

    /// A norm whose tensor is called `name` alone.
    pub(super) fn norm_called(&mut self, name: &str) -> Result<Option<Norm>, ModelError> {
        let weight = Some(self.finder.vector(&self.name(name), self.config.n_embd)?);
        Ok(Some(Norm { weight, ..self.plain_norm() }))
    }

    /// A norm of rows of `len` values.
    pub(super) fn norm_of(&mut self, name: &str, len: usize) -> Result<Norm, ModelError> {
        self.finder.norm(self.config, &self.name(name), len)
    }

    /// A vector, `name.weight`.
    pub(super) fn vector(&mut self, name: &str, len: usize) -> Result<Weight, ModelError> {
        self.finder.vector(&self.name(&format!("{name}.weight")), len)
    }

    /// A linear map.
    pub(super) fn linear(&mut self, stem: &str, rows: usize, cols: usize) -> Result<Linear, ModelError> {
        let linear = self.finder.linear(&self.name(stem), rows, cols)?;
        self.checked(stem, linear)
    }

    fn expert_linear(&mut self, stem: &str, experts: &Experts, rows: usize, cols: usize) -> Result<Linear, ModelError> {
        let [linear] = self.finder.expert_parts(&self.name(stem), experts, [rows], cols)?;
        self.checked(stem, linear)
    }

    /// A layer whose mixer and feed-forward part each have a norm before them; without norms of queries and keys.
    pub(super) fn pre_norm_layer(&mut self) -> Result<Layer, ModelError> {
        self.pre_norm_layer_with(QkNorms::None, "ffn_norm")
    }

    /// The same with norms of queries and keys, the second norm called `ffn_norm`.
    pub(super) fn pre_norm_layer_with(&mut self, qk_norms: QkNorms, ffn_norm: &str) -> Result<Layer, ModelError> {
        Ok(Layer {
            attn_norm: self.norm("attn_norm")?,
            mixer: self.attention(qk_norms)?,
            ffn_norm: self.norm(ffn_norm)?,
            ffn: self.feed_forward()?,
            ..Layer::default()
        })
    }

    /// Attention: `attn_q`, `attn_k`, `attn_v`, or all in `attn_qkv`, and `attn_output`.
    pub(super) fn attention(&mut self, qk_norms: QkNorms) -> Result<Mixer, ModelError> {
        Ok(Mixer::Attention(Box::new(self.attention_weights(qk_norms)?)))
    }

    fn attention_weights(&mut self, qk_norms: QkNorms) -> Result<AttentionWeights, ModelError> {
        let Some(&attention) = self.layer.attention() else {
            unreachable!("an architecture asks for the attention of layers that have it");
        };
        let (e, rows) = (self.config.n_embd, [attention.q_width(), attention.k_width(), attention.v_width()]);
        let [q, k, v] = match self.has("attn_qkv.weight") {
            true => self.fused_qkv(rows, e)?,
            false => {
                let mut part = |name: &str, rows| self.finder.linear(&format!("blk.{}.{name}", self.index), rows, e);
                [part("attn_q", rows[0])?, part("attn_k", rows[1])?, part("attn_v", rows[2])?]
            }
        };
        Ok(AttentionWeights {
            q,
            k: Some(k),
            v: Some(v),
            qk_norms: self.qk_norms(&attention, qk_norms)?,
            qk_norms_are_whole: qk_norms == QkNorms::Whole,
            v_norm: None,
            sinks: None,
            gate: attention.gate.map(|_| self.output_gate(&attention)).transpose()?,
            output: self.linear("attn_output", e, attention.output_width())?,
        })
    }

    /// Multi-head latent attention: the maps from latents to keys and values are `attn_k_b`, transposed, and `attn_v_b`, or
    /// together `attn_kv_b`.
    pub(super) fn latent_attention(&mut self) -> Result<Mixer, ModelError> {
        let MixerConfig::Latent(latent) = self.layer.mixer else {
            unreachable!("an architecture asks for the latent attention of layers that have it");
        };
        let LatentConfig { n_heads, q_rank, kv_rank, plain_dim, value_dim, .. } = latent;
        let e = self.config.n_embd;
        let (q_a, q) = match q_rank {
            0 => (None, self.linear("attn_q", latent.q_width(), e)?),
            rank => {
                let q_a = (self.linear("attn_q_a", rank, e)?, self.norm_of("attn_q_a_norm", rank)?);
                (Some(q_a), self.linear("attn_q_b", latent.q_width(), rank)?)
            }
        };
        let kv_a = self.linear("attn_kv_a_mqa", latent.row_dim(), e)?;
        let kv_norm = self.norm_of("attn_kv_a_norm", kv_rank)?;
        let (keys, values) = match self.has("attn_kv_b.weight") {
            true => {
                let (name, block) = (self.name("attn_kv_b.weight"), (n_heads, plain_dim + value_dim));
                let mut part = |form, rows| self.finder.head_matrices(&name, form, block, rows, kv_rank);
                let keys = part(Form::Vector, 0..plain_dim)?;
                (LatentKeys::Rows(keys), Linear { weight: part(Form::Panels, plain_dim..block.1)?, bias: None })
            }
            false => {
                let heads = Matrices { count: n_heads, used: n_heads };
                let mut part = |name: &str, rows, cols| {
                    let stem = format!("blk.{}.{name}", self.index);
                    let [weight] = self.finder.weight_parts(&stem, heads, [rows], cols)?;
                    Ok::<_, ModelError>(Linear { weight, bias: None })
                };
                let keys = LatentKeys::Absorbed(part("attn_k_b", kv_rank, plain_dim)?);
                (keys, part("attn_v_b", value_dim, kv_rank)?)
            }
        };
        let output = self.linear("attn_output", e, latent.output_width())?;
        Ok(Mixer::Latent(Box::new(LatentWeights { q_a, q, kv_a, kv_norm, keys, values, output })))
    }

    /// One tensor of Q, K and V; a file may have three biases beside it.
    fn fused_qkv(&mut self, rows: [usize; 3], e: usize) -> Result<[Linear; 3], ModelError> {
        let mut parts = self.finder.linear_parts(&self.name("attn_qkv"), rows, e)?;
        for ((part, name), rows) in parts.iter_mut().zip(["attn_q", "attn_k", "attn_v"]).zip(rows) {
            if part.bias.is_none() {
                part.bias = self.finder.optional_vector(&self.name(&format!("{name}.bias")), rows)?;
            }
        }
        Ok(parts)
    }

    fn qk_norms(&mut self, attention: &AttentionConfig, norms: QkNorms) -> Result<[Option<Norm>; 2], ModelError> {
        let [q_len, k_len] = match norms {
            QkNorms::None => return Ok([None; 2]),
            QkNorms::EachHeadIfThere if !self.has("attn_q_norm.weight") => return Ok([None; 2]),
            QkNorms::EachHeadIfThere => {
                let mut norm = |name: &str, n_heads| {
                    let name = format!("blk.{}.{name}.weight", self.index);
                    let weight = Some(self.finder.take(&name, Form::Vector, n_heads, attention.key_dim)?);
                    Ok::<_, ModelError>(Norm { weight, ..self.config.plain_norm(attention.key_dim) })
                };
                return Ok([
                    Some(norm("attn_q_norm", attention.n_heads)?),
                    Some(norm("attn_k_norm", attention.n_kv_heads)?),
                ]);
            }
            QkNorms::PerHeadIfThere if !self.has("attn_q_norm.weight") => return Ok([None; 2]),
            QkNorms::PerHead | QkNorms::PerHeadIfThere => [attention.key_dim; 2],
            QkNorms::Whole => [attention.q_width(), attention.k_width()],
        };
        Ok([Some(self.norm_of("attn_q_norm", q_len)?), Some(self.norm_of("attn_k_norm", k_len)?)])
    }

    /// Attention whose heads are normed, those of values without weights; values may be what keys are before that, and keys and values
    /// those of another layer: what the file has of such a layer's own is left there.
    pub(super) fn attention_that_may_share(&mut self) -> Result<Mixer, ModelError> {
        let MixerConfig::Attention(attention) = self.layer.mixer else {
            unreachable!("an architecture asks for the attention of layers that have it");
        };
        let (e, dim, index) = (self.config.n_embd, attention.key_dim, self.index);
        let is_own = attention.kv_of.is_none();
        if !is_own {
            ["attn_k", "attn_v"].into_iter().for_each(|part| self.finder.skip(&format!("blk.{index}.{part}")));
        }
        let has_values = is_own && self.has("attn_v.weight");
        let mut part = |name: &str, rows| self.linear(name, rows, e);
        let q = part("attn_q", attention.q_width())?;
        let k = if is_own { Some(part("attn_k", attention.k_width())?) } else { None };
        let v = if has_values { Some(part("attn_v", attention.v_width())?) } else { None };
        let q_norm = Some(self.norm_of("attn_q_norm", dim)?);
        let k_norm = if is_own { Some(self.norm_of("attn_k_norm", dim)?) } else { None };
        Ok(Mixer::Attention(Box::new(AttentionWeights {
            q,
            k,
            v,
            qk_norms: [q_norm, k_norm],
            qk_norms_are_whole: false,
            v_norm: Some(self.config.plain_norm(attention.value_dim)),
            sinks: None,
            gate: None,
            output: self.linear("attn_output", e, attention.output_width())?,
        })))
    }

    /// What a layer makes of its own embedding of tokens.
    pub(super) fn per_layer_maps(&mut self) -> Result<Option<PerLayerMaps>, ModelError> {
        let (e, width) = (self.config.n_embd, self.config.n_embd_per_layer);
        if width == 0 {
            return Ok(None);
        }
        let (gate, proj) = (self.linear("inp_gate", width, e)?, self.linear("proj", e, width)?);
        Ok(Some(PerLayerMaps { gate, proj, norm: self.norm("post_norm")? }))
    }

    /// Divisors of the rotary frequencies must be there.
    pub(super) fn require_rope_factors(&self) -> Result<(), ModelError> {
        match self.finder.has("rope_freqs.weight") {
            true => Ok(()),
            false => Err(ModelError::missing_tensor("rope_freqs.weight")),
        }
    }

    /// A factor of the stream, if the layer has one.
    pub(super) fn output_scale(&mut self) -> Result<Option<Weight>, ModelError> {
        self.finder.optional_vector(&self.name("layer_output_scale.weight"), 1)
    }

    /// `attn_gate`, a map to one value for each head, or one for each value of all heads.
    fn output_gate(&mut self, attention: &AttentionConfig) -> Result<Linear, ModelError> {
        let rows = match self.finder.index(&self.name("attn_gate.weight")).map(|i| self.finder.tensors[i].dims[1]) {
            Some(rows) if rows == attention.n_heads as u64 => attention.n_heads,
            _ => attention.output_width(),
        };
        self.linear("attn_gate", rows, self.config.n_embd)
    }

    /// Attention whose queries and gates are one tensor, `attn_q`: of every head the query, then the gate.
    pub(super) fn gated_attention(&mut self, qk_norms: QkNorms) -> Result<Mixer, ModelError> {
        let MixerConfig::Attention(attention) = self.layer.mixer else {
            unreachable!("an architecture asks for the attention of layers that have it");
        };
        let (e, dim) = (self.config.n_embd, attention.key_dim);
        let factors = self.finder.factors(&self.name("attn_q"), 1)?;
        let mut of_heads = |rows: Range<usize>| {
            let blocks = (attention.n_heads, 2 * dim);
            let name = format!("blk.{}.attn_q.weight", self.index);
            let weight = self.finder.weight_of_blocks(&name, blocks, &[rows], e, factors)?;
            Ok::<_, ModelError>(Linear { weight, bias: None })
        };
        let (q, gate) = (of_heads(0..dim)?, of_heads(dim..2 * dim)?);
        Ok(Mixer::Attention(Box::new(AttentionWeights {
            q,
            k: Some(self.linear("attn_k", attention.k_width(), e)?),
            v: Some(self.linear("attn_v", attention.v_width(), e)?),
            qk_norms: self.qk_norms(&attention, qk_norms)?,
            qk_norms_are_whole: qk_norms == QkNorms::Whole,
            v_norm: None,
            sinks: None,
            gate: Some(gate),
            output: self.linear("attn_output", e, attention.output_width())?,
        })))
    }

    /// The delta rule: `attn_qkv` and `attn_gate`, or both in `ssm_in`; `ssm_beta` and `ssm_alpha`, or both in `ssm_ba`;
    /// `ssm_conv1d`, `ssm_dt`, `ssm_a`, `ssm_norm`, `ssm_out`.
    pub(super) fn delta_net(&mut self, delta: &DeltaNetConfig) -> Result<Mixer, ModelError> {
        let (e, n_value_heads) = (self.config.n_embd, delta.n_value_heads);
        let [qkv, z] = match self.has("ssm_in.weight") {
            true => self.delta_inputs_by_head(delta)?,
            false => {
                [self.linear("attn_qkv", delta.conv_width(), e)?, self.linear("attn_gate", delta.value_width(), e)?]
            }
        };
        let rates = match self.has("ssm_ba.weight") {
            true => DeltaRates::Together(self.linear("ssm_ba", 2 * n_value_heads, e)?),
            false => DeltaRates::Apart {
                strength: self.linear("ssm_beta", n_value_heads, e)?,
                decay: self.linear("ssm_alpha", n_value_heads, e)?,
            },
        };
        let conv = self.name("ssm_conv1d.weight");
        Ok(Mixer::DeltaNet(Box::new(DeltaNetWeights {
            qkv,
            z,
            rates,
            conv: self.finder.take(&conv, Form::Vector, delta.conv_width(), delta.taps)?,
            decay_bias: self.finder.vector(&self.name("ssm_dt.bias"), n_value_heads)?,
            decay_factor: self.finder.vector(&self.name("ssm_a"), n_value_heads)?,
            norm: self.vector("ssm_norm", delta.head_dim)?,
            output: self.linear("ssm_out", e, delta.value_width())?,
        })))
    }

    /// `ssm_in`: of every key head its query, its key, the values of its value heads, and what those are gated by.
    fn delta_inputs_by_head(&mut self, delta: &DeltaNetConfig) -> Result<[Linear; 2], ModelError> {
        let (name, e, dim) = (self.name("ssm_in.weight"), self.config.n_embd, delta.head_dim);
        let values = delta.group() * dim;
        let blocks = (delta.n_key_heads, 2 * dim + 2 * values);
        let (v, z) = (2 * dim..2 * dim + values, 2 * dim + values..blocks.1);
        let factors = self.finder.factors(&self.name("ssm_in"), 1)?;
        let qkv = self.finder.weight_of_blocks(&name, blocks, &[0..dim, dim..2 * dim, v], e, factors)?;
        let z = self.finder.weight_of_blocks(&name, blocks, &[z], e, factors)?;
        Ok([qkv, z].map(|weight| Linear { weight, bias: None }))
    }

    /// The state space: `ssm_in`, of gates, what is convolved, and steps; `ssm_conv1d`, `ssm_dt`, `ssm_a`, `ssm_d`,
    /// `ssm_norm`, `ssm_out`.
    fn mamba2(&mut self, mamba: &Mamba2Config) -> Result<Mamba2Weights, ModelError> {
        let (e, inner, width) = (self.config.n_embd, mamba.inner(), mamba.conv_width());
        let (groups, heads) = (mamba.n_groups, mamba.n_heads);
        let [z, conv_inputs, dt] = self.finder.linear_parts(&self.name("ssm_in"), [inner, width, heads], e)?;
        let conv = self.name("ssm_conv1d.weight");
        let norm = self.name("ssm_norm.weight");
        let mut of_heads = |name: &str| self.finder.take(&self.name(name), Form::Vector, heads, 1);
        let (a, d) = (of_heads("ssm_a")?, of_heads("ssm_d")?);
        Ok(Mamba2Weights {
            z,
            conv_inputs,
            dt,
            conv: self.finder.take(&conv, Form::Vector, width, mamba.taps)?,
            conv_bias: self.finder.optional_vector(&self.name("ssm_conv1d.bias"), width)?,
            dt_bias: self.finder.vector(&self.name("ssm_dt.bias"), heads)?,
            a,
            d,
            norm: match self.finder.has(&norm) {
                true => {
                    let len = inner / groups;
                    let weight = Some(self.finder.take(&norm, Form::Vector, groups, len)?);
                    Some(Norm { weight, ..self.config.plain_norm(len) })
                }
                false => None,
            },
            output: self.linear("ssm_out", e, inner)?,
        })
    }

    /// The state space of the first kind: `ssm_in`, of channels and gates; `ssm_conv1d`, `ssm_x`, `ssm_dt`, `ssm_a`, `ssm_d`,
    /// `ssm_out`; norms where the file has them.
    fn mamba(&mut self, mamba: &MambaConfig) -> Result<MambaWeights, ModelError> {
        let (e, inner, state_dim) = (self.config.n_embd, mamba.inner, mamba.state_dim);
        let [conv_inputs, z] = self.finder.linear_parts(&self.name("ssm_in"), [inner; 2], e)?;
        let conv = self.name("ssm_conv1d.weight");
        let norms = match self.has("ssm_dt_norm.weight") {
            true => Some([
                self.norm_of("ssm_dt_norm", mamba.dt_rank)?,
                self.norm_of("ssm_b_norm", state_dim)?,
                self.norm_of("ssm_c_norm", state_dim)?,
            ]),
            false => None,
        };
        let plain = || [mamba.dt_rank, state_dim, state_dim].map(|len| self.config.plain_norm(len));
        Ok(MambaWeights {
            conv_inputs,
            z,
            norms: norms.or_else(|| mamba.normed.then(plain)),
            conv: self.finder.take(&conv, Form::Vector, inner, mamba.taps)?,
            conv_bias: self.finder.optional_vector(&self.name("ssm_conv1d.bias"), inner)?,
            selection: self.linear("ssm_x", mamba.selection_width(), inner)?,
            dt: self.linear("ssm_dt", inner, mamba.dt_rank)?,
            a: self.finder.take(&self.name("ssm_a"), Form::Vector, inner, state_dim)?,
            d: self.finder.vector(&self.name("ssm_d"), inner)?,
            output: self.linear("ssm_out", e, inner)?,
        })
    }

    /// Attention, a state space, both or neither, as the layer's numbers tell.
    pub(super) fn attention_or_mamba(&mut self, qk_norms: QkNorms) -> Result<Mixer, ModelError> {
        match self.layer.mixer {
            MixerConfig::Attention(_) => self.attention(qk_norms),
            MixerConfig::Mamba(mamba) => Ok(Mixer::Mamba(Box::new(self.mamba(&mamba)?))),
            MixerConfig::Mamba2(mamba) => Ok(Mixer::Mamba2(Box::new(self.mamba2(&mamba)?))),
            MixerConfig::AttentionAndMamba2(_, mamba) => {
                let both = (self.attention_weights(qk_norms)?, self.mamba2(&mamba)?);
                Ok(Mixer::AttentionAndMamba2(Box::new(both)))
            }
            _ => Ok(Mixer::None),
        }
    }

    /// The convolution: `shortconv.in_proj`, `.conv`, `.out_proj`.
    pub(super) fn short_conv(&mut self, taps: usize) -> Result<Mixer, ModelError> {
        let e = self.config.n_embd;
        Ok(Mixer::ShortConv(Box::new(ShortConvWeights {
            in_proj: self.linear("shortconv.in_proj", 3 * e, e)?,
            conv: self.finder.take(&self.name("shortconv.conv.weight"), Form::Vector, e, taps)?,
            out_proj: self.linear("shortconv.out_proj", e, e)?,
        })))
    }

    /// The feed-forward part that the layer's numbers tell of.
    pub(super) fn feed_forward(&mut self) -> Result<FeedForward, ModelError> {
        match self.layer.ffn {
            FfnConfig::None => Ok(FeedForward::None),
            FfnConfig::Dense { n_ff } => Ok(FeedForward::Dense(Box::new(self.dense("", n_ff)?))),
            FfnConfig::ExpertsIfRouted(experts) if !self.has("ffn_gate_inp.weight") => {
                Ok(FeedForward::Dense(Box::new(self.dense("", experts.n_ff)?)))
            }
            FfnConfig::Experts(experts) | FfnConfig::ExpertsIfRouted(experts) => {
                Ok(FeedForward::Experts(Box::new(self.experts(&experts)?)))
            }
        }
    }

    /// A dense layer whose gate and up maps are one tensor, `ffn_up`, the gate first.
    pub(super) fn feed_forward_with_gate_in_up(&mut self) -> Result<FeedForward, ModelError> {
        let FfnConfig::Dense { n_ff } = self.layer.ffn else { return self.feed_forward() };
        Ok(FeedForward::Dense(Box::new(self.dense_with_gate_in_up("", n_ff)?)))
    }

    fn dense_with_gate_in_up(&mut self, suffix: &str, n_ff: usize) -> Result<DenseFfn, ModelError> {
        let e = self.config.n_embd;
        let [gate, up] = self.finder.linear_parts(&self.name(&format!("ffn_up{suffix}")), [n_ff; 2], e)?;
        Ok(DenseFfn { gate: Some(gate), up, down: self.linear(&format!("ffn_down{suffix}"), e, n_ff)? })
    }

    fn dense(&mut self, suffix: &str, n_ff: usize) -> Result<DenseFfn, ModelError> {
        let e = self.config.n_embd;
        Ok(DenseFfn {
            gate: match self.config.gated_ffn {
                true => Some(self.linear(&format!("ffn_gate{suffix}"), n_ff, e)?),
                false => None,
            },
            up: self.linear(&format!("ffn_up{suffix}"), n_ff, e)?,
            down: self.linear(&format!("ffn_down{suffix}"), e, n_ff)?,
        })
    }

    fn experts(&mut self, experts: &Experts) -> Result<MoeFfn, ModelError> {
        let (stream, f) = (self.config.n_embd, experts.n_ff);
        let apart = match experts.apart {
            true => Some(self.apart_norms()?),
            false => None,
        };
        // Beside its norm a router has no factor.
        let router = match apart {
            Some(_) => Linear { weight: self.router(experts.count)?, bias: None },
            None => self.linear("ffn_gate_inp", experts.count, stream)?,
        };
        let e = experts.width(stream);
        let latent = match experts.latent {
            Some(e) => Some([self.linear("ffn_latent_down", e, stream)?, self.linear("ffn_latent_up", stream, e)?]),
            None => None,
        };
        let (gate, up) = match self.config.gated_ffn {
            true if self.has("ffn_gate_up_exps.weight") => {
                let [gate, up] = self.finder.expert_parts(&self.name("ffn_gate_up_exps"), experts, [f; 2], e)?;
                (Some(gate), up)
            }
            true => {
                let gate = self.expert_linear("ffn_gate_exps", experts, f, e)?;
                (Some(gate), self.expert_linear("ffn_up_exps", experts, f, e)?)
            }
            false => (None, self.expert_linear("ffn_up_exps", experts, f, e)?),
        };
        let down = self.expert_linear("ffn_down_exps", experts, e, f)?;
        let bias = if self.has("exp_probs_b") { "exp_probs_b" } else { "exp_probs_b.bias" };
        let selection_bias = self.finder.optional_vector(&self.name(bias), experts.count)?;
        // Apart from the chosen ones, the expert of every token has the names of a dense layer.
        let suffix = if experts.apart { "" } else { self.shared_suffix };
        let shared = match experts.n_ff_shared {
            0 => None,
            width => Some(SharedExpert {
                norm: None,
                ffn: match self.has(&format!("ffn_gate{suffix}.weight")) || !self.config.gated_ffn {
                    true => self.dense(suffix, width)?,
                    false => self.dense_with_gate_in_up(suffix, width)?,
                },
                gate: self.finder.optional_vector(&self.name("ffn_gate_inp_shexp.weight"), stream)?,
            }),
        };
        Ok(MoeFfn { experts: *experts, router, selection_bias, gate, up, down, latent, shared, apart })
    }

    fn router(&mut self, n_experts: usize) -> Result<Weight, ModelError> {
        let name = self.name("ffn_gate_inp.weight");
        self.finder.take(&name, Form::Panels, n_experts, self.config.n_embd)
    }

    fn apart_norms(&mut self) -> Result<ApartNorms, ModelError> {
        let scale = self.name("ffn_gate_inp.scale");
        let router_scale = self.finder.vector(&scale, self.config.n_embd)?;
        Ok(ApartNorms {
            router: Norm { weight: Some(router_scale), ..self.plain_norm() },
            experts: self.norm("pre_ffw_norm_2")?,
            experts_post: self.norm_of("post_ffw_norm_2", self.config.n_embd)?,
            dense_post: self.norm_of("post_ffw_norm_1", self.config.n_embd)?,
        })
    }

    /// `attn_sinks`, a score for each head.
    pub(super) fn sinks(&mut self, layer: &mut Layer) -> Result<(), ModelError> {
        if let (Mixer::Attention(attn), Some(config)) = (&mut layer.mixer, self.layer.attention()) {
            attn.sinks = Some(self.vector("attn_sinks", config.n_heads)?);
        }
        Ok(())
    }

    /// The shared expert of every token and its gate must be there.
    pub(super) fn require_gated_shared_expert(&self, ffn: &FeedForward) -> Result<(), ModelError> {
        match ffn {
            FeedForward::Experts(moe) if moe.shared.is_none_or(|shared| shared.gate.is_none()) => {
                Err(ModelError::missing_tensor(&self.name("ffn_gate_inp_shexp.weight")))
            }
            _ => Ok(()),
        }
    }

    /// The bias that experts are chosen by must be there.
    pub(super) fn require_selection_bias(&self, ffn: &FeedForward) -> Result<(), ModelError> {
        match ffn {
            FeedForward::Experts(moe) if moe.selection_bias.is_none() => {
                Err(ModelError::missing_tensor(&self.name("exp_probs_b.bias")))
            }
            _ => Ok(()),
        }
    }
}
