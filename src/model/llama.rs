//! Llama (arXiv:2302.13971, 2407.21783) and Mistral: RMSNorm, rotary pairs of neighbours, grouped queries, SwiGLU.

use super::step::{HeadSteps, Pairing, Pass};
use super::weights::Layer;

/// One layer.
pub(super) fn layer(pass: &mut Pass<'_, '_>, index: usize, w: &Layer) {
    pass.norm(&w.attn_norm);
    pass.project_qkv(&w.q, &w.k, &w.v);
    pass.prepare_heads(index, &HeadSteps { biases: None, norms: None, pairing: Pairing::Neighbours });
    pass.attend(index);
    pass.add_attention(&w.attn_output);

    pass.norm(&w.ffn_norm);
    pass.project_gate_up(&w.ffn_gate, &w.ffn_up);
    pass.add_swiglu(&w.ffn_down);
}
