//! Maincoder (Maincode, 2025): Qwen3 with rotary pairs of neighbours; heads are normed behind their rotation.

use super::{llama, qwen3};
use crate::model::architecture::Architecture;
use crate::model::config::{Config, LayerConfig};
use crate::model::error::ModelError;
use crate::model::header::Header;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors: qwen3::tensors, ..Architecture::new("maincoder", llama::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    config.layers.iter_mut().filter_map(LayerConfig::attention_mut).for_each(|attn| attn.normed_after_rope = true);
    Ok(config)
}
