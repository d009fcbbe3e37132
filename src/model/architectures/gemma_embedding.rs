//! EmbeddingGemma (arXiv:2509.20354): Gemma 3 whose tokens see the whole text, or half a window on either side.

use super::{decoder, gemma3};
use crate::model::architecture::Architecture;
use crate::model::config::Config;
use crate::model::error::ModelError;
use crate::model::header::Header;
use crate::model::rope::Rope;
use crate::model::tensors::QkNorms;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    config,
    tensors: |find| gemma3::tensors_with(find, QkNorms::PerHead),
    ..Architecture::new("gemma-embedding", decoder::layer)
};

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    config.has_branch = true;
    config.style = gemma3::STYLE;
    config.embedding_scale = (config.n_embd as f32).sqrt();
    let rope = |full: &Rope, base: Option<f32>| full.unstretched(base.unwrap_or(10_000.0));
    header.set_windows(&mut config, header.required_windows(6)?, rope)?;
    config.see_both_ways();
    Ok(config)
}
