//! AFM (Arcee, 2025): Llama with a feed-forward part without a gate, of squared ReLU (arXiv:2109.08668).

use super::decoder;
use crate::model::architecture::Architecture;
use crate::model::config::Config;
use crate::model::error::ModelError;
use crate::model::header::Header;
use crate::model::step::Activation;

pub(super) const ARCHITECTURE: Architecture = Architecture { config, ..Architecture::new("arcee", decoder::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    (config.style.activation, config.gated_ffn) = (Activation::ReluSquared, false);
    Ok(config)
}
