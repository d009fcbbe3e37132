//! Mamba (arXiv:2312.00752) and Falcon Mamba: every layer is a selective state space alone, in which every channel has rates of its
//! own. Jamba (arXiv:2403.19887) has attention without rotation in some layers, and feed-forward parts, some of them experts.

use super::mamba2;
use crate::model::architecture::Architecture;
use crate::model::config::{Config, FfnConfig, LayerConfig, MixerConfig};
use crate::model::error::ModelError;
use crate::model::header::{ExpertWidth, Header, Routing};
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::Layer;

pub(super) const MAMBA: Architecture =
    Architecture { config, tensors: mamba2::tensors, ..Architecture::new("mamba", mamba2::layer) };

pub(super) const JAMBA: Architecture =
    Architecture { config: jamba, tensors: jamba_tensors, ..Architecture::new("jamba", mamba2::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder_with_headless_layers()?;
    config.layers.fill(LayerConfig { mixer: MixerConfig::Mamba(header.mamba()?), ffn: FfnConfig::None });
    Ok(config)
}

fn jamba(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder_with_headless_layers()?;
    let mamba = header.mamba()?;
    for layer in config.layers.iter_mut().filter(|layer| layer.attention().is_none()) {
        layer.mixer = MixerConfig::Mamba(mamba);
    }
    config.do_not_rotate();
    let routing = Routing { normalised: Some(false), width: ExpertWidth::Dense, ..Routing::SOFTMAX };
    if let Some(experts) = header.experts(routing)? {
        // Which layers have a router is known from tensors alone.
        config.layers.iter_mut().for_each(|layer| layer.ffn = FfnConfig::ExpertsIfRouted(experts));
    }
    Ok(config)
}

fn jamba_tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    Ok(Layer {
        attn_norm: find.norm("attn_norm")?,
        mixer: find.attention_or_mamba(QkNorms::None)?,
        ffn_norm: find.norm("ffn_norm")?,
        ffn: find.feed_forward()?,
        ..Layer::default()
    })
}
