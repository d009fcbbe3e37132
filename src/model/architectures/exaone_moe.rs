//! K-EXAONE (LG AI Research, 2026): Qwen3's attention with windows in three of four layers, which alone are rotated. The
//! first layers are dense, the others have experts and one that meets every token.

use super::{qwen2, qwen3};
use crate::kernels::Window;
use crate::model::architecture::Architecture;
use crate::model::config::{Config, LAYERS_MAX};
use crate::model::error::ModelError;
use crate::model::header::{Header, Routing};

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors: qwen3::tensors, ..Architecture::new("exaone-moe", qwen2::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    let (len, layers) = header.required_windows(4)?;
    config.set_windows(Window::Sliding(len), &layers);
    config.rotate_windows_alone();
    let n_dense = header.count("leading_dense_block_count", LAYERS_MAX)?;
    let mut experts = header.required_experts(Routing::SIGMOID)?;
    if experts.n_ff_shared == 0 {
        experts.n_ff_shared = experts.n_ff;
    }
    config.set_experts(n_dense, experts);
    Ok(config)
}
