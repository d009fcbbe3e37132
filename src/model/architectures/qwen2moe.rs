//! Qwen1.5 and Qwen2 with experts (arXiv:2407.10671, section 2.2.2): attention as in the dense model; the chosen experts are
//! weighed by the softmax over all of them as it is, and one more meets every token, times the sigmoid of a gate.

use super::qwen2;
use crate::model::architecture::Architecture;
use crate::model::config::Config;
use crate::model::error::ModelError;
use crate::model::header::{ExpertWidth, Header, Routing};
use crate::model::tensors::LayerTensors;
use crate::model::weights::Layer;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors, ..Architecture::new("qwen2moe", qwen2::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    // Files carry a window that the model's own configuration switches off.
    header.accept("attention.sliding_window");
    header.decoder_with_shared_expert(Routing { width: ExpertWidth::OwnOrShare, ..Routing::SOFTMAX_AS_IS })
}

fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    let layer = find.pre_norm_layer()?;
    find.require_gated_shared_expert(&layer.ffn)?;
    Ok(layer)
}
