//! dots.llm1 (arXiv:2506.05767): attention as in Qwen3, without sharing of keys and values; the first layers are dense, in the
//! others experts are chosen as in DeepSeek-V3, and two more meet every token.

use super::{qwen2, qwen3};
use crate::model::architecture::Architecture;
use crate::model::header::Routing;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    config: |header| header.decoder_with_experts(Routing::SIGMOID),
    tensors: qwen3::tensors,
    ..Architecture::new("dots1", qwen2::layer)
};
