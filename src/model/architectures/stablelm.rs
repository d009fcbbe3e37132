//! StableLM (arXiv:2402.17834): LayerNorm, a part of every head rotated, in pairs half of it apart. In the 12B every head of
//! Q and K has a norm with weights of its own, and attention and feed-forward part stand beside each other behind one norm;
//! tensors tell, the header's key does not.

use super::decoder;
use crate::kernels::NormKind;
use crate::model::architecture::Architecture;
use crate::model::config::{Config, Residual};
use crate::model::error::ModelError;
use crate::model::header::Header;
use crate::model::step::{ForwardPass, Pairing};
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::Layer;

pub(super) const ARCHITECTURE: Architecture = Architecture { config, tensors, ..Architecture::new("stablelm", layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = Config { norm: NormKind::Layer, has_branch: true, ..header.decoder()? };
    config.style.pairing = Pairing::Halves;
    Ok(config)
}

fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    Ok(Layer {
        attn_norm: find.norm("attn_norm")?,
        mixer: find.attention(QkNorms::EachHeadIfThere)?,
        ffn_norm: find.norm_if_there("ffn_norm")?,
        ffn: find.feed_forward()?,
        ..Layer::default()
    })
}

/// One layer.
fn layer(pass: &mut ForwardPass<'_, '_>, index: usize, w: &Layer) {
    let mut style = pass.config.style;
    if w.ffn_norm.is_none() {
        style.residual = Residual::Parallel;
    }
    decoder::layer_in(style, pass, index, w);
}
