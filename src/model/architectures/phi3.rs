//! Phi-3 and Phi-4 (arXiv:2404.14219): Qwen2 with Q, K and V in one matrix, gate and up in another; some with LongRoPE
//! (arXiv:2402.13753). The sliding window of the smallest model's configuration is left out, as in llama.cpp.

use super::qwen2;
use crate::model::architecture::Architecture;
use crate::model::config::Config;
use crate::model::error::ModelError;
use crate::model::header::Header;
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::Layer;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors, ..Architecture::new("phi3", qwen2::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    header.accept("attention.sliding_window");
    header.decoder()
}

pub(super) fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    Ok(Layer {
        attn_norm: find.norm("attn_norm")?,
        mixer: find.attention(QkNorms::None)?,
        ffn_norm: find.norm("ffn_norm")?,
        ffn: find.feed_forward_with_gate_in_up()?,
        ..Layer::default()
    })
}
