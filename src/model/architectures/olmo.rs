//! OLMo (arXiv:2402.00838): Llama with LayerNorm without weights, and queries, keys and values kept within bounds.

use super::llama;
use crate::kernels::NormKind;
use crate::model::architecture::Architecture;
use crate::model::config::{Config, LayerConfig};
use crate::model::error::ModelError;
use crate::model::header::Header;
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::Layer;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { output_norm: None, config, tensors, ..Architecture::new("olmo", llama::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = Config { norm: NormKind::Layer, ..header.decoder()? };
    let clamp = header.positive("attention.clamp_kqv")?;
    config.layers.iter_mut().filter_map(LayerConfig::attention_mut).for_each(|attn| attn.clamp = clamp);
    Ok(config)
}

fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    Ok(Layer {
        attn_norm: Some(find.plain_norm()),
        mixer: find.attention(QkNorms::None)?,
        ffn_norm: Some(find.plain_norm()),
        ffn: find.feed_forward()?,
        ..Layer::default()
    })
}
