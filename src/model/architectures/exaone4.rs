//! EXAONE 4 (arXiv:2507.11407): OLMo 2's order of norms, but on every head of Q and K. The large model has windows in three
//! of four layers, and those alone are rotated.

use super::decoder;
use crate::kernels::Window;
use crate::model::architecture::Architecture;
use crate::model::config::Config;
use crate::model::error::ModelError;
use crate::model::header::Header;
use crate::model::step::Pairing;
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::Layer;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors, ..Architecture::new("exaone4", decoder::layer) };

/// Layers of the large model.
const LARGE: usize = 64;

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    config.has_branch = true;
    config.style.pairing = Pairing::Halves;
    let len = header.optional("attention.sliding_window", 4096, 1 << 30)?;
    if config.n_layers() == LARGE {
        config.set_windows(Window::Sliding(len), &header.layers_with_window(4)?);
        config.rotate_windows_alone();
    }
    Ok(config)
}

fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    Ok(Layer {
        mixer: find.attention(QkNorms::PerHead)?,
        attn_post_norm: find.norm("post_attention_norm")?,
        ffn: find.feed_forward()?,
        ffn_post_norm: find.norm("post_ffw_norm")?,
        ..Layer::default()
    })
}
