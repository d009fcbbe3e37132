//! Qwen3 with experts (arXiv:2505.09388, section 2): attention as in the dense model; the feed-forward layer is the sum of
//! the few experts that the router scores highest, `sum_k p_k * down_k(silu(gate_k(x)) * up_k(x))`, where `p` is the
//! softmax over all experts, taken at those chosen and scaled to the sum 1.

use super::{qwen2, qwen3};
use crate::model::architecture::Architecture;
use crate::model::config::Config;
use crate::model::error::ModelError;
use crate::model::header::{ExpertWidth, Header, Routing};

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors: qwen3::tensors, ..Architecture::new("qwen3moe", qwen2::layer) };

pub(super) fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    config.set_experts(0, header.required_experts(Routing { width: ExpertWidth::OwnOrShare, ..Routing::SOFTMAX })?);
    Ok(config)
}
