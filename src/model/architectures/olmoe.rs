//! OLMoE (arXiv:2409.02060): Q and K are each normed over all heads together; every layer has experts, weighed by the softmax
//! over all of them as it is.

use super::decoder;
use crate::model::architecture::Architecture;
use crate::model::config::{Config, Pairing};
use crate::model::error::ModelError;
use crate::model::header::{ExpertWidth, Header, Routing};
use crate::model::tensors::QkNorms;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    config,
    tensors: |find| find.pre_norm_layer_with(QkNorms::Whole, "ffn_norm"),
    ..Architecture::new("olmoe", decoder::layer)
};

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    config.style.pairing = Pairing::Halves;
    let routing = Routing { width: ExpertWidth::Dense, ..Routing::SOFTMAX_AS_IS };
    config.set_experts(0, header.required_experts(routing)?);
    Ok(config)
}
