//! MiniMax M3 (2026): norms on the heads of Q and K, half of every head rotated, clamped SwiGLU; the first layers are dense, in
//! the others experts are chosen as in DeepSeek-V3, and one more meets every token. Its indexer, which leaves blocks of
//! positions out of long contexts, is left out: attention is to everything.

use super::decoder;
use crate::model::architecture::Architecture;
use crate::model::config::{Config, Pairing};
use crate::model::error::ModelError;
use crate::model::header::{Header, Routing};
use crate::model::step::Activation;
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::Layer;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors, ..Architecture::new("minimax-m3", decoder::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder_with_experts(Routing::SIGMOID)?;
    (config.style.pairing, config.style.activation) = (Pairing::Halves, Activation::SwigluClamped);
    Ok(config)
}

fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    find.skip("indexer.");
    let layer = find.pre_norm_layer_with(QkNorms::PerHead, "ffn_norm")?;
    find.require_selection_bias(&layer.ffn)?;
    Ok(layer)
}
