//! GLM-4.5 and later (arXiv:2508.06471): biases on Q, K and V, norms on their heads in the large model, half of every head
//! rotated. The first layers are dense; in the others experts are chosen by the sigmoid of their score plus a bias, and
//! one more meets every token.

use super::qwen2;
use crate::model::architecture::Architecture;
use crate::model::error::ModelError;
use crate::model::header::Routing;
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::Layer;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    config: |header| header.decoder_with_experts(Routing::SIGMOID),
    tensors,
    ..Architecture::new("glm4moe", qwen2::layer)
};

fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    let layer = find.pre_norm_layer_with(QkNorms::PerHeadIfThere, "post_attention_norm")?;
    find.require_selection_bias(&layer.ffn)?;
    Ok(layer)
}
