//! Command R (Cohere, 2024): Llama with LayerNorm, whose result both attention and the feed-forward part read: what they add
//! to the stream is added together. Logits are scaled.

use super::decoder;
use crate::kernels::NormKind;
use crate::model::architecture::Architecture;
use crate::model::config::{Config, Residual};
use crate::model::error::ModelError;
use crate::model::header::Header;
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::Layer;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors, ..Architecture::new("command-r", decoder::layer) };

/// Layers from which on heads are normed, each with weights of its own.
const NORMED_FROM: usize = 64;

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    if config.n_layers() >= NORMED_FROM {
        return header.unsupported("block_count", format!("{}, with norms of each head", config.n_layers()));
    }
    (config.norm, config.style.residual) = (NormKind::Layer, Residual::Parallel);
    config.logit_scale = header.positive("logit_scale")?.unwrap_or(1.0);
    Ok(config)
}

pub(super) fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    Ok(Layer {
        attn_norm: find.norm("attn_norm")?,
        mixer: find.attention(QkNorms::None)?,
        ffn: find.feed_forward()?,
        ..Layer::default()
    })
}
