//! Hunyuan 3 (Tencent, 2026): attention as in Qwen3; the first layer is dense, in the others experts are chosen as in
//! DeepSeek-V3, and one more meets every token.

use super::{qwen2, qwen3};
use crate::model::architecture::Architecture;
use crate::model::config::{Config, LAYERS_MAX};
use crate::model::error::ModelError;
use crate::model::header::{Header, Routing};

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors: qwen3::tensors, ..Architecture::new("hy_v3", qwen2::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let (mut config, mut experts) = (header.decoder()?, header.required_experts(Routing::SIGMOID)?);
    if experts.n_ff_shared == 0 {
        experts.n_ff_shared = experts.n_ff;
    }
    // Files do not say it; if a model has others, their tensors are missed by name.
    let n_dense = header.optional("leading_dense_block_count", 1, LAYERS_MAX)?;
    config.set_experts(n_dense, experts);
    Ok(config)
}
