//! A model: its configuration, its weights, and a file for each architecture, whose layer reads from top to bottom.
//!
//! [`architectures`] has a file for each architecture: which keys and tensors it has, and in which order the operations of
//! a layer happen. [`config`] holds the numbers ([`header`] reads them), [`weights`] the places of the tensors ([`tensors`]
//! finds them), [`cache`] what a sequence leaves in memory, and [`step`] the buffers and the operations of one pass.

mod architecture;
pub mod architectures;
pub mod cache;
pub mod config;
pub mod error;
mod header;
mod known;
pub mod rope;
mod sequence;
pub mod step;
mod tensors;
pub mod weights;

pub use architecture::Architecture;
pub use cache::{Cache, CachePlan};
pub use config::{Config, Experts, Pooling, Vectors};
pub use error::ModelError;
pub use known::Known;
pub use sequence::{SequenceSlice, Sizes};
pub use step::{Buffers, ForwardPass, OutputRows};
pub use weights::{Embedding, Form, Weight, Weights};

use crate::error::Error;
use crate::gguf::{Metadata, TensorInfo};
use crate::load::chunks::{Item, ItemForm};
use crate::load::header::ModelFiles;
use crate::load::reader::Traffic;
use crate::load::rows::{RowError, Rows, Tables};
use crate::load::weights::{Loader, buffer_bytes};
use crate::quant::PANEL_ROWS;
use weights::Placement;

/// A model: its numbers and where its weights lie.
#[derive(Clone, Debug)]
pub struct Model {
    /// Its architecture.
    pub architecture: &'static Architecture,
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
        let architecture = Architecture::of(meta)?;
        let config = architecture.read(meta)?;
        let layer = (architecture.tensors, architecture.output_norm);
        let weights = tensors::place(&config, layer, tensors, embedding)?;
        Ok(Model { architecture, config, weights })
    }

    /// Reads and checks the numbers of a header alone.
    ///
    /// # Errors
    /// The first number that is missing, out of range, or asks for a feature that is not there.
    pub fn config_of(meta: &Metadata<'_>) -> Result<Config, ModelError> {
        Architecture::of(meta)?.read(meta)
    }

    /// Reads every weight into its place in `region`, of [`Weights::bytes`]. The buffers of `loader` hold
    /// [`Model::buffer_bytes`] for each of its threads.
    ///
    /// # Errors
    /// The first failed read, naming file and offset.
    pub fn load(&self, files: &ModelFiles, region: &mut [u8], loader: Loader<'_>) -> Result<Traffic, Error> {
        let mut items = Vec::with_capacity(self.weights.placements.len());
        let (mut rest, mut at) = (region, 0);
        for &Placement { weight, tensor, first_row, tensor_rows } in &self.weights.placements {
            let (place, tail) = rest[weight.offset - at..].split_at_mut(weight.bytes);
            (rest, at) = (tail, weight.offset + weight.bytes);
            let form = match weight.form {
                Form::Panels => ItemForm::Panels(weight.ty),
                Form::Rows => ItemForm::Bytes,
                Form::Vector => ItemForm::Vector(weight.ty),
                Form::File => continue,
            };
            // Whole matrices of whole panels lie in the region as one tall matrix would.
            let is_tall = weight.rows.is_multiple_of(PANEL_ROWS) && weight.rows == tensor_rows;
            let parts = if is_tall { 1 } else { weight.n_matrices };
            let (part_rows, part_bytes) = (weight.n_matrices * weight.rows / parts, weight.bytes / parts);
            for (part, place) in place.chunks_exact_mut(part_bytes).enumerate() {
                let first_row = first_row + part * tensor_rows;
                let rows = first_row..first_row + part_rows;
                items.push(Item { tensor: &files.tensors()[tensor], rows, form, place });
            }
        }
        loader.load(files, items)
    }

    /// The rows of the tables that were left in their file.
    ///
    /// # Errors
    /// Exit 4: the file cannot be kept open.
    pub fn tables(&self, files: &ModelFiles) -> Result<Tables, Error> {
        let open = |name: &str, table: Option<&Weight>| {
            let tensor = files.tensors().iter().find(|tensor| tensor.name() == name);
            let in_file = table.filter(|table| table.form == Form::File);
            tensor.filter(|_| in_file.is_some()).map(|tensor| Rows::open(files, tensor)).transpose()
        };
        Ok(Tables {
            embedding: open(tensors::EMBEDDING_TABLE, Some(&self.weights.embedding))?,
            per_layer: open(tensors::PER_LAYER_TABLE, self.weights.per_layer.as_ref().map(|own| &own.table))?,
        })
    }

    /// Tokens that can be drawn, and that logits are of: none of a model of vectors.
    pub fn n_drawable(&self) -> usize {
        if self.config.vectors.is_some() { 0 } else { self.weights.n_vocab() }
    }

    /// Bytes of buffer that loading takes for each of `readers` threads.
    pub fn buffer_bytes(&self, readers: usize) -> usize {
        buffer_bytes(self.weights.row_bytes_max(), self.weights.bytes as u64, readers)
    }

    /// Runs all layers over the tokens of `pass`, leaving the hidden states of its output rows in its residual stream.
    ///
    /// # Errors
    /// A row of an embedding table in a file that cannot be read: no sequence has changed then.
    pub fn forward(&self, pass: &mut ForwardPass<'_, '_>) -> Result<(), RowError> {
        pass.embed(&self.weights)?;
        if let Some(own) = &self.weights.per_layer {
            pass.embed_per_layer(own)?;
        }
        pass.locate();
        for (index, weights) in self.weights.layers.iter().enumerate() {
            if self.config.norm_after_loops && index > 0 && index.is_multiple_of(self.config.n_layers_of_file()) {
                pass.norm_stream(&self.weights.output_norm);
            }
            (self.architecture.layer)(pass, index, weights);
        }
        Ok(())
    }
}
