//! GLM-4.5 and later (arXiv:2508.06471): biases on Q, K and V, norms on their heads in the large model, half of every head
//! rotated. The first layers are dense; in the others experts are chosen by the sigmoid of their score plus a bias, and
//! one more meets every token.

use super::qwen2;
use crate::model::architecture::Architecture;
use crate::model::config::{Config, LAYERS_MAX};
use crate::model::error::ModelError;
use crate::model::header::{Header, Routing};
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::Layer;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors, ..Architecture::new("glm4moe", qwen2::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    let n_dense = header.count("leading_dense_block_count", LAYERS_MAX)?;
    config.set_experts(n_dense, header.required_experts(Routing::SIGMOID)?);
    Ok(config)
}

fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    let layer = find.pre_norm_layer_with(QkNorms::PerHeadIfThere, "post_attention_norm")?;
    find.require_selection_bias(&layer.ffn)?;
    Ok(layer)
}
