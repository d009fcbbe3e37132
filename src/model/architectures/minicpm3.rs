//! MiniCPM3 (arXiv:2404.06395): dense, with latent attention whose rotated pairs are halves, LongRoPE, and the scales of a
//! model that was tuned at a width of 256.

use super::deepseek2;
use crate::model::architecture::Architecture;
use crate::model::config::{Config, MixerConfig, Pairing};
use crate::model::error::ModelError;
use crate::model::header::Header;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors: deepseek2::tensors, ..Architecture::new("minicpm3", deepseek2::layer) };

/// Files do not have these numbers, which are those of the one published size.
const EMBEDDING_SCALE: f32 = 12.0;
const DEPTH_SCALE: f32 = 1.4;
const BASE_WIDTH: f32 = 256.0;

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    let latent = MixerConfig::Latent(header.latent(&config)?);
    config.layers.iter_mut().for_each(|layer| layer.mixer = latent);
    config.style.pairing = Pairing::Halves;
    config.embedding_scale = EMBEDDING_SCALE;
    config.residual_scale = DEPTH_SCALE / (header.n_layers as f32).sqrt();
    config.logit_scale = BASE_WIDTH / config.n_embd as f32;
    Ok(config)
}
