//! Qwen3 with experts (arXiv:2505.09388, section 2): attention as in the dense model; the feed-forward layer is the sum of
//! the few experts that the router scores highest, `sum_k p_k * down_k(silu(gate_k(x)) * up_k(x))`, where `p` is the
//! softmax over all experts, taken at those chosen and scaled to the sum 1.

use super::step::{HeadSteps, Pairing, Pass};
use super::weights::Layer;

/// One layer.
pub(super) fn layer(pass: &mut Pass<'_, '_>, index: usize, w: &Layer) {
    pass.norm(&w.attn_norm);
    pass.project_qkv(&w.q, &w.k, &w.v);
    let norms = w.head_norms.as_ref().expect("Weights::place demands head norms of a qwen3moe layer");
    pass.prepare_heads(index, &HeadSteps { biases: None, norms: Some(norms), pairing: Pairing::Halves });
    pass.attend(index);
    pass.add_attention(&w.attn_output);

    pass.norm(&w.ffn_norm);
    let router = w.router.as_ref().expect("Weights::place demands a router of a qwen3moe layer");
    pass.route(router);
    pass.project_experts(&w.ffn_gate, &w.ffn_up);
    pass.add_experts(&w.ffn_down);
}
