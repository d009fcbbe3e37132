//! LFM2 with experts: layers as in the dense model; but in the first ones experts are chosen by the sigmoid of their score plus a
//! bias.

use super::lfm2;
use crate::model::architecture::Architecture;
use crate::model::config::{Config, LAYERS_MAX};
use crate::model::error::ModelError;
use crate::model::header::{Header, Routing};
use crate::model::tensors::LayerTensors;
use crate::model::weights::Layer;

pub(super) const ARCHITECTURE: Architecture = Architecture { name: "lfm2moe", config, tensors, ..lfm2::ARCHITECTURE };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = lfm2::config(header)?;
    let n_dense = header.count("leading_dense_block_count", LAYERS_MAX)?;
    config.set_experts(n_dense, header.required_experts(Routing { normalised: Some(true), ..Routing::SIGMOID })?);
    Ok(config)
}

fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    let layer = lfm2::tensors(find)?;
    find.require_selection_bias(&layer.ffn)?;
    Ok(layer)
}
