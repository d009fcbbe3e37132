//! Hunyuan, dense (Tencent, 2025): Qwen3, but heads of Q and K are rotated before they are normed.

use super::{qwen2, qwen3};
use crate::model::architecture::Architecture;
use crate::model::config::Config;
use crate::model::error::ModelError;
use crate::model::header::Header;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors: qwen3::tensors, ..Architecture::new("hunyuan-dense", qwen2::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    // Rotation aware of the neural tangent kernel: base * alpha^(d / (d - 2)). Most files have the product in the base.
    let key = "rope.scaling.alpha";
    if let Some(alpha) = header.positive(key)? {
        let dim = config.attention_max(|attn| attn.key_dim) as f32;
        let base = config.ropes[0].base * alpha.powf(dim / (dim - 2.0));
        if !base.is_finite() || base <= 1.0 {
            return header.unsupported(key, alpha.to_string());
        }
        config.ropes[0].base = base;
    }
    rotate_first(&mut config);
    Ok(config)
}

/// Rotation comes before the norms of Q and K.
pub(super) fn rotate_first(config: &mut Config) {
    config.layers.iter_mut().filter_map(|layer| layer.attention_mut()).for_each(|attn| attn.normed_after_rope = true);
}
