//! Gemma (arXiv:2403.08295): Llama with GeGLU, heads rotated in halves, and an embedding that is scaled.

use super::decoder;
use crate::model::architecture::Architecture;
use crate::model::config::Config;
use crate::model::error::ModelError;
use crate::model::header::Header;
use crate::model::step::{Activation, Pairing};

pub(super) const ARCHITECTURE: Architecture = Architecture { config, ..Architecture::new("gemma", decoder::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    config.embedding_scale = (config.n_embd as f32).sqrt();
    (config.style.pairing, config.style.activation) = (Pairing::Halves, Activation::Gelu);
    Ok(config)
}
