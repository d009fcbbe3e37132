//! Qwen3-Next and Qwen3-Coder-Next: as `qwen35moe`, but for the value heads of a key head, which lie together.

use super::{qwen35, qwen35moe};
use crate::model::architecture::Architecture;
use crate::model::config::{Config, HeadOrder};
use crate::model::error::ModelError;
use crate::model::header::Header;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors: qwen35moe::tensors, ..Architecture::new("qwen3next", qwen35::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    qwen35moe::with_experts(header, HeadOrder::Grouped)
}
