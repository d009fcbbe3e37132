//! Finds tensors by name, checks their shapes, and gives them places.

use std::ops::Range;

use crate::gguf::{TensorInfo, sort_tensors};
use crate::model::config::{Config, Experts};
use crate::model::error::{Fault, ModelError, range};
use crate::model::weights::{ALIGN, Form, Linear, Norm, PerLayerEmbedding, Placement, RopeFactors, Weight};
use crate::quant::{PANEL_ROWS, WeightType};

/// The table of per-layer embeddings, whose rows are read from the file.
pub(in crate::model) const PER_LAYER_TABLE: &str = "per_layer_token_embd.weight";

/// Most tokens of a vocabulary.
const VOCAB_MAX: u64 = 1 << 24;

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
pub(super) struct Matrices {
    pub count: usize,
    pub used: usize,
}

impl Matrices {
    const ONE: Matrices = Matrices { count: 1, used: 1 };

    pub(super) fn of(experts: &Experts) -> Matrices {
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

    /// Rows of a tensor, if it is there.
    pub(super) fn rows_if_there(&self, name: &str) -> Option<u64> {
        self.index(name).map(|index| self.tensors[index].rows())
    }

    fn index(&self, name: &str) -> Option<usize> {
        let found = self.by_name.binary_search_by(|&i| self.tensors[usize::from(i)].name().cmp(name));
        found.ok().map(|at| usize::from(self.by_name[at]))
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.index(name).is_some()
    }

    /// Whether there is a tensor whose name begins with `prefix`.
    pub(super) fn has_any(&self, prefix: &str) -> bool {
        self.tensors.iter().any(|tensor| tensor.name().starts_with(prefix))
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

    /// The first of some vectors, if the tensor is there.
    pub(super) fn first_row_if_there(&mut self, name: &str, cols: usize) -> Result<Option<Weight>, ModelError> {
        if !self.has(name) {
            return Ok(None);
        }
        let rows = self.rows(name)?;
        self.take_rows(name, Form::Vector, Matrices::ONE, (rows, cols), 0..1, None).map(Some)
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
    pub(super) fn expert_parts<const N: usize>(
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

    pub(super) fn weight_parts<const N: usize>(
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
    pub(super) fn weight_of_blocks(
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
    pub(super) fn head_matrices(
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
    pub(super) fn factors(&mut self, stem: &str, n_matrices: usize) -> Result<Option<usize>, ModelError> {
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
    pub(super) fn per_layer_embedding(
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
