//! Mamba-2 (arXiv:2405.21060): every layer is a selective state space alone, whose gated results are normed in groups. Hybrids
//! have attention in some layers, or beside the state space, and feed-forward parts: their layer is here too.

use crate::model::architecture::Architecture;
use crate::model::config::{Config, FfnConfig, LayerConfig, MixerConfig, Style};
use crate::model::error::ModelError;
use crate::model::header::Header;
use crate::model::step::ForwardPass;
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::{FeedForward, Layer, Mixer};

pub(super) const ARCHITECTURE: Architecture = Architecture { config, tensors, ..Architecture::new("mamba2", layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder_with_headless_layers()?;
    config.layers.fill(LayerConfig { mixer: MixerConfig::Mamba2(header.mamba2()?), ffn: FfnConfig::None });
    Ok(config)
}

pub(super) fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    Ok(Layer {
        attn_norm: find.norm("attn_norm")?,
        mixer: find.attention_or_mamba(QkNorms::None)?,
        ffn: FeedForward::None,
        ..Layer::default()
    })
}

/// One layer: attention, a state space or both, or neither; and a feed-forward part, or none.
pub(super) fn layer(pass: &mut ForwardPass<'_, '_>, index: usize, w: &Layer) {
    let Style { pairing, activation, .. } = pass.config.style;
    match &w.mixer {
        Mixer::Mamba2(mamba) => {
            pass.norm(&w.attn_norm, &mamba.z.weight);
            pass.project_mamba2(mamba);
            pass.mix_mamba2(index, mamba);
            pass.keep_output_rows(index);
            pass.add_product(&mamba.output);
        }
        Mixer::Mamba(mamba) => {
            pass.norm(&w.attn_norm, &mamba.z.weight);
            pass.mix_mamba(index, mamba);
            pass.keep_output_rows(index);
            pass.add_product(&mamba.output);
        }
        Mixer::Attention(attn) => {
            pass.norm(&w.attn_norm, &attn.q.weight);
            pass.project_qkv(attn);
            pass.prepare_heads(index, attn, pairing);
            pass.attend(index, attn);
            pass.keep_output_rows(index);
            pass.add_product(&attn.output);
        }
        Mixer::AttentionAndMamba2(both) => {
            let (attn, mamba) = &**both;
            pass.norm(&w.attn_norm, &attn.q.weight);
            pass.project_qkv(attn);
            pass.project_mamba2(mamba);
            pass.prepare_heads(index, attn, pairing);
            pass.attend(index, attn);
            pass.add_product(&attn.output);
            pass.mix_mamba2(index, mamba);
            pass.keep_output_rows(index);
            pass.add_product(&mamba.output);
        }
        _ => pass.keep_output_rows(index),
    }

    pass.add_feed_forward(&w.ffn_norm, &w.ffn, activation);
}
