//! Orion (arXiv:2401.12246): Llama with LayerNorm with biases, and rotary pairs half a head apart.

use super::qwen2;
use crate::kernels::NormKind;
use crate::model::architecture::Architecture;
use crate::model::config::Config;
use crate::model::error::ModelError;
use crate::model::header::Header;

pub(super) const ARCHITECTURE: Architecture = Architecture { config, ..Architecture::new("orion", qwen2::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    Ok(Config { norm: NormKind::Layer, ..header.decoder()? })
}
