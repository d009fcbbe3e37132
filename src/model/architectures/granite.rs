//! Granite (arXiv:2405.04324 and IBM, 2024): Llama with factors of embeddings, of scores, of what layers add to the stream and
//! of logits; with experts one more may meet every token. In Granite 4 most layers have a state space as in Mamba-2 instead of
//! attention.

use super::{llama, mamba2};
use crate::model::architecture::Architecture;
use crate::model::config::{Config, MixerConfig};
use crate::model::error::ModelError;
use crate::model::header::{ExpertWidth, Header, Routing};
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::Layer;

pub(super) const ARCHITECTURE: Architecture = Architecture { config, ..Architecture::new("granite", llama::layer) };

/// The same under another name.
pub(super) const WITH_EXPERTS: Architecture = Architecture { name: "granitemoe", ..ARCHITECTURE };

pub(super) const HYBRID: Architecture =
    Architecture { config: hybrid, tensors, ..Architecture::new("granitehybrid", mamba2::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    scaled(header, header.decoder()?)
}

/// The numbers of Granite 4, most of whose layers have a state space instead of attention.
fn hybrid(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder_with_headless_layers()?;
    let mamba = header.mamba2()?;
    for layer in config.layers.iter_mut().filter(|layer| layer.attention().is_none()) {
        layer.mixer = MixerConfig::Mamba2(mamba);
    }
    scaled(header, config)
}

fn scaled(header: &Header<'_, '_>, mut config: Config) -> Result<Config, ModelError> {
    set_scales(header, &mut config)?;
    if let Some(experts) = header.experts(Routing { width: ExpertWidth::Dense, ..Routing::SOFTMAX })? {
        config.set_experts(0, experts);
    }
    Ok(config)
}

/// The factors, which are 1 where the file has none, and whether heads are rotated. Logits are divided by theirs.
pub(super) fn set_scales(header: &Header<'_, '_>, config: &mut Config) -> Result<(), ModelError> {
    let factor = |suffix| Ok::<_, ModelError>(header.positive(suffix)?.unwrap_or(1.0));
    config.embedding_scale = factor("embedding_scale")?;
    config.residual_scale = factor("residual_scale")?;
    config.logit_scale = factor("logit_scale")?.recip();
    header.set_attention_scale(config)?;
    if header.flag_if_there("rope.scaling.finetuned")? == Some(false) {
        config.do_not_rotate();
    }
    Ok(())
}

fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    Ok(Layer {
        attn_norm: find.norm("attn_norm")?,
        mixer: find.attention_or_mamba(QkNorms::None)?,
        ffn_norm: find.norm("ffn_norm")?,
        ffn: find.feed_forward()?,
        ..Layer::default()
    })
}
