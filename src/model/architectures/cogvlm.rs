//! CogVLM (arXiv:2311.03079), of which text meets no more than Llama's layer: the matrices that images go through are left in
//! the file.

use super::qwen2;
use crate::model::architecture::Architecture;
use crate::model::error::ModelError;
use crate::model::tensors::LayerTensors;
use crate::model::weights::Layer;

pub(super) const ARCHITECTURE: Architecture = Architecture { tensors, ..Architecture::new("cogvlm", qwen2::layer) };

fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    find.skip("vis_");
    find.pre_norm_layer()
}
