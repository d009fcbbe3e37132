//! Granite with windows (IBM, 2026): Llama with factors for embeddings, scores, what layers add, and logits; sinks in every
//! head (arXiv:2309.17453). The file lists which layers have a window, and which are rotated.

use super::decoder;
use crate::kernels::Window;
use crate::model::architecture::Architecture;
use crate::model::config::Config;
use crate::model::error::ModelError;
use crate::model::header::{ExpertWidth, Header, Routing};
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::Layer;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors, ..Architecture::new("granite_swa", decoder::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    config.logit_scale = header.required_float("logit_scale")?.recip();
    config.residual_scale = header.positive("residual_scale")?.unwrap_or(1.0);
    config.embedding_scale = header.positive("embedding_scale")?.unwrap_or(1.0);
    let (len, layers) = header.listed_windows()?;
    config.set_windows(Window::Sliding(len), &layers);
    let scale = header.positive("attention.scale")?;
    let rotated = header.flags_if_there("attention.rope_pattern")?;
    for (index, layer) in config.layers.iter_mut().enumerate() {
        let Some(attention) = layer.attention_mut() else { continue };
        attention.scale = scale.unwrap_or(attention.scale);
        attention.rope = attention.rope.filter(|_| rotated.as_ref().is_none_or(|rotated| rotated[index]));
    }
    if let Some(experts) = header.experts(Routing { width: ExpertWidth::Dense, ..Routing::SOFTMAX })? {
        config.set_experts(0, experts);
    }
    Ok(config)
}

fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    let mut layer = find.pre_norm_layer_with(QkNorms::None, "ffn_norm")?;
    find.sinks(&mut layer)?;
    Ok(layer)
}
