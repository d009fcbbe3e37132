//! gpt-oss (arXiv:2508.10925): biases everywhere; every second layer sees only a window, and a sink in every head takes
//! weight that no position should have (arXiv:2309.17453). Experts clamp their SwiGLU; they are weighed by the softmax over
//! those chosen.

use super::step::{Activation, HeadSteps, Pairing, Pass};
use super::weights::{Layer, Presence, Tensors};

pub(super) const TENSORS: Tensors = Tensors {
    qkv_biases: Presence::Always,
    sinks: true,
    attn_output_bias: Presence::Always,
    ffn_norm: "post_attention_norm",
    expert_biases: true,
    rope_factors: false,
    ..Tensors::PLAIN
};

/// One layer.
pub(super) fn layer(pass: &mut Pass<'_, '_>, index: usize, w: &Layer) {
    pass.norm(&w.attn_norm, &w.q);
    pass.project_qkv(&w.q, &w.k, &w.v);
    pass.prepare_heads(index, &HeadSteps { biases: w.biases.as_ref(), norms: None, pairing: Pairing::Halves });
    pass.attend(index, w.sinks.as_ref());
    pass.add_product(&w.attn_output);
    pass.add_bias(w.attn_output_bias.as_ref().expect("TENSORS demands a bias of attention's output"));

    let moe = w.experts();
    pass.norm(&w.ffn_norm, &moe.router);
    pass.route(moe);
    pass.project_experts(moe);
    pass.add_experts(moe, Activation::SwigluClamped);
}
