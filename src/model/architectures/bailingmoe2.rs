//! Ling 2 and Ring 2 (arXiv:2510.22115): half of every head is rotated, behind norms of Q and K; the first layers are dense,
//! in the others experts are chosen as in DeepSeek-V3, from the best groups.

use super::{qwen2, qwen3};
use crate::model::architecture::Architecture;
use crate::model::config::{Config, FfnConfig, WIDTH_MAX};
use crate::model::error::ModelError;
use crate::model::header::{Header, Routing};

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors: qwen3::tensors, ..Architecture::new("bailingmoe2", qwen2::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder_with_experts(Routing::SIGMOID)?;
    // The width that the file gives is that of each shared expert.
    let n_shared = match header.count("expert_shared_feed_forward_length", WIDTH_MAX)? {
        0 => 1,
        _ => header.number("expert_shared_count", 64)?,
    };
    for layer in &mut config.layers {
        if let FfnConfig::Experts(experts) = &mut layer.ffn {
            experts.n_ff_shared *= n_shared;
        }
    }
    Ok(config)
}
