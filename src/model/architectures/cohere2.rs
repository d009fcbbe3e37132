//! Command R7B and Command A (arXiv:2504.00698): Command R with windows in three of four layers, which alone are rotated.

use super::{command_r, decoder};
use crate::kernels::{NormKind, Window};
use crate::model::architecture::Architecture;
use crate::model::config::{Config, Residual};
use crate::model::error::ModelError;
use crate::model::header::Header;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors: command_r::tensors, ..Architecture::new("cohere2", decoder::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    (config.norm, config.style.residual) = (NormKind::Layer, Residual::Parallel);
    config.logit_scale = header.required_float("logit_scale")?;
    let (len, layers) = header.required_windows(4)?;
    config.set_windows(Window::Sliding(len), &layers);
    config.rotate_windows_alone();
    Ok(config)
}
