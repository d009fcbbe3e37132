//! GLM-4-0414 and Z1 (arXiv:2406.12793): norms before and after attention and feed-forward layer, gate and up in one matrix,
//! a part of every head rotated, in pairs of neighbours, or half of it apart in files that divide pairs into sections.

use super::decoder;
use crate::model::architecture::Architecture;
use crate::model::config::Config;
use crate::model::error::ModelError;
use crate::model::header::Header;
use crate::model::step::Pairing;
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::Layer;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors, ..Architecture::new("glm4", decoder::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    config.has_branch = true;
    if config.ropes[0].has_sections {
        config.style.pairing = Pairing::Halves;
    }
    Ok(config)
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
