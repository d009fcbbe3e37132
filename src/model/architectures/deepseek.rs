//! DeepSeekMoE (arXiv:2401.06066): Llama, dense in its first layer; the others have many small experts, weighed by the softmax
//! over all of them as it is, and some that every token meets.

use super::llama;
use crate::model::architecture::Architecture;
use crate::model::header::Routing;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    config: |header| header.decoder_with_experts(Routing::SOFTMAX_AS_IS),
    ..Architecture::new("deepseek", llama::layer)
};
