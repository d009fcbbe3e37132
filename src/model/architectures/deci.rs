//! Nemotron's pruned Llamas (arXiv:2411.19146): heads and widths differ from layer to layer; some layers have a matrix
//! instead of attention, some nothing, and some no feed-forward part.

use super::llama;
use crate::model::architecture::Architecture;
use crate::model::config::{Config, FfnConfig, MixerConfig};
use crate::model::error::ModelError;
use crate::model::header::Header;
use crate::model::step::{Activation, ForwardPass};
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::{Layer, Mixer};

pub(super) const ARCHITECTURE: Architecture = Architecture { config, tensors, ..Architecture::new("deci", layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let config = header.decoder_with_headless_layers()?;
    // llama.cpp drops such a layer as a whole, the model's own code does not; published files have none.
    let mut layers = config.layers.iter();
    match layers.position(|layer| layer.mixer != MixerConfig::None && layer.ffn == FfnConfig::None) {
        Some(layer) => header.unsupported("feed_forward_length", format!("0 in layer {layer}, which has heads")),
        None => Ok(config),
    }
}

fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    let (has_mixer, has_ffn) = (find.layer.mixer != MixerConfig::None, find.layer.ffn != FfnConfig::None);
    let e = find.config.n_embd;
    Ok(Layer {
        attn_norm: if has_mixer { find.norm("attn_norm")? } else { None },
        mixer: match find.layer.mixer {
            MixerConfig::Attention(_) => find.attention(QkNorms::None)?,
            MixerConfig::Linear => Mixer::Linear(Box::new(find.linear("attn_output", e, e)?)),
            _ => Mixer::None,
        },
        ffn_norm: if has_ffn { find.norm("ffn_norm")? } else { None },
        ffn: find.feed_forward()?,
        ..Layer::default()
    })
}

/// One layer.
fn layer(pass: &mut ForwardPass<'_, '_>, index: usize, w: &Layer) {
    match &w.mixer {
        Mixer::Attention(_) => return llama::layer(pass, index, w),
        Mixer::Linear(linear) => {
            pass.norm(&w.attn_norm, &linear.weight);
            pass.keep_output_rows(index);
            pass.add_product(linear);
        }
        _ => pass.keep_output_rows(index),
    }
    pass.add_feed_forward(&w.ffn_norm, &w.ffn, Activation::Silu);
}
