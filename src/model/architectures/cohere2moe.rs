//! Command A with experts (Cohere, 2026): of every four layers the first sees everything. The first layers are dense and
//! rotated; of the others windows alone are. Of a shared expert and those chosen half of the sum counts.

use super::{command_r, decoder};
use crate::kernels::{NormKind, Window};
use crate::model::architecture::Architecture;
use crate::model::config::{Config, LAYERS_MAX, Residual};
use crate::model::error::ModelError;
use crate::model::header::{ExpertWidth, Header, Routing};

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors: command_r::tensors, ..Architecture::new("cohere2moe", decoder::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    if header.positive("attention.layer_norm_rms_epsilon")?.is_none() {
        config.norm = NormKind::Layer;
    }
    config.style.residual = Residual::Parallel;
    config.logit_scale = header.required_float("logit_scale")?;
    let n_dense = header.number("leading_dense_block_count", LAYERS_MAX)?;
    let len = header.number("attention.sliding_window", 1 << 30)?;
    config.set_windows(Window::Sliding(len), &header.window_pattern(4, |_| 0)?);
    for attn in config.layers.iter_mut().skip(n_dense).filter_map(|layer| layer.attention_mut()) {
        attn.rope = attn.rope.filter(|_| attn.window.is_some());
    }
    let mut experts = header.required_experts(Routing { width: ExpertWidth::OwnOrDense, ..Routing::SIGMOID })?;
    if experts.n_ff_shared > 0 {
        (experts.scale, experts.shared_scale) = (0.5 * experts.scale, 0.5);
    }
    config.set_experts(n_dense, experts);
    Ok(config)
}
