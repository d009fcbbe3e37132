//! Where every weight lies: the tensors an architecture needs, found in the file, checked, and given a place in the
//! weights region.

use std::ops::Range;

use sha2::{Digest, Sha256};

use super::config::{Config, Experts};
use super::error::ModelError;
use crate::bytes;
use crate::gguf::TensorInfo;
use crate::quant::{PANEL_ROWS, WeightType};

/// Every weight starts on a cache line.
const ALIGN: usize = 64;

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
    /// The tensor's first row that belongs to it: others have the rest where several matrices share a tensor.
    pub first_row: usize,
}

impl Placement {
    /// Bytes of the file that it is made of.
    pub fn file_bytes(&self) -> u64 {
        (self.weight.n_matrices * self.weight.rows * self.weight.ty.row_bytes(self.weight.cols)) as u64
    }
}

/// Whether a layer has a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    Never,
    Perhaps,
    Always,
}

/// Norms of Q and K.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QkNorms {
    None,
    /// The same weights for every head.
    PerHead(Presence),
    /// Over all heads together.
    Whole,
}

/// Which tensors the layers of an architecture have besides those that all have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tensors {
    /// Gate and up of dense layers in one tensor that is called up.
    pub gate_in_up: bool,
    pub qkv_biases: Presence,
    pub qk_norms: QkNorms,
    pub sinks: bool,
    pub attn_output_bias: Presence,
    /// Biases of dense feed-forward layers.
    pub ffn_biases: Presence,
    /// The name of the norm before the feed-forward layer.
    pub ffn_norm: &'static str,
    /// Norms of what attention and feed-forward layer add to the stream.
    pub post_norms: bool,
    /// Biases of router and experts.
    pub expert_biases: bool,
    /// A bias of the experts' chances of being chosen.
    pub selection_bias: bool,
    /// Divisors of the rotary frequencies, for one context length or two.
    pub rope_factors: bool,
}

impl Tensors {
    /// None of them.
    pub(super) const PLAIN: Tensors = Tensors {
        gate_in_up: false,
        qkv_biases: Presence::Never,
        qk_norms: QkNorms::None,
        sinks: false,
        attn_output_bias: Presence::Never,
        ffn_biases: Presence::Never,
        ffn_norm: "ffn_norm",
        post_norms: false,
        expert_biases: false,
        selection_bias: false,
        rope_factors: true,
    };
}

/// A dense feed-forward layer.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the names of the tensors")]
pub struct Gated {
    pub gate: Weight,
    pub up: Weight,
    pub down: Weight,
    /// Biases of gate, up and down.
    pub biases: Option<[Weight; 3]>,
}

/// A feed-forward layer made of experts: `gate`, `up` and `down` hold a matrix for each.
#[derive(Clone, Copy, Debug)]
pub struct Mixture {
    /// Scores the experts.
    pub router: Weight,
    /// Added to the scores.
    pub router_bias: Option<Weight>,
    /// Added to what scores have become, to choose by.
    pub selection_bias: Option<Weight>,
    /// All gate matrices.
    pub gate: Weight,
    /// All up matrices.
    pub up: Weight,
    /// All down matrices.
    pub down: Weight,
    /// Biases of gate, up and down, a vector for each expert.
    pub biases: Option<[Weight; 3]>,
    /// The expert that every token meets.
    pub shared: Option<Gated>,
}

/// A feed-forward layer.
#[derive(Clone, Debug)]
pub enum FeedForward {
    /// One for all tokens.
    Dense(Box<Gated>),
    /// A few of many for each token.
    Experts(Box<Mixture>),
}

impl FeedForward {
    /// The matrix that the stream meets first.
    pub(super) fn first(&self) -> &Weight {
        match self {
            FeedForward::Dense(ffn) => &ffn.gate,
            FeedForward::Experts(moe) => &moe.router,
        }
    }
}

/// The weights of a layer.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the names of the tensors")]
pub struct Layer {
    pub attn_norm: Weight,
    pub q: Weight,
    pub k: Weight,
    pub v: Weight,
    pub biases: Option<[Weight; 3]>,
    /// For every head, or over the whole width of Q and K.
    pub qk_norms: Option<[Weight; 2]>,
    pub sinks: Option<Weight>,
    pub attn_output: Weight,
    pub attn_output_bias: Option<Weight>,
    /// Norms of what attention and the feed-forward layer add to the stream.
    pub post_norms: Option<[Weight; 2]>,
    pub ffn_norm: Weight,
    pub ffn: FeedForward,
}

impl Layer {
    /// The feed-forward layer of an architecture without experts.
    pub(super) fn dense(&self) -> &Gated {
        match &self.ffn {
            FeedForward::Dense(ffn) => ffn,
            FeedForward::Experts(_) => unreachable!("Config::from_metadata gives this architecture no experts"),
        }
    }

    /// The experts of an architecture that has them in every layer.
    pub(super) fn experts(&self) -> &Mixture {
        match &self.ffn {
            FeedForward::Experts(moe) => moe,
            FeedForward::Dense(_) => unreachable!("Config::from_metadata demands experts of this architecture"),
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

/// All weights of a model.
#[derive(Clone, Debug)]
pub struct Weights {
    /// The embedding table; in panels where it is the output matrix as well.
    pub embedding: Weight,
    /// The last norm.
    pub output_norm: Weight,
    /// The output matrix: the embedding itself where the file has no other.
    pub output: Weight,
    /// Divisors of the rotary frequencies.
    pub rope_factors: Option<RopeFactors>,
    /// The layers.
    pub layers: Vec<Layer>,
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
    /// Finds the weights of `config` among `tensors`.
    ///
    /// # Errors
    /// A tensor that is missing, of a wrong shape, of a type without kernels, or unknown to the architecture.
    pub fn place(config: &Config, tensors: &[TensorInfo], embedding: Embedding) -> Result<Weights, ModelError> {
        let has = config.arch.tensors();
        let mut finder = Finder::new(tensors);
        let e = config.n_embd;
        let n_vocab = finder.rows("token_embd.weight")?;
        let tied = !finder.has("output.weight");
        let form = match embedding {
            _ if tied => Form::Panels,
            Embedding::InMemory => Form::Rows,
            Embedding::InFile => Form::File,
        };
        let embedding = finder.take("token_embd.weight", form, n_vocab, e)?;
        let layers = (0..config.n_layers).map(|i| finder.layer(config, has, i)).collect::<Result<_, _>>()?;
        let output_norm = finder.vector("output_norm.weight", e)?;
        let output = if tied { embedding } else { finder.take("output.weight", Form::Panels, n_vocab, e)? };
        let rope_factors = if has.rope_factors { finder.rope_factors(config.rope.dim / 2)? } else { None };
        for i in config.n_layers..config.n_layers + config.n_layers_skipped {
            finder.skip(&format!("blk.{i}."));
        }
        if let Some(unused) = finder.used.iter().position(|used| !used) {
            return Err(ModelError::UnknownTensor(tensors[unused].name().to_owned()));
        }
        let matrices = finder.placements.iter().map(|p| p.weight).filter(|w| w.form == Form::Panels);
        let layer_macs: u64 = matrices.clone().map(|w| w.macs_per_token()).sum();
        let output_macs = output.macs_per_token();
        Ok(Weights {
            bytes_per_token: matrices.map(|w| w.bytes_per_token()).sum::<usize>() + embedding.ty.row_bytes(e),
            macs_per_token: layer_macs - output_macs,
            embedding,
            output_norm,
            output,
            rope_factors,
            layers,
            bytes: finder.bytes,
            placements: finder.placements,
        })
    }

    /// Tokens of the vocabulary.
    pub fn n_vocab(&self) -> usize {
        self.embedding.rows
    }

    /// SHA-256, in hexadecimal, of the way weights lie in their region: the place and form of every tensor, and for each type
    /// of panels what certain bytes become in one. Whoever has the same reads the same weights.
    pub fn layout_sha256(&self) -> String {
        let mut hash = Sha256::new();
        let mut types = Vec::new();
        for Placement { weight, tensor, first_row } in &self.placements {
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

struct Finder<'t> {
    tensors: &'t [TensorInfo],
    by_name: Vec<usize>,
    used: Vec<bool>,
    placements: Vec<Placement>,
    bytes: usize,
}

impl<'t> Finder<'t> {
    fn new(tensors: &'t [TensorInfo]) -> Finder<'t> {
        let mut by_name: Vec<usize> = (0..tensors.len()).collect();
        by_name.sort_unstable_by(|&a, &b| tensors[a].name().cmp(tensors[b].name()));
        Finder { tensors, by_name, used: vec![false; tensors.len()], placements: Vec::new(), bytes: 0 }
    }

    /// Everything of layer `i`; what `place` calls a layer starts with `attn_norm`.
    fn layer(&mut self, config: &Config, has: &Tensors, i: usize) -> Result<Layer, ModelError> {
        let (e, head) = (config.n_embd, config.head_dim);
        let (q_rows, kv_rows) = (config.n_heads * head, config.n_kv_heads * head);
        let name = |name: &str| format!("blk.{i}.{name}");
        let attn_norm = self.vector(&name("attn_norm.weight"), e)?;
        let ffn_norm = self.vector(&name(&format!("{}.weight", has.ffn_norm)), e)?;
        let post_norms = match has.post_norms {
            true => Some([
                self.vector(&name("post_attention_norm.weight"), e)?,
                self.vector(&name("post_ffw_norm.weight"), e)?,
            ]),
            false => None,
        };
        let biases = if has.qkv_biases != Presence::Never && self.has(&name("attn_qkv.bias")) {
            Some(self.vector_parts(&name("attn_qkv.bias"), [q_rows, kv_rows, kv_rows])?)
        } else if self.wanted(has.qkv_biases, &name("attn_q.bias")) {
            Some([
                self.vector(&name("attn_q.bias"), q_rows)?,
                self.vector(&name("attn_k.bias"), kv_rows)?,
                self.vector(&name("attn_v.bias"), kv_rows)?,
            ])
        } else {
            None
        };
        let (norms, q_len, k_len) = match has.qk_norms {
            QkNorms::None => (Presence::Never, 0, 0),
            QkNorms::PerHead(presence) => (presence, head, head),
            QkNorms::Whole => (Presence::Always, q_rows, kv_rows),
        };
        let qk_norms = match self.wanted(norms, &name("attn_q_norm.weight")) {
            true => Some([
                self.vector(&name("attn_q_norm.weight"), q_len)?,
                self.vector(&name("attn_k_norm.weight"), k_len)?,
            ]),
            false => None,
        };
        let sinks = match has.sinks {
            true => Some(self.vector(&name("attn_sinks.weight"), config.n_heads)?),
            false => None,
        };
        let [q, k, v] = match self.has(&name("attn_qkv.weight")) {
            true => self.take_parts(&name("attn_qkv.weight"), [q_rows, kv_rows, kv_rows], e)?,
            false => [
                self.take(&name("attn_q.weight"), Form::Panels, q_rows, e)?,
                self.take(&name("attn_k.weight"), Form::Panels, kv_rows, e)?,
                self.take(&name("attn_v.weight"), Form::Panels, kv_rows, e)?,
            ],
        };
        let attn_output = self.take(&name("attn_output.weight"), Form::Panels, e, q_rows)?;
        let attn_output_bias = match self.wanted(has.attn_output_bias, &name("attn_output.bias")) {
            true => Some(self.vector(&name("attn_output.bias"), e)?),
            false => None,
        };
        let ffn = match config.experts.filter(|_| config.has_experts(i)) {
            Some(experts) => FeedForward::Experts(Box::new(self.mixture(config, experts, has, i)?)),
            None if has.gate_in_up => {
                let [gate, up] = self.take_parts(&name("ffn_up.weight"), [config.n_ff; 2], e)?;
                let down = self.take(&name("ffn_down.weight"), Form::Panels, e, config.n_ff)?;
                FeedForward::Dense(Box::new(Gated { gate, up, down, biases: None }))
            }
            None => {
                let mut ffn = self.gated(&name("ffn"), "", config.n_ff, e)?;
                if self.wanted(has.ffn_biases, &name("ffn_gate.bias")) {
                    ffn.biases = Some([
                        self.vector(&name("ffn_gate.bias"), config.n_ff)?,
                        self.vector(&name("ffn_up.bias"), config.n_ff)?,
                        self.vector(&name("ffn_down.bias"), e)?,
                    ]);
                }
                FeedForward::Dense(Box::new(ffn))
            }
        };
        Ok(Layer {
            attn_norm,
            q,
            k,
            v,
            biases,
            qk_norms,
            sinks,
            attn_output,
            attn_output_bias,
            post_norms,
            ffn_norm,
            ffn,
        })
    }

    fn gated(&mut self, prefix: &str, suffix: &str, n_ff: usize, e: usize) -> Result<Gated, ModelError> {
        let mut matrix =
            |name: &str, rows, cols| self.take(&format!("{prefix}_{name}{suffix}.weight"), Form::Panels, rows, cols);
        let (gate, up, down) = (matrix("gate", n_ff, e)?, matrix("up", n_ff, e)?, matrix("down", e, n_ff)?);
        Ok(Gated { gate, up, down, biases: None })
    }

    fn mixture(&mut self, config: &Config, of: Experts, has: &Tensors, i: usize) -> Result<Mixture, ModelError> {
        let (e, f) = (config.n_embd, of.n_ff);
        let name = |name: &str| format!("blk.{i}.{name}");
        let router = self.take(&name("ffn_gate_inp.weight"), Form::Panels, of.count, e)?;
        let mut stack = |what: &str, rows, cols| self.take_experts(&name(what), of, rows, cols);
        let [gate, up, down] = [
            stack("ffn_gate_exps.weight", f, e)?,
            stack("ffn_up_exps.weight", f, e)?,
            stack("ffn_down_exps.weight", e, f)?,
        ];
        let selection_bias = match has.selection_bias {
            true => Some(self.vector(&name("exp_probs_b.bias"), of.count)?),
            false => None,
        };
        let (router_bias, biases) = match has.expert_biases {
            true => (
                Some(self.vector(&name("ffn_gate_inp.bias"), of.count)?),
                Some([
                    self.take(&name("ffn_gate_exps.bias"), Form::Vector, of.count, f)?,
                    self.take(&name("ffn_up_exps.bias"), Form::Vector, of.count, f)?,
                    self.take(&name("ffn_down_exps.bias"), Form::Vector, of.count, e)?,
                ]),
            ),
            false => (None, None),
        };
        let shared = match of.n_ff_shared {
            0 => None,
            width => Some(self.gated(&name("ffn"), "_shexp", width, e)?),
        };
        Ok(Mixture { router, router_bias, selection_bias, gate, up, down, biases, shared })
    }

    fn rope_factors(&mut self, len: usize) -> Result<Option<RopeFactors>, ModelError> {
        if self.has("rope_freqs.weight") {
            return Ok(Some(RopeFactors::Always(self.vector("rope_freqs.weight", len)?)));
        }
        if self.has("rope_factors_long.weight") || self.has("rope_factors_short.weight") {
            let short = self.vector("rope_factors_short.weight", len)?;
            return Ok(Some(RopeFactors::ByContext(short, self.vector("rope_factors_long.weight", len)?)));
        }
        Ok(None)
    }

    fn index(&self, name: &str) -> Option<usize> {
        let found = self.by_name.binary_search_by(|&i| self.tensors[i].name().cmp(name));
        found.ok().map(|at| self.by_name[at])
    }

    fn has(&self, name: &str) -> bool {
        self.index(name).is_some()
    }

    fn wanted(&self, presence: Presence, name: &str) -> bool {
        match presence {
            Presence::Never => false,
            Presence::Perhaps => self.has(name),
            Presence::Always => true,
        }
    }

    /// Leaves out what begins with `prefix`.
    fn skip(&mut self, prefix: &str) {
        for (tensor, used) in self.tensors.iter().zip(&mut self.used) {
            *used |= tensor.name().starts_with(prefix);
        }
    }

    fn rows(&self, name: &str) -> Result<usize, ModelError> {
        let index = self.index(name).ok_or_else(|| ModelError::MissingTensor(name.to_owned()))?;
        let found = self.tensors[index].rows();
        usize::try_from(found).ok().filter(|&n| n > 0 && n <= 1 << 24).ok_or(ModelError::Range {
            what: "the number of tokens",
            found,
            need: "1 to 16777216",
        })
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Weight, ModelError> {
        self.take(name, Form::Vector, 1, len)
    }

    fn take(&mut self, name: &str, form: Form, rows: usize, cols: usize) -> Result<Weight, ModelError> {
        let factors = if form == Form::Panels { self.factors(name, 1)? } else { None };
        self.take_rows(name, form, (1, 1), (rows, cols), 0..rows, factors)
    }

    fn take_experts(&mut self, name: &str, of: Experts, rows: usize, cols: usize) -> Result<Weight, ModelError> {
        let factors = self.factors(name, of.count)?;
        self.take_rows(name, Form::Panels, (of.count, of.used), (rows, cols), 0..rows, factors)
    }

    /// The matrices, of so many rows each, that lie one after another in one tensor.
    fn take_parts<const N: usize>(
        &mut self,
        name: &str,
        parts: [usize; N],
        cols: usize,
    ) -> Result<[Weight; N], ModelError> {
        let rows = parts.iter().sum();
        let mut first = 0;
        let factors = self.factors(name, 1)?;
        let mut taken = Vec::with_capacity(N);
        for part in parts {
            taken.push(self.take_rows(name, Form::Panels, (1, 1), (rows, cols), first..first + part, factors)?);
            first += part;
        }
        Ok(std::array::from_fn(|i| taken[i]))
    }

    /// The vectors that lie one after another in one.
    fn vector_parts<const N: usize>(&mut self, name: &str, parts: [usize; N]) -> Result<[Weight; N], ModelError> {
        let whole = self.vector(name, parts.iter().sum())?;
        let mut offset = whole.offset;
        Ok(parts.map(|cols| {
            let part = Weight { cols, offset, bytes: cols * 4, ..whole };
            offset += part.bytes;
            part
        }))
    }

    /// Factors of the products of the matrices of `name`, which the scales of NVFP4 alone cannot reach. What goes with them
    /// for multiplying in four bits (`input_scale`) has no use here.
    fn factors(&mut self, name: &str, n_matrices: usize) -> Result<Option<usize>, ModelError> {
        let Some(stem) = name.strip_suffix("weight").filter(|stem| stem.starts_with("blk.")) else { return Ok(None) };
        if let Some(index) = self.index(&format!("{stem}input_scale")) {
            self.used[index] = true;
        }
        match format!("{stem}scale") {
            scale if self.has(&scale) => Ok(Some(self.vector(&scale, n_matrices)?.offset)),
            _ => Ok(None),
        }
    }

    /// Some rows of a tensor of `n_matrices` matrices of `rows` x `cols`.
    fn take_rows(
        &mut self,
        name: &str,
        form: Form,
        (n_matrices, n_used): (usize, usize),
        (rows, cols): (usize, usize),
        own: Range<usize>,
        factors: Option<usize>,
    ) -> Result<Weight, ModelError> {
        let index = self.index(name).ok_or_else(|| ModelError::MissingTensor(name.to_owned()))?;
        let tensor = &self.tensors[index];
        let found = [tensor.dims[2] * tensor.dims[3], tensor.dims[1], tensor.dims[0]];
        let need = [n_matrices as u64, rows as u64, cols as u64];
        if found != need {
            return Err(ModelError::Shape { tensor: name.to_owned(), found, need });
        }
        let no_kernels = || ModelError::TensorType { tensor: name.to_owned(), ty: tensor.ty.name() };
        let ty = WeightType::of(tensor.ty).ok_or_else(no_kernels)?;
        let rows = own.len();
        let bytes = match form {
            Form::Panels => n_matrices * ty.matrix_bytes(rows, cols),
            Form::Rows => rows * ty.row_bytes(cols),
            Form::Vector => rows * cols * 4,
            Form::File => 0,
        };
        let weight = Weight { ty, form, rows, cols, n_matrices, n_used, offset: self.bytes, bytes, factors };
        self.bytes += bytes.next_multiple_of(ALIGN);
        self.used[index] = true;
        if form != Form::File {
            self.placements.push(Placement { weight, tensor: index, first_row: own.start });
        }
        Ok(weight)
    }
}
