//! Falcon-H1 (arXiv:2507.22448): in every layer attention and a state space as in Mamba-2 read the same normed stream, and both
//! add to it.

use super::mamba2;
use crate::model::architecture::Architecture;
use crate::model::config::{Config, MixerConfig};
use crate::model::error::ModelError;
use crate::model::header::Header;
use crate::model::step::Pairing;
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::Layer;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors, ..Architecture::new("falcon-h1", mamba2::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    let mamba = header.mamba2()?;
    for layer in &mut config.layers {
        if let MixerConfig::Attention(attention) = layer.mixer {
            layer.mixer = MixerConfig::AttentionAndMamba2(attention, mamba);
        }
    }
    header.set_attention_scale(&mut config)?;
    config.style.pairing = Pairing::Halves;
    Ok(config)
}

fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    Ok(Layer {
        attn_norm: find.norm("attn_norm")?,
        mixer: find.attention_or_mamba(QkNorms::None)?,
        ffn_norm: find.norm_called("ffn_norm")?,
        ffn: find.feed_forward()?,
        ..Layer::default()
    })
}
