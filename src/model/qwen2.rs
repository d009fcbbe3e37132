//! Qwen2 and Qwen2.5 (arXiv:2407.10671): Llama with biases on Q, K and V, and rotary pairs half a head apart.

use super::step::{HeadSteps, Pairing, Pass};
use super::weights::Layer;

/// One layer.
pub(super) fn layer(pass: &mut Pass<'_, '_>, index: usize, w: &Layer) {
    pass.norm(&w.attn_norm);
    pass.project_qkv(&w.q, &w.k, &w.v);
    let biases = w.biases.as_ref().expect("Weights::place demands biases of a qwen2 layer");
    pass.prepare_heads(index, &HeadSteps { biases: Some(biases), norms: None, pairing: Pairing::Halves });
    pass.attend(index);
    pass.add_attention(&w.attn_output);

    pass.norm(&w.ffn_norm);
    pass.project_gate_up(&w.ffn_gate, &w.ffn_up);
    pass.add_swiglu(&w.ffn_down);
}
