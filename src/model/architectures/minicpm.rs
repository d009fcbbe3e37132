//! MiniCPM 1, 2 and 4 (arXiv:2404.06395): Llama with embeddings, logits and what layers add scaled.

use super::llama;
use crate::model::architecture::Architecture;
use crate::model::config::Config;
use crate::model::error::ModelError;
use crate::model::header::Header;

pub(super) const ARCHITECTURE: Architecture = Architecture { config, ..Architecture::new("minicpm", llama::layer) };

/// What files that do not say mean: the numbers of the first models.
const EMBEDDING_SCALE: f32 = 12.0;
const DEPTH_SCALE: f32 = 1.4;
const BASE_WIDTH: f32 = 256.0;

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    config.embedding_scale = header.positive("embedding_scale")?.unwrap_or(EMBEDDING_SCALE);
    config.residual_scale = header.positive("residual_scale")?.unwrap_or(DEPTH_SCALE / (header.n_layers as f32).sqrt());
    config.logit_scale = header.positive("logit_scale")?.unwrap_or(config.n_embd as f32 / BASE_WIDTH).recip();
    Ok(config)
}
