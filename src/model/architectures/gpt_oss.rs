//! gpt-oss (arXiv:2508.10925): biases everywhere; every second layer sees only a window, and a sink in every head takes
//! weight that no position should have (arXiv:2309.17453). Experts clamp their SwiGLU; they are weighed by the softmax over
//! those chosen.

use crate::model::architecture::Architecture;
use crate::model::config::{Config, Gating};
use crate::model::error::ModelError;
use crate::model::header::{Header, Routing};
use crate::model::rope::Rope;
use crate::model::step::{Activation, ForwardPass, Pairing};
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::Layer;

pub(super) const ARCHITECTURE: Architecture = Architecture { config, tensors, ..Architecture::new("gpt-oss", layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    if let Some(windows) = header.windows(2)? {
        let rope = |full: &Rope, base: Option<f32>| Rope { base: base.unwrap_or(full.base), ..full.clone() };
        header.set_windows(&mut config, windows, rope)?;
    }
    let routing = Routing { gating: Gating::SoftmaxOfChosen, ..Routing::SOFTMAX };
    config.set_experts(0, header.required_experts(routing)?);
    Ok(config)
}

fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    find.require_biases();
    let mut layer = find.pre_norm_layer_with(QkNorms::None, "post_attention_norm")?;
    find.sinks(&mut layer)?;
    Ok(layer)
}

/// One layer.
fn layer(pass: &mut ForwardPass<'_, '_>, index: usize, w: &Layer) {
    let attn = w.attention();
    pass.norm(&w.attn_norm, &attn.q.weight);
    pass.project_qkv(attn);
    pass.prepare_heads(index, attn, Pairing::Halves);
    pass.attend(index, attn);
    pass.keep_output_rows(index);
    pass.add_product(&attn.output);

    pass.add_feed_forward(&w.ffn_norm, &w.ffn, Activation::SwigluClamped);
}
