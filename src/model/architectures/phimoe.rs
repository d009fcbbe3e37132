//! Phi-3.5-MoE (arXiv:2404.14219): Phi-3 with biases in its norms and maps, and experts in every layer. Norms and the choice of
//! experts are those of llama.cpp: RMSNorm, and the softmax over those chosen.

use super::qwen2;
use crate::model::architecture::Architecture;
use crate::model::config::Config;
use crate::model::error::ModelError;
use crate::model::header::{ExpertWidth, Header, Routing};

pub(super) const ARCHITECTURE: Architecture = Architecture { config, ..Architecture::new("phimoe", qwen2::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    // As in Phi-3, the window is left out.
    header.accept("attention.sliding_window");
    let mut config = header.decoder()?;
    config.set_experts(0, header.required_experts(Routing { width: ExpertWidth::Dense, ..Routing::SOFTMAX })?);
    Ok(config)
}
