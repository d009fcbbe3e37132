//! Hunyuan with experts (arXiv:2411.02265, Hunyuan-A13B): attention as in the dense model; experts are weighed by the softmax
//! over those chosen, and one more meets every token.

use super::{hunyuan_dense, qwen2, qwen3};
use crate::model::architecture::Architecture;
use crate::model::config::Config;
use crate::model::error::ModelError;
use crate::model::header::{ExpertWidth, Header, Routing};

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors: qwen3::tensors, ..Architecture::new("hunyuan-moe", qwen2::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let routing = Routing { width: ExpertWidth::Dense, ..Routing::SOFTMAX };
    let mut config = header.decoder_with_shared_expert(routing)?;
    hunyuan_dense::rotate_first(&mut config);
    Ok(config)
}
