//! Finds the tensors an architecture needs in a file, checks their shapes, and gives them places in the weights region.

mod attention;
mod feed_forward;
mod finder;
mod recurrent;

use super::config::{Config, EmbeddingNorm, LayerConfig};
use super::error::{Fault, ModelError, range};
use super::weights::{Embedding, Form, HeadFunction, Layer, Linear, Norm, PerLayerMaps, Weight, Weights};
use crate::gguf::TensorInfo;
pub(super) use finder::PER_LAYER_TABLE;
use finder::TensorFinder;

/// The table of embeddings, whose rows may be read from the file.
pub(super) const EMBEDDING_TABLE: &str = "token_embd.weight";

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
    leave_out_predicting(&mut finder, config)?;
    let e = config.n_embd;
    let n_vocab = finder.rows(EMBEDDING_TABLE)?;
    // A model of vectors draws no tokens: what it has to do so stays in the file.
    let draws = config.vectors.is_none();
    if !draws {
        finder.skip("output.");
    }
    let tied = draws && !finder.has("output.weight");
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
    let token_kind = if config.token_kinds { finder.first_row_if_there("token_types.weight", e)? } else { None };
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
        layers.push(layer(&mut LayerTensors::new(&mut finder, config, i))?);
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
        _ if !draws => Linear { weight: embedding, bias: None },
        true => Linear { weight: embedding, bias: finder.optional_vector("output.bias", n_vocab)? },
        false => finder.linear("output", n_vocab, e)?,
    };
    let head = head(&mut finder, config)?;
    let rope_factors = finder.rope_factors(config.ropes.iter().map(|rope| rope.dim / 2).max().unwrap_or(0))?;
    let (placements, bytes) = finder.finish()?;
    let matrices = placements.iter().map(|p| p.weight).filter(|w| w.form == Form::Panels);
    let layer_macs: u64 = matrices.clone().map(|w| w.macs_per_token()).sum();
    let layer_bytes: usize = matrices.map(|w| w.bytes_per_token()).sum();
    let (output_macs, output_bytes) = match draws {
        true => (output.weight.macs_per_token(), output.weight.bytes_per_token()),
        false => (0, 0),
    };
    Ok(Weights {
        bytes_per_token: config.loops * (layer_bytes - output_bytes) + output_bytes + embedding.ty.row_bytes(e),
        per_layer,
        macs_per_token: config.loops as u64 * (layer_macs - output_macs),
        embedding,
        positions,
        token_kind,
        embedding_norm,
        output_norm,
        output,
        head,
        rope_factors,
        layers,
        layer_offsets,
        bytes,
        placements,
    })
}

/// Leaves out the layers that predict ahead, which must be such.
fn leave_out_predicting(finder: &mut TensorFinder<'_>, config: &Config) -> Result<(), ModelError> {
    let (n_layers, skipped) = (config.n_layers_of_file(), config.n_layers_skipped);
    if skipped > 0 && !finder.has_any("blk.0.") {
        return Err(Fault::OnlyAhead { layers: skipped }.into());
    }
    for i in n_layers..n_layers + skipped {
        let block = format!("blk.{i}.");
        if finder.has_any(&block) && !finder.has_any(&format!("{block}nextn.")) {
            let need =
                format!("layers that predict ahead: {block}* has no `nextn` tensor, and the text would lack a layer");
            return range("nextn_predict_layers", skipped, need);
        }
        finder.skip(&block);
    }
    Ok(())
}

/// What the pooled vector meets: the maps of a classifier, or two that lead through another width (llama.cpp's `cls`,
/// `cls.output`; `dense_2`, `dense_3`).
fn head(finder: &mut TensorFinder<'_>, config: &Config) -> Result<Vec<(Linear, HeadFunction)>, ModelError> {
    let Some(vectors) = config.vectors else { return Ok(Vec::new()) };
    let (e, mut head) = (config.n_embd, Vec::new());
    if vectors.ranks() {
        if finder.has("cls.weight") {
            head.push((finder.linear("cls", e, e)?, HeadFunction::Tanh));
        }
        let function = if vectors.softmax { HeadFunction::Softmax } else { HeadFunction::None };
        head.push((finder.linear("cls.output", vectors.n_scores, e)?, function));
    } else if vectors.n_dense > 0 {
        head.push((finder.linear("dense_2", vectors.n_dense, e)?, HeadFunction::None));
        head.push((finder.linear("dense_3", e, vectors.n_dense)?, HeadFunction::None));
    }
    Ok(head)
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

impl<'f, 't> LayerTensors<'f, 't> {
    /// The tensors of layer `index`.
    fn new(finder: &'f mut TensorFinder<'t>, config: &'f Config, index: usize) -> LayerTensors<'f, 't> {
        let layer = &config.layers[index];
        LayerTensors { finder, config, layer, index, biases_required: false, shared_suffix: "_shexp" }
    }
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
}
