//! DBRX (Databricks, 2024): LayerNorm without biases, queries, keys and values kept within bounds, and experts in every layer.

use super::decoder;
use crate::kernels::NormKind;
use crate::model::architecture::Architecture;
use crate::model::config::{Config, Pairing};
use crate::model::error::ModelError;
use crate::model::header::{ExpertWidth, Header, Routing};
use crate::model::tensors::QkNorms;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    config,
    tensors: |find| find.pre_norm_layer_with(QkNorms::None, "attn_output_norm"),
    ..Architecture::new("dbrx", decoder::layer)
};

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    config.norm = NormKind::Layer;
    config.style.pairing = Pairing::Halves;
    let clamp = header.positive("attention.clamp_kqv")?;
    config.layers.iter_mut().filter_map(|layer| layer.attention_mut()).for_each(|attn| attn.clamp = clamp);
    let routing = Routing { width: ExpertWidth::Dense, ..Routing::SOFTMAX };
    config.set_experts(0, header.required_experts(routing)?);
    Ok(config)
}
