//! Qwen3, dense (arXiv:2505.09388): no biases; every head of Q and K is normed before its rotation.

use super::step::{HeadSteps, Pairing, Pass};
use super::weights::Layer;

/// One layer.
pub(super) fn layer(pass: &mut Pass<'_, '_>, index: usize, w: &Layer) {
    pass.norm(&w.attn_norm);
    pass.project_qkv(&w.q, &w.k, &w.v);
    let norms = w.head_norms.as_ref().expect("Weights::place demands head norms of a qwen3 layer");
    pass.prepare_heads(index, &HeadSteps { biases: None, norms: Some(norms), pairing: Pairing::Halves });
    pass.attend(index);
    pass.add_attention(&w.attn_output);

    pass.norm(&w.ffn_norm);
    pass.project_gate_up(&w.ffn_gate, &w.ffn_up);
    pass.add_swiglu(&w.ffn_down);
}
