//! Model configuration, weight views, one file per architecture with one linear forward.
//!
//! [`config`] reads the numbers, [`weights`] finds the tensors and gives them places, [`step`] holds the buffers and
//! the operations of one pass. A file for each architecture says which tensors its layers have, and in which order the
//! operations happen.

pub mod config;
pub mod error;
mod gemma3;
mod glm4moe;
mod gpt_oss;
mod llama;
mod minimax_m2;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3moe;
pub mod rope;
pub mod step;
pub mod weights;

pub use config::{Arch, Config, Experts};
pub use error::ModelError;
pub use step::{Buffers, Kv, Pass, Sizes, Span, Wanted};
pub use weights::{Embedding, Form, Weight, Weights};

use crate::error::Error;
use crate::gguf::{Metadata, TensorInfo};
use crate::load::chunks::{Item, ItemForm};
use crate::load::header::ModelFiles;
use crate::load::reader::Traffic;
use crate::load::rows::Rows;
use crate::load::weights::{Loading, buffer_bytes, load};
use crate::quant::PANEL_ROWS;
use weights::{Layer, Placement, Tensors};

impl Arch {
    /// Which tensors its layers have.
    fn tensors(self) -> &'static Tensors {
        match self {
            Arch::Llama => &llama::TENSORS,
            Arch::Qwen2 => &qwen2::TENSORS,
            Arch::Qwen3 => &qwen3::TENSORS,
            Arch::Qwen3Moe => &qwen3moe::TENSORS,
            Arch::MiniMaxM2 => &minimax_m2::TENSORS,
            Arch::GptOss => &gpt_oss::TENSORS,
            Arch::Glm4Moe => &glm4moe::TENSORS,
            Arch::Gemma3 => &gemma3::TENSORS,
            Arch::Phi3 => &phi3::TENSORS,
        }
    }

    /// One layer over the tokens of a pass.
    fn layer(self) -> fn(&mut Pass<'_, '_>, usize, &Layer) {
        match self {
            Arch::Llama => llama::layer,
            Arch::Qwen2 => qwen2::layer,
            Arch::Qwen3 => qwen3::layer,
            Arch::Qwen3Moe => qwen3moe::layer,
            Arch::MiniMaxM2 => minimax_m2::layer,
            Arch::GptOss => gpt_oss::layer,
            Arch::Glm4Moe => glm4moe::layer,
            Arch::Gemma3 => gemma3::layer,
            Arch::Phi3 => phi3::layer,
        }
    }
}

/// A model: its numbers and where its weights lie.
#[derive(Clone, Debug)]
pub struct Model {
    /// The numbers.
    pub config: Config,
    /// The places.
    pub weights: Weights,
}

impl Model {
    /// Reads a model from a file's tables.
    ///
    /// # Errors
    /// What makes it impossible to run.
    pub fn from_tables(meta: &Metadata<'_>, tensors: &[TensorInfo]) -> Result<Model, ModelError> {
        Model::with_embedding(meta, tensors, Embedding::InMemory)
    }

    /// As [`Model::from_tables`], the embedding table of an untied model where `embedding` says.
    ///
    /// # Errors
    /// As [`Model::from_tables`].
    pub fn with_embedding(
        meta: &Metadata<'_>,
        tensors: &[TensorInfo],
        embedding: Embedding,
    ) -> Result<Model, ModelError> {
        let config = Config::from_metadata(meta)?;
        let weights = Weights::place(&config, tensors, embedding)?;
        Ok(Model { config, weights })
    }

    /// Reads every weight into its place in `region`, of [`Weights::bytes`]. The buffers of `loading` hold
    /// [`Model::buffer_bytes`] for each of its threads.
    ///
    /// # Errors
    /// The first failed read, naming file and offset.
    pub fn load(&self, files: &ModelFiles, region: &mut [u8], loading: Loading<'_>) -> Result<Traffic, Error> {
        let mut items = Vec::with_capacity(self.weights.placements.len());
        let (mut rest, mut at) = (region, 0);
        for &Placement { weight, tensor, first_row } in &self.weights.placements {
            let (place, tail) = rest[weight.offset - at..].split_at_mut(weight.bytes);
            (rest, at) = (tail, weight.offset + weight.bytes);
            let form = match weight.form {
                Form::Panels => ItemForm::Panels(weight.ty),
                Form::Rows => ItemForm::Bytes,
                Form::Vector => ItemForm::Vector(weight.ty),
                Form::File => continue,
            };
            // Matrices of whole panels lie in the region as one tall matrix would.
            let parts = if weight.rows.is_multiple_of(PANEL_ROWS) { 1 } else { weight.n_matrices };
            let (part_rows, part_bytes) = (weight.n_matrices * weight.rows / parts, weight.bytes / parts);
            for (part, place) in place.chunks_exact_mut(part_bytes).enumerate() {
                let rows = first_row + part * part_rows..first_row + (part + 1) * part_rows;
                items.push(Item { tensor: &files.tensors()[tensor], rows, form, place });
            }
        }
        load(files, items, loading)
    }

    /// The rows of an embedding table that was left in its file.
    ///
    /// # Errors
    /// Exit 4: the file cannot be kept open.
    pub fn embedding_rows(&self, files: &ModelFiles) -> Result<Option<Rows>, Error> {
        let table = files.tensors().iter().find(|tensor| tensor.name() == "token_embd.weight");
        match table.filter(|_| self.weights.embedding.form == Form::File) {
            Some(tensor) => Rows::open(files, tensor).map(Some),
            None => Ok(None),
        }
    }

    /// Bytes of buffer that loading takes for each of `readers` threads.
    pub fn buffer_bytes(&self, readers: usize) -> usize {
        buffer_bytes(self.weights.row_bytes_max(), self.weights.bytes as u64, readers)
    }

    /// Runs all layers over the tokens of `pass`, leaving the hidden states of those wanted in its residual stream.
    pub fn forward(&self, pass: &mut Pass<'_, '_>) {
        pass.embed(&self.weights.embedding);
        pass.locate();
        let layer = self.config.arch.layer();
        for (index, weights) in self.weights.layers.iter().enumerate() {
            layer(pass, index, weights);
        }
    }
}
