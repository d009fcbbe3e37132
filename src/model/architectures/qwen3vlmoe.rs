//! Qwen3-VL with experts: [`super::qwen3vl`], its feed-forward part that of `qwen3moe`.

use super::{qwen2, qwen3, qwen3moe};
use crate::model::architecture::Architecture;
use crate::model::config::Config;
use crate::model::error::ModelError;
use crate::model::header::Header;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors: qwen3::tensors, ..Architecture::new("qwen3vlmoe", qwen2::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let config = qwen3moe::config(header)?;
    header.check_interleaved_sections(config.ropes[0].dim / 2)?;
    Ok(config)
}
