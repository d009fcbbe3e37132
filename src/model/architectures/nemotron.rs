//! Nemotron-4 and Minitron (arXiv:2407.14679): LayerNorm with biases, a part of every head rotated, and a feed-forward part
//! without a gate, of squared ReLU (arXiv:2109.08668).

use super::decoder;
use crate::kernels::NormKind;
use crate::model::architecture::Architecture;
use crate::model::config::{Config, Residual, Style};
use crate::model::error::ModelError;
use crate::model::header::Header;
use crate::model::step::{Activation, Pairing};

pub(super) const ARCHITECTURE: Architecture = Architecture { config, ..Architecture::new("nemotron", decoder::layer) };

/// Jais 2: the same; heads are rotated as a whole.
pub(super) const JAIS2: Architecture = Architecture { name: "jais2", ..ARCHITECTURE };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let style = Style { pairing: Pairing::Halves, activation: Activation::ReluSquared, residual: Residual::InTurn };
    Ok(Config { style, norm: NormKind::Layer, gated_ffn: false, ..header.decoder()? })
}
