//! GLM-4.5 and later (arXiv:2508.06471): biases on Q, K and V, norms on their heads in the large model, half of every head
//! rotated. The first layers are dense; in the others experts are chosen by the sigmoid of their score plus a bias, and
//! one more meets every token.

use super::step::{Activation, HeadSteps, Pairing, Pass};
use super::weights::{FeedForward, Layer, Presence, QkNorms, Tensors};

pub(super) const TENSORS: Tensors = Tensors {
    qkv_biases: Presence::Perhaps,
    qk_norms: QkNorms::PerHead(Presence::Perhaps),
    ffn_norm: "post_attention_norm",
    selection_bias: true,
    ..Tensors::PLAIN
};

/// One layer.
pub(super) fn layer(pass: &mut Pass<'_, '_>, index: usize, w: &Layer) {
    let (biases, norms) = (w.biases.as_ref(), w.qk_norms.as_ref());
    pass.norm(&w.attn_norm, &w.q);
    pass.project_qkv(&w.q, &w.k, &w.v);
    pass.prepare_heads(index, &HeadSteps { biases, norms, pairing: Pairing::Halves });
    pass.attend(index, None);
    pass.add_product(&w.attn_output);

    pass.norm(&w.ffn_norm, w.ffn.first());
    let everybodys = match &w.ffn {
        FeedForward::Dense(ffn) => Some(&**ffn),
        FeedForward::Experts(moe) => {
            pass.route(moe);
            pass.project_experts(moe);
            pass.add_experts(moe, Activation::Swiglu);
            moe.shared.as_ref()
        }
    };
    if let Some(ffn) = everybodys {
        pass.project_gate_up(ffn);
        pass.swiglu(ffn);
        pass.add_product(&ffn.down);
    }
}
