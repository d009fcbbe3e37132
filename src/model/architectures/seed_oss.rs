//! Seed-OSS (ByteDance, 2025): Qwen2, its second norm under another name.

use super::qwen2;
use crate::model::architecture::Architecture;
use crate::model::error::ModelError;
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::Layer;

pub(super) const ARCHITECTURE: Architecture = Architecture { tensors, ..Architecture::new("seed_oss", qwen2::layer) };

fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    find.pre_norm_layer_with(QkNorms::None, "post_attention_norm")
}
