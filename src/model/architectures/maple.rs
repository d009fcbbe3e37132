//! Maple (2026): Qwen3 with experts, whose SwiGLU is of limited values, made for ternary weights. Most layers have a window,
//! and those alone are rotated.

use super::{qwen2, qwen3};
use crate::kernels::Activation;
use crate::model::architecture::Architecture;
use crate::model::config::{Config, FfnConfig};
use crate::model::error::ModelError;
use crate::model::header::{Header, Routing};
use crate::model::rope::Rope;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors: qwen3::tensors, ..Architecture::new("maple", qwen2::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    let dim = header.rope_dim_of_windows(&config)?;
    let rope = |full: &Rope, base: Option<f32>| Rope { dim, base: base.unwrap_or(full.base), ..full.clone() };
    header.set_windows(&mut config, header.listed_windows()?, rope)?;
    config.rotate_windows_alone();
    config.set_experts(0, header.required_experts(Routing::SOFTMAX)?);
    let limits = header.floats("swiglu_clamp_exp")?.unwrap_or_default();
    for (layer, limit) in config.layers.iter_mut().zip(limits).filter(|(_, limit)| *limit > 0.0) {
        if let FfnConfig::Experts(experts) = &mut layer.ffn {
            experts.activations[0] = Some(Activation::SwigluOfLimited(limit));
        }
    }
    Ok(config)
}
