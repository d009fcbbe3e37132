//! Qwen3, dense (arXiv:2505.09388): Qwen2 without biases; every head of Q and K is normed before its rotation.

use super::qwen2;
use crate::model::architecture::Architecture;
use crate::model::error::ModelError;
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::Layer;

pub(super) const ARCHITECTURE: Architecture = Architecture { tensors, ..Architecture::new("qwen3", qwen2::layer) };

pub(super) fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    find.pre_norm_layer_with(QkNorms::PerHead, "ffn_norm")
}
