//! PLM (arXiv:2503.12167): dense, latent attention with queries of the stream, and a feed-forward part of squared ReLU
//! without a gate.

use super::deepseek2;
use crate::kernels::Activation;
use crate::model::architecture::Architecture;
use crate::model::config::{Config, MixerConfig};
use crate::model::error::ModelError;
use crate::model::header::Header;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors: deepseek2::tensors, ..Architecture::new("plm", deepseek2::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    let latent = MixerConfig::Latent(header.latent(&config)?);
    config.layers.iter_mut().for_each(|layer| layer.mixer = latent);
    config.style.activation = Activation::ReluSquared;
    config.gated_ffn = false;
    Ok(config)
}
