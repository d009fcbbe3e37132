//! Ling and Ring with experts (arXiv:2503.05139): Llama, the scores of whose experts become a softmax over all, scaled if the
//! file says so; some more experts meet every token.

use super::llama;
use crate::model::architecture::Architecture;
use crate::model::header::Routing;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    config: |header| header.decoder_with_experts(Routing { normalised: None, ..Routing::SOFTMAX }),
    ..Architecture::new("bailingmoe", llama::layer)
};
