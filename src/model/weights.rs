//! Where every weight lies: the tensors an architecture needs, found in the file, checked, and given a place in the
//! weights region.

use super::config::{Arch, Config, Experts, ModelError};
use crate::gguf::TensorInfo;
use crate::quant::WeightType;

/// Every weight starts on a cache line.
const ALIGN: usize = 64;

/// How a tensor is laid down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Panels for matrix products (see [`crate::quant`]).
    Panels,
    /// The file's rows as they are, for look-ups.
    Rows,
    /// A vector in f32.
    Vector,
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

    /// Bytes read for a token.
    pub fn bytes_per_token(&self) -> usize {
        self.bytes / self.n_matrices * self.n_used
    }

    /// Multiplications of a token.
    pub fn macs_per_token(&self) -> u64 {
        self.rows as u64 * self.cols as u64 * self.n_used as u64
    }
}

/// A weight and the tensor it is loaded from.
#[derive(Clone, Copy, Debug)]
pub struct Placement {
    /// The weight.
    pub weight: Weight,
    /// Index into the file's tensor table.
    pub tensor: usize,
}

/// The weights of a layer.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the names of the tensors")]
pub struct Layer {
    pub attn_norm: Weight,
    pub q: Weight,
    pub k: Weight,
    pub v: Weight,
    pub biases: Option<[Weight; 3]>,
    pub head_norms: Option<[Weight; 2]>,
    pub attn_output: Weight,
    pub ffn_norm: Weight,
    /// Scores the experts, where there are any; gate, up and down then hold a matrix for each.
    pub router: Option<Weight>,
    pub ffn_gate: Weight,
    pub ffn_up: Weight,
    pub ffn_down: Weight,
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
    /// Divisors of the rotary frequencies (Llama 3), `[rope_dim / 2]`.
    pub rope_factors: Option<Weight>,
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
    pub fn place(config: &Config, tensors: &[TensorInfo]) -> Result<Weights, ModelError> {
        let mut by_name: Vec<usize> = (0..tensors.len()).collect();
        by_name.sort_unstable_by(|&a, &b| tensors[a].name().cmp(tensors[b].name()));
        let mut finder =
            Finder { tensors, by_name, used: vec![false; tensors.len()], placements: Vec::new(), bytes: 0 };
        let (e, head) = (config.n_embd, config.head_dim);
        let n_vocab = finder.rows("token_embd.weight")?;
        let tied = finder.index("output.weight").is_none();
        let form = if tied { Form::Panels } else { Form::Rows };
        let embedding = finder.take("token_embd.weight", form, n_vocab, e)?;
        let mut layers = Vec::with_capacity(config.n_layers);
        for i in 0..config.n_layers {
            let mut get = |name: &str, form, rows, cols| finder.take(&format!("blk.{i}.{name}"), form, rows, cols);
            let mut vector = |name: &str, len| get(name, Form::Vector, 1, len);
            let attn_norm = vector("attn_norm.weight", e)?;
            let ffn_norm = vector("ffn_norm.weight", e)?;
            let (q_rows, kv_rows) = (config.n_heads * head, config.n_kv_heads * head);
            let biases = match config.arch {
                Arch::Qwen2 => Some([
                    vector("attn_q.bias", q_rows)?,
                    vector("attn_k.bias", kv_rows)?,
                    vector("attn_v.bias", kv_rows)?,
                ]),
                _ => None,
            };
            let head_norms = match config.arch {
                Arch::Qwen3 | Arch::Qwen3Moe => {
                    Some([vector("attn_q_norm.weight", head)?, vector("attn_k_norm.weight", head)?])
                }
                _ => None,
            };
            let mut matrix = |name: &str, rows, cols| get(name, Form::Panels, rows, cols);
            let [q, k, v] = [
                matrix("attn_q.weight", q_rows, e)?,
                matrix("attn_k.weight", kv_rows, e)?,
                matrix("attn_v.weight", kv_rows, e)?,
            ];
            let attn_output = matrix("attn_output.weight", e, q_rows)?;
            let router = match config.experts {
                Some(experts) => Some(matrix("ffn_gate_inp.weight", experts.count, e)?),
                None => None,
            };
            let mut ffn = |name: &str, rows, cols| match config.experts {
                Some(experts) => finder.take_experts(&format!("blk.{i}.{name}_exps.weight"), experts, rows, cols),
                None => finder.take(&format!("blk.{i}.{name}.weight"), Form::Panels, rows, cols),
            };
            layers.push(Layer {
                attn_norm,
                q,
                k,
                v,
                biases,
                head_norms,
                attn_output,
                ffn_norm,
                router,
                ffn_gate: ffn("ffn_gate", config.n_ff, e)?,
                ffn_up: ffn("ffn_up", config.n_ff, e)?,
                ffn_down: ffn("ffn_down", e, config.n_ff)?,
            });
        }
        let output_norm = finder.take("output_norm.weight", Form::Vector, 1, e)?;
        let output = if tied { embedding } else { finder.take("output.weight", Form::Panels, n_vocab, e)? };
        let rope_factors = match finder.index("rope_freqs.weight") {
            Some(_) => Some(finder.take("rope_freqs.weight", Form::Vector, 1, config.rope_dim / 2)?),
            None => None,
        };
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

impl Finder<'_> {
    fn index(&self, name: &str) -> Option<usize> {
        let found = self.by_name.binary_search_by(|&i| self.tensors[i].name().cmp(name));
        found.ok().map(|at| self.by_name[at])
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

    fn take(&mut self, name: &str, form: Form, rows: usize, cols: usize) -> Result<Weight, ModelError> {
        self.take_stack(name, form, Experts { count: 1, used: 1 }, (rows, cols))
    }

    fn take_experts(&mut self, name: &str, of: Experts, rows: usize, cols: usize) -> Result<Weight, ModelError> {
        self.take_stack(name, Form::Panels, of, (rows, cols))
    }

    fn take_stack(
        &mut self,
        name: &str,
        form: Form,
        of: Experts,
        (rows, cols): (usize, usize),
    ) -> Result<Weight, ModelError> {
        let index = self.index(name).ok_or_else(|| ModelError::MissingTensor(name.to_owned()))?;
        let tensor = &self.tensors[index];
        let found = [tensor.dims[2] * tensor.dims[3], tensor.dims[1], tensor.dims[0]];
        let need = [of.count as u64, rows as u64, cols as u64];
        if found != need {
            return Err(ModelError::Shape { tensor: name.to_owned(), found, need });
        }
        let no_kernels = || ModelError::TensorType { tensor: name.to_owned(), ty: tensor.ty.name() };
        let ty = WeightType::of(tensor.ty).ok_or_else(no_kernels)?;
        let bytes = match form {
            Form::Panels => of.count * ty.matrix_bytes(rows, cols),
            Form::Rows => rows * ty.row_bytes(cols),
            Form::Vector => cols * 4,
        };
        let (n_matrices, n_used) = (of.count, of.used);
        let weight = Weight { ty, form, rows, cols, n_matrices, n_used, offset: self.bytes, bytes };
        self.bytes += bytes.next_multiple_of(ALIGN);
        self.used[index] = true;
        self.placements.push(Placement { weight, tensor: index });
        Ok(weight)
    }
}
