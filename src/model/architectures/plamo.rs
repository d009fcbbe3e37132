//! PLaMo (Preferred Networks, 2023): attention and the feed-forward part beside each other behind one norm; rotary pairs half
//! a head apart.

use super::decoder;
use crate::model::architecture::Architecture;
use crate::model::config::{Config, Residual, Style};
use crate::model::error::ModelError;
use crate::model::header::Header;
use crate::model::step::{Activation, Pairing};
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::Layer;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors, ..Architecture::new("plamo", decoder::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let style = Style { pairing: Pairing::Halves, activation: Activation::Silu, residual: Residual::Parallel };
    Ok(Config { style, ..header.decoder()? })
}

fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    Ok(Layer {
        attn_norm: find.norm("attn_norm")?,
        mixer: find.attention(QkNorms::None)?,
        ffn_norm: find.norm_if_there("ffn_norm")?,
        ffn: find.feed_forward()?,
        ..Layer::default()
    })
}
