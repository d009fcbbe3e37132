//! Trinity (Arcee, arXiv:2602.17004): Muse Glimmer's order of operations. Every fourth layer is not rotated. The first layers
//! are dense; in the others experts are chosen by the sigmoid of their score plus a bias, and one meets every token.

use super::muse_glimmer;
use crate::model::architecture::Architecture;
use crate::model::config::{Config, LAYERS_MAX, OutputGate};
use crate::model::error::ModelError;
use crate::model::header::{Header, Routing};
use crate::model::rope::Rope;
use crate::model::step::Pairing;
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::Layer;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors, ..Architecture::new("afmoe", muse_glimmer::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    config.style.pairing = Pairing::Halves;
    (config.has_branch, config.embedding_scale) = (true, (config.n_embd as f32).sqrt());
    config.set_gate(OutputGate::Sigmoid);
    let rope = |full: &Rope, base: Option<f32>| Rope { base: base.unwrap_or(full.base), ..full.clone() };
    header.set_windows(&mut config, header.required_windows(4)?, rope)?;
    for attn in config.layers.iter_mut().skip(3).step_by(4).filter_map(|layer| layer.attention_mut()) {
        attn.rope = None;
    }
    let n_dense = header.count("leading_dense_block_count", LAYERS_MAX)?;
    config.set_experts(n_dense, header.required_experts(Routing::SIGMOID)?);
    Ok(config)
}

fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    let layer = Layer {
        attn_post_norm: find.norm("post_attention_norm")?,
        ffn_post_norm: find.norm("post_ffw_norm")?,
        ..find.pre_norm_layer_with(QkNorms::PerHead, "ffn_norm")?
    };
    find.require_selection_bias(&layer.ffn)?;
    Ok(layer)
}
