//! MiniMax M2: Q and K are each normed over all heads together, then the first half of every head is rotated. Experts
//! are chosen by the sigmoid of their score plus a bias that balances them, and weighed by the sigmoid alone.

use crate::model::architecture::Architecture;
use crate::model::config::{Config, Gating};
use crate::model::error::ModelError;
use crate::model::header::{Header, Routing};
use crate::model::step::{Activation, ForwardPass, Pairing};
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::Layer;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors, ..Architecture::new("minimax-m2", layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    config.set_experts(0, header.required_experts(Routing { gating: Gating::Sigmoid, ..Routing::SOFTMAX })?);
    Ok(config)
}

fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    let layer = find.pre_norm_layer_with(QkNorms::Whole, "ffn_norm")?;
    find.require_selection_bias(&layer.ffn)?;
    Ok(layer)
}

/// One layer.
fn layer(pass: &mut ForwardPass<'_, '_>, index: usize, w: &Layer) {
    let attn = w.attention();
    pass.norm(&w.attn_norm, &attn.q.weight);
    pass.project_qkv(attn);
    pass.norm_qk(attn);
    pass.prepare_heads(index, attn, Pairing::Halves);
    pass.attend(index, attn);
    pass.keep_output_rows(index);
    pass.add_product(&attn.output);

    pass.add_feed_forward(&w.ffn_norm, &w.ffn, Activation::Silu);
}
