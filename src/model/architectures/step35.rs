//! Step 3.5 (StepFun, 2026): Laguna's order of operations with sigmoid gates for each head; half of what windows rotate of a
//! head is rotated in layers that see everything. Experts of the last layers limit their SwiGLU.

use super::decoder;
use crate::kernels::Activation;
use crate::model::architecture::Architecture;
use crate::model::config::{Config, FfnConfig, LAYERS_MAX, OutputGate};
use crate::model::error::ModelError;
use crate::model::header::{Header, Routing};
use crate::model::rope::Rope;
use crate::model::step::Pairing;
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::Layer;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors, ..Architecture::new("step35", decoder::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    config.style.pairing = Pairing::Halves;
    config.set_gate(OutputGate::Sigmoid);
    header.refuse_yarn(&config)?;
    let dim = header.rope_dim_of_windows(&config)?;
    match config.ropes[0].dim / 2 {
        half if half.is_multiple_of(2) => config.ropes[0].dim = half,
        half => return header.unsupported("rope.dimension_count", format!("twice {half}")),
    }
    let rope = |full: &Rope, base: Option<f32>| Rope { dim, ..full.unstretched(base.unwrap_or(10_000.0)) };
    header.set_windows(&mut config, header.listed_windows()?, rope)?;
    if header.optional("moe_every_n_layers", 1, LAYERS_MAX)? > 1 {
        return header.unsupported("moe_every_n_layers", "more than 1".to_owned());
    }
    let n_dense = header.count("leading_dense_block_count", LAYERS_MAX)?;
    config.set_experts(n_dense, header.required_experts(Routing::SIGMOID)?);
    for (i, key) in ["swiglu_clamp_exp", "swiglu_clamp_shexp"].into_iter().enumerate() {
        let limits = header.floats(key)?.unwrap_or_default();
        for (layer, limit) in config.layers.iter_mut().zip(limits).filter(|(_, limit)| *limit > 0.0) {
            match &mut layer.ffn {
                FfnConfig::Experts(experts) => experts.activations[i] = Some(Activation::LimitedSwiglu(limit)),
                _ => return header.unsupported(key, format!("{limit} in a layer without experts")),
            }
        }
    }
    Ok(config)
}

fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    find.pre_norm_layer_with(QkNorms::PerHeadIfThere, "ffn_norm")
}
