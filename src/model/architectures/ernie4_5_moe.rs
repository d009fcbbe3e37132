//! ERNIE 4.5 with experts (Baidu, 2025): Llama, dense in its first layers; in the others experts are chosen by the softmax
//! of their scores plus a bias, weighed by the softmax alone, and one more meets every token.

use super::llama;
use crate::model::architecture::Architecture;
use crate::model::config::Config;
use crate::model::error::ModelError;
use crate::model::header::{Header, Routing};

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, ..Architecture::new("ernie4_5-moe", llama::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    // Published models have experts in every layer behind the dense ones.
    header.optional("interleave_moe_layer_step", 1, 1)?;
    header.decoder_with_experts(Routing::SOFTMAX)
}
