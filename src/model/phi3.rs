//! Phi-3 and Phi-4 (arXiv:2404.14219): Q, K and V in one matrix, gate and up in another; some with LongRoPE
//! (arXiv:2402.13753). The sliding window of the smallest model's configuration is left out, as in llama.cpp.

use super::step::{HeadSteps, Pairing, Pass};
use super::weights::{Layer, Tensors};

pub(super) const TENSORS: Tensors = Tensors { gate_in_up: true, ..Tensors::PLAIN };

/// One layer.
pub(super) fn layer(pass: &mut Pass<'_, '_>, index: usize, w: &Layer) {
    pass.norm(&w.attn_norm, &w.q);
    pass.project_qkv(&w.q, &w.k, &w.v);
    pass.prepare_heads(index, &HeadSteps { biases: None, norms: None, pairing: Pairing::Halves });
    pass.attend(index, None);
    pass.add_product(&w.attn_output);

    let ffn = w.dense();
    pass.norm(&w.ffn_norm, &ffn.gate);
    pass.project_gate_up(ffn);
    pass.swiglu(ffn);
    pass.add_product(&ffn.down);
}
