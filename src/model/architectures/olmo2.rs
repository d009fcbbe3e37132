//! OLMo 2 and 3 (arXiv:2501.00656): norms stand behind attention and feed-forward layer instead of before them, and over
//! all heads of Q and of K together. OLMo 3 has windows in three of four layers, whose rotation is not stretched.

use super::decoder;
use crate::model::architecture::Architecture;
use crate::model::config::Config;
use crate::model::error::ModelError;
use crate::model::header::Header;
use crate::model::rope::Rope;
use crate::model::step::Pairing;
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::Layer;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors, ..Architecture::new("olmo2", decoder::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    config.has_branch = true;
    config.style.pairing = Pairing::Halves;
    if let Some(windows) = header.windows(4)? {
        header.set_windows(&mut config, windows, |full: &Rope, _| full.unscaled(full.base))?;
    }
    Ok(config)
}

fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    Ok(Layer {
        mixer: find.attention(QkNorms::Whole)?,
        attn_post_norm: find.norm("post_attention_norm")?,
        ffn: find.feed_forward()?,
        ffn_post_norm: find.norm("post_ffw_norm")?,
        ..Layer::default()
    })
}
