//! Qwen3.5 and later with experts: layers as in the dense model; the feed-forward part is that of `qwen3moe` and one more
//! expert, which meets every token, times the sigmoid of a gate.

use super::qwen35;
use crate::model::architecture::Architecture;
use crate::model::config::{Config, HeadOrder};
use crate::model::error::ModelError;
use crate::model::header::{ExpertWidth, Header, Routing};
use crate::model::tensors::LayerTensors;
use crate::model::weights::Layer;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors, ..Architecture::new("qwen35moe", qwen35::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let config = with_experts(header, HeadOrder::Repeated)?;
    header.check_interleaved_sections(config.ropes[0].dim / 2)?;
    Ok(config)
}

/// The hybrid of `qwen35` with experts in every layer.
pub(super) fn with_experts(header: &Header<'_, '_>, order: HeadOrder) -> Result<Config, ModelError> {
    let mut config = qwen35::hybrid(header, order)?;
    let routing = Routing { width: ExpertWidth::OwnOrShare, ..Routing::SOFTMAX };
    let mut experts = header.required_experts(routing)?;
    header.set_shared_width(&mut experts)?;
    config.set_experts(0, experts);
    Ok(config)
}

pub(super) fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    let layer = qwen35::tensors(find)?;
    find.require_gated_shared_expert(&layer.ffn)?;
    Ok(layer)
}
