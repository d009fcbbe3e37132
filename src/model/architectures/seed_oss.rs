//! Seed-OSS (ByteDance, 2025): Qwen2, its second norm under another name.

use super::super::tensors::{LayerTensors, QkNorms};
use super::{Architecture, Layer, ModelError, qwen2};

pub(super) const ARCHITECTURE: Architecture =
    Architecture { name: "seed_oss", tensors, layer: qwen2::layer, ..Architecture::USUAL };

fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    find.pre_norm_layer_with(QkNorms::None, "post_attention_norm")
}
