//! Qwen2 and Qwen2.5 (arXiv:2407.10671): Llama with biases on Q, K and V, and rotary pairs half a head apart.

use crate::model::architecture::Architecture;
use crate::model::config::Config;
use crate::model::error::ModelError;
use crate::model::header::Header;
use crate::model::step::{Activation, ForwardPass, Pairing};
use crate::model::weights::Layer;

pub(super) const ARCHITECTURE: Architecture = Architecture { config, ..Architecture::new("qwen2", layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    // Files carry a window that the model's own configuration switches off.
    header.accept("attention.sliding_window");
    header.decoder()
}

/// One layer; heads are normed where the model has norms of queries and keys.
pub(super) fn layer(pass: &mut ForwardPass<'_, '_>, index: usize, w: &Layer) {
    let attn = w.attention();
    pass.norm(&w.attn_norm, &attn.q.weight);
    pass.project_qkv(attn);
    pass.prepare_heads(index, attn, Pairing::Halves);
    pass.attend(index, attn);
    pass.keep_output_rows(index);
    pass.add_product(&attn.output);

    pass.add_feed_forward(&w.ffn_norm, &w.ffn, Activation::Silu);
}
