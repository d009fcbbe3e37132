//! Nemotron-H (arXiv:2504.03624) and Nemotron 3: every layer is one of three, a state space as in Mamba-2, attention without
//! rotation, or a feed-forward part, `relu(x)^2` without a gate, which may be experts chosen by the sigmoid of their score plus
//! a bias, and one more that every token meets. In the large models experts work on a narrower copy of the stream.

use super::mamba2;
use crate::model::architecture::Architecture;
use crate::model::config::{Config, FfnConfig, LayerConfig, MixerConfig, WIDTH_MAX};
use crate::model::error::ModelError;
use crate::model::header::{Header, Routing};
use crate::model::step::Activation;
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::Layer;

pub(super) const DENSE: Architecture =
    Architecture { config, tensors, ..Architecture::new("nemotron_h", mamba2::layer) };

pub(super) const WITH_EXPERTS: Architecture =
    Architecture { config: config_with_experts, name: "nemotron_h_moe", ..DENSE };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder_with_headless_layers()?;
    let mamba = header.mamba2()?;
    for layer in &mut config.layers {
        *layer = match *layer {
            LayerConfig { ffn: FfnConfig::None, mixer: MixerConfig::Attention(_) } => continue,
            LayerConfig { ffn: FfnConfig::None, .. } => {
                LayerConfig { mixer: MixerConfig::Mamba2(mamba), ffn: FfnConfig::None }
            }
            LayerConfig { ffn, .. } => LayerConfig { mixer: MixerConfig::None, ffn },
        };
    }
    config.do_not_rotate();
    header.set_attention_scale(&mut config)?;
    config.gated_ffn = false;
    config.style.activation = Activation::ReluSquared;
    Ok(config)
}

/// Pruned models have experts of another width, and choose another number of them, in every layer.
fn config_with_experts(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = config(header)?;
    let widths = header.per_layer("expert_feed_forward_length", WIDTH_MAX)?;
    let used = header.per_layer("expert_used_count", WIDTH_MAX)?.unwrap_or_default();
    let latent = Some(header.count("moe_latent_size", WIDTH_MAX)?).filter(|&width| width > 0);
    for (i, layer) in config.layers.iter_mut().enumerate() {
        let FfnConfig::Dense { n_ff } = layer.ffn else { continue };
        let used = used.get(i).copied().unwrap_or(0);
        let own = widths.as_ref().map(|widths| widths[i]).filter(|&width| width > 0);
        let mut experts = header.experts_of(Routing::SIGMOID, used, own.unwrap_or(n_ff / used.max(1)))?;
        experts.latent = latent;
        layer.ffn = FfnConfig::Experts(experts);
    }
    Ok(config)
}

fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    let norm = find.norm("attn_norm")?;
    let has_mixer = find.layer.mixer != MixerConfig::None;
    let layer = Layer {
        attn_norm: norm.filter(|_| has_mixer),
        mixer: find.attention_or_mamba(QkNorms::None)?,
        ffn_norm: norm.filter(|_| !has_mixer),
        ffn: find.feed_forward()?,
        ..Layer::default()
    };
    find.require_selection_bias(&layer.ffn)?;
    Ok(layer)
}
