//! GLM-4-0414 and Z1 (arXiv:2406.12793): norms before and after attention and feed-forward layer, gate and up in one matrix,
//! a part of every head rotated, in pairs of neighbours, or half of it apart in files that divide pairs into sections.

use crate::model::architecture::Architecture;
use crate::model::config::Config;
use crate::model::error::ModelError;
use crate::model::header::Header;
use crate::model::step::{Activation, ForwardPass, Pairing};
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::Layer;

pub(super) const ARCHITECTURE: Architecture = Architecture { config, tensors, ..Architecture::new("glm4", layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    Ok(Config { has_branch: true, ..header.decoder()? })
}

fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    Ok(Layer {
        attn_norm: find.norm("attn_norm")?,
        mixer: find.attention(QkNorms::None)?,
        attn_post_norm: find.norm("post_attention_norm")?,
        ffn_norm: find.norm("ffn_norm")?,
        ffn: find.feed_forward_with_gate_in_up()?,
        ffn_post_norm: find.norm("post_ffw_norm")?,
        ..Layer::default()
    })
}

/// One layer.
fn layer(pass: &mut ForwardPass<'_, '_>, index: usize, w: &Layer) {
    let attn = w.attention();
    let pairing = if pass.config.ropes[0].has_sections { Pairing::Halves } else { Pairing::Neighbours };
    pass.norm(&w.attn_norm, &attn.q.weight);
    pass.project_qkv(attn);
    pass.prepare_heads(index, attn, pairing);
    pass.attend(index, attn);
    pass.keep_output_rows(index);
    pass.add_normed_product(&attn.output, &w.attn_post_norm);

    let ffn = w.dense();
    pass.norm(&w.ffn_norm, ffn.first());
    pass.project_gate_up(ffn);
    pass.activate(ffn, Activation::Silu);
    pass.add_normed_product(&ffn.down, &w.ffn_post_norm);
}
