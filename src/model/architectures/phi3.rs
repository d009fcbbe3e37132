//! Phi-3 and Phi-4 (arXiv:2404.14219): Qwen2 with Q, K and V in one matrix, gate and up in another; some with LongRoPE
//! (arXiv:2402.13753). The sliding window of the smallest model's configuration is left out, as in llama.cpp.

use super::super::header::Header;
use super::super::tensors::{LayerTensors, QkNorms};
use super::{Architecture, Config, Layer, ModelError, qwen2};

pub(super) const ARCHITECTURE: Architecture =
    Architecture { name: "phi3", config, tensors, layer: qwen2::layer, ..Architecture::USUAL };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    header.accept("attention.sliding_window");
    header.decoder()
}

fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    Ok(Layer {
        attn_norm: find.norm("attn_norm")?,
        mixer: find.attention(QkNorms::None)?,
        attn_post_norm: None,
        ffn_norm: find.norm("ffn_norm")?,
        ffn: find.feed_forward_with_gate_in_up()?,
        ffn_post_norm: None,
    })
}
