//! PLaMo 3 (Preferred Networks, 2025): seven layers with a sliding window to one that sees everything; norms before and after
//! attention and feed-forward layer, and on every head of Q and K; gate and up in one matrix.

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
    Architecture { config, tensors, ..Architecture::new("plamo3", decoder::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    (config.style.pairing, config.has_branch) = (Pairing::Halves, true);
    if let Some(windows) = header.windows(8)? {
        if config.ropes[0].yarn.is_some() {
            return header.unsupported("rope.scaling.type", "yarn, beside layers with windows".to_owned());
        }
        header.set_windows(&mut config, windows, |full: &Rope, base| full.unstretched(base.unwrap_or(10_000.0)))?;
    }
    Ok(config)
}

fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    Ok(Layer {
        attn_norm: find.norm("attn_norm")?,
        mixer: find.attention(QkNorms::PerHead)?,
        attn_post_norm: find.norm_called("post_attention_norm")?,
        ffn_norm: find.norm("ffn_norm")?,
        ffn: find.feed_forward_with_gate_in_up()?,
        ffn_post_norm: find.norm_called("post_ffw_norm")?,
        ..Layer::default()
    })
}
