//! Spark 2.5 (iFlytek): attention whose results are multiplied by the sigmoid of a gate for each head; layers with a window
//! have other numbers of heads and a rotation of their own. GeGLU.

use super::decoder;
use crate::model::architecture::Architecture;
use crate::model::config::{Config, OutputGate};
use crate::model::error::ModelError;
use crate::model::header::Header;
use crate::model::rope::Rope;
use crate::model::step::{Activation, Pairing};

pub(super) const ARCHITECTURE: Architecture = Architecture { config, ..Architecture::new("spark2_5", decoder::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    (config.style.pairing, config.style.activation) = (Pairing::Halves, Activation::Gelu);
    config.set_gate(OutputGate::Sigmoid);
    let dim = header.rope_dim_of_windows(&config)?;
    let rope = |full: &Rope, base: Option<f32>| Rope { dim, base: base.unwrap_or(full.base), ..full.clone() };
    header.set_windows(&mut config, header.listed_windows()?, rope)?;
    Ok(config)
}
