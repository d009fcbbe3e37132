//! Gemma 3 (arXiv:2503.19786): five layers with a sliding window to one that sees everything, each kind with its own
//! rotation; norms before and after attention and feed-forward layer, and on every head of Q and K; GeGLU.

use super::decoder;
use crate::model::architecture::Architecture;
use crate::model::config::{Config, Residual, Style};
use crate::model::error::ModelError;
use crate::model::header::Header;
use crate::model::rope::Rope;
use crate::model::step::{Activation, Pairing};
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::Layer;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors, ..Architecture::new("gemma3", decoder::layer) };

/// Of all Gemmas since the second.
pub(super) const STYLE: Style =
    Style { pairing: Pairing::Halves, activation: Activation::Gelu, residual: Residual::InTurn };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    config.has_branch = true;
    config.style = STYLE;
    config.embedding_scale = (config.n_embd as f32).sqrt();
    config.logit_cap = header.positive("final_logit_softcapping")?;
    // Of the published sizes the one with 62 layers alone scales by the width of the stream.
    if config.n_layers() == 62 {
        let n_embd = config.n_embd;
        for attn in config.layers.iter_mut().filter_map(|layer| layer.attention_mut()) {
            attn.scale = ((n_embd / attn.n_heads) as f32).sqrt().recip();
        }
    }
    if let Some(windows) = header.windows(6)? {
        // Layers that see little need no stretching.
        let rope = |full: &Rope, base: Option<f32>| full.unstretched(base.unwrap_or(10_000.0));
        header.set_windows(&mut config, windows, rope)?;
    }
    Ok(config)
}

fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    tensors_with(find, QkNorms::PerHead)
}

pub(super) fn tensors_with(find: &mut LayerTensors<'_, '_>, qk_norms: QkNorms) -> Result<Layer, ModelError> {
    Ok(Layer {
        attn_post_norm: find.norm("post_attention_norm")?,
        ffn_post_norm: find.norm("post_ffw_norm")?,
        ..find.pre_norm_layer_with(qk_norms, "ffn_norm")?
    })
}
