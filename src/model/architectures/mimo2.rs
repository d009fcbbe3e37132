//! MiMo-V2 (Xiaomi): values are shorter than keys, multiplied by a constant; most layers have a window and other numbers of
//! heads, and a sink in every head (arXiv:2309.17453) takes weight that no position should have. All layers but the first
//! have experts that are chosen by the sigmoid of their score plus a bias.

use super::qwen2;
use crate::model::architecture::Architecture;
use crate::model::config::{Config, LAYERS_MAX};
use crate::model::error::ModelError;
use crate::model::header::{Header, Routing};
use crate::model::rope::Rope;
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::Layer;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors, ..Architecture::new("mimo2", qwen2::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    header.refuse_yarn(&config)?;
    let rope = |full: &Rope, base: Option<f32>| full.unstretched(base.unwrap_or(10_000.0));
    header.set_windows(&mut config, header.listed_windows()?, rope)?;
    if let Some(scale) = header.positive("attention.value_scale")? {
        config.layers.iter_mut().filter_map(|layer| layer.attention_mut()).for_each(|attn| attn.value_scale = scale);
    }
    let n_dense = header.optional("leading_dense_block_count", 1, LAYERS_MAX)?;
    config.set_experts(n_dense, header.required_experts(Routing { normalised: Some(true), ..Routing::SIGMOID })?);
    Ok(config)
}

fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    let mut layer = find.pre_norm_layer_with(QkNorms::None, "ffn_norm")?;
    if find.has("attn_sinks.weight") {
        find.sinks(&mut layer)?;
    }
    Ok(layer)
}
