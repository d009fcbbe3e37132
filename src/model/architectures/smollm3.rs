//! SmolLM3 (Hugging Face, 2025): Llama, where every fourth layer does not rotate its heads (NoPE, arXiv:2501.18795).

use super::llama;
use crate::model::architecture::Architecture;
use crate::model::config::Config;
use crate::model::error::ModelError;
use crate::model::header::Header;

pub(super) const ARCHITECTURE: Architecture = Architecture { config, ..Architecture::new("smollm3", llama::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    for attn in config.layers.iter_mut().skip(3).step_by(4).filter_map(|layer| layer.attention_mut()) {
        attn.rope = None;
    }
    Ok(config)
}
