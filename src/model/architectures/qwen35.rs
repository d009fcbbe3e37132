//! Qwen3.5 and later, dense: three of four layers mix tokens by a gated delta rule (Gated DeltaNet, arXiv:2412.06464) over
//! convolved queries, keys and values; every fourth by attention with normed heads, a quarter of which is rotated, and
//! results that are multiplied by the sigmoid of a gate. Files have value heads in the order of key heads, repeated.

use crate::model::architecture::Architecture;
use crate::model::config::{Config, HeadOrder, MixerConfig, OutputGate};
use crate::model::error::ModelError;
use crate::model::header::Header;
use crate::model::step::{Activation, ForwardPass, Pairing};
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::{Layer, Mixer};

pub(super) const ARCHITECTURE: Architecture = Architecture { config, tensors, ..Architecture::new("qwen35", layer) };

/// Layers from one with attention to the next.
const ATTENTION_INTERVAL: usize = 4;

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let config = hybrid(header, HeadOrder::Repeated)?;
    header.check_interleaved_sections(config.ropes[0].dim / 2)?;
    Ok(config)
}

/// A decoder, some of whose layers have a delta rule and the others gated attention.
pub(super) fn hybrid(header: &Header<'_, '_>, order: HeadOrder) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    let delta = header.delta_net(order)?;
    let recurrent = header.recurrent_layers(ATTENTION_INTERVAL)?;
    for (layer, is_recurrent) in config.layers.iter_mut().zip(recurrent) {
        match &mut layer.mixer {
            mixer if is_recurrent => *mixer = MixerConfig::DeltaNet(delta),
            MixerConfig::Attention(attention) => attention.gate = Some(OutputGate::Sigmoid),
            _ => {}
        }
    }
    Ok(config)
}

pub(super) fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    Ok(Layer {
        attn_norm: find.norm("attn_norm")?,
        mixer: match find.layer.mixer {
            MixerConfig::DeltaNet(delta) => find.delta_net(&delta)?,
            _ => find.gated_attention(QkNorms::PerHead)?,
        },
        ffn_norm: find.norm("post_attention_norm")?,
        ffn: find.feed_forward()?,
        ..Layer::default()
    })
}

/// One layer.
pub(super) fn layer(pass: &mut ForwardPass<'_, '_>, index: usize, w: &Layer) {
    match &w.mixer {
        Mixer::DeltaNet(delta) => {
            pass.norm(&w.attn_norm, &delta.qkv.weight);
            pass.project_delta(delta);
            pass.convolve_delta(index, delta);
            pass.delta_rule(index);
            pass.gate_delta(index, delta);
            pass.keep_output_rows(index);
            pass.add_product(&delta.output);
        }
        _ => {
            let attn = w.attention();
            pass.norm(&w.attn_norm, &attn.q.weight);
            pass.project_qkv(attn);
            pass.prepare_heads(index, attn, Pairing::Halves);
            pass.attend(index, attn);
            pass.gate_attention(index, attn);
            pass.keep_output_rows(index);
            pass.add_product(&attn.output);
        }
    }

    pass.add_feed_forward(&w.ffn_norm, &w.ffn, Activation::Silu);
}
