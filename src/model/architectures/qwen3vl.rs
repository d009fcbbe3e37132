//! The language model of Qwen3-VL (arXiv:2511.21631): Qwen3, rotated by positions in time, height and width in turn, which
//! are the same in text. What its first layers get of images besides has no place in text.

use super::{qwen2, qwen3};
use crate::model::architecture::Architecture;
use crate::model::config::Config;
use crate::model::error::ModelError;
use crate::model::header::Header;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors: qwen3::tensors, ..Architecture::new("qwen3vl", qwen2::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let config = header.decoder()?;
    header.check_interleaved_sections(config.ropes[0].dim / 2)?;
    Ok(config)
}
