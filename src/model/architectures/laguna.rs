//! Laguna (poolside): Qwen3's attention, whose results are multiplied by the softplus of a gate for each head or each value;
//! most layers have a window, other numbers of heads and a rotation of their own. All layers but the first have experts
//! that are chosen by the sigmoid of their score plus a bias, and one that meets every token.

use super::decoder;
use crate::model::architecture::Architecture;
use crate::model::config::{Config, LAYERS_MAX, OutputGate};
use crate::model::error::ModelError;
use crate::model::header::{Header, Routing};
use crate::model::rope::Rope;
use crate::model::step::Pairing;
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::Layer;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors, ..Architecture::new("laguna", decoder::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    config.style.pairing = Pairing::Halves;
    config.set_gate(OutputGate::Softplus);
    let (len, layers) = (header.count("attention.sliding_window", 1 << 30)?, header.window_pattern(4, |_| 0)?);
    if len > 0 {
        let dim = header.rope_dim_of_windows(&config)?;
        let rope = |full: &Rope, base: Option<f32>| Rope { dim, ..full.unscaled(base.unwrap_or(full.base)) };
        header.set_windows(&mut config, (len, layers), rope)?;
    }
    let n_dense = header.number("leading_dense_block_count", LAYERS_MAX)?;
    let mut experts = header.required_experts(Routing::SIGMOID)?;
    if experts.n_ff_shared == 0 {
        experts.n_ff_shared = experts.n_ff;
    }
    config.set_experts(n_dense, experts);
    Ok(config)
}

fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    let layer = find.pre_norm_layer_with(QkNorms::PerHead, "ffn_norm")?;
    find.require_selection_bias(&layer.ffn)?;
    Ok(layer)
}
