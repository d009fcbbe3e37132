//! Qwen3, dense (arXiv:2505.09388): Qwen2 without biases; every head of Q and K is normed before its rotation.

use super::super::tensors::{LayerTensors, QkNorms};
use super::{Architecture, Layer, ModelError, qwen2};

pub(super) const ARCHITECTURE: Architecture =
    Architecture { name: "qwen3", tensors, layer: qwen2::layer, ..Architecture::USUAL };

pub(super) fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    find.pre_norm_layer_with(QkNorms::PerHead, "ffn_norm")
}
