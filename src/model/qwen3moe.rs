//! Qwen3 with experts (arXiv:2505.09388, section 2): attention as in the dense model; the feed-forward layer is the sum of
//! the few experts that the router scores highest, `sum_k p_k * down_k(silu(gate_k(x)) * up_k(x))`, where `p` is the
//! softmax over all experts, taken at those chosen and scaled to the sum 1.

use super::step::{Activation, HeadSteps, Pairing, Pass};
use super::weights::{Layer, Tensors};

pub(super) const TENSORS: Tensors = super::qwen3::TENSORS;

/// One layer.
pub(super) fn layer(pass: &mut Pass<'_, '_>, index: usize, w: &Layer) {
    pass.norm(&w.attn_norm, &w.q);
    pass.project_qkv(&w.q, &w.k, &w.v);
    pass.prepare_heads(index, &HeadSteps { biases: None, norms: w.qk_norms.as_ref(), pairing: Pairing::Halves });
    pass.attend(index, None);
    pass.add_product(&w.attn_output);

    let moe = w.experts();
    pass.norm(&w.ffn_norm, &moe.router);
    pass.route(moe);
    pass.project_experts(moe);
    pass.add_experts(moe, Activation::Swiglu);
}
