//! Qwen2 and Qwen2.5 (arXiv:2407.10671): Llama with biases on Q, K and V, and rotary pairs half a head apart.

use super::step::{HeadSteps, Pairing, Pass};
use super::weights::{Layer, Presence, Tensors};

pub(super) const TENSORS: Tensors = Tensors { qkv_biases: Presence::Always, ..Tensors::PLAIN };

/// One layer.
pub(super) fn layer(pass: &mut Pass<'_, '_>, index: usize, w: &Layer) {
    pass.norm(&w.attn_norm, &w.q);
    pass.project_qkv(&w.q, &w.k, &w.v);
    pass.prepare_heads(index, &HeadSteps { biases: w.biases.as_ref(), norms: None, pairing: Pairing::Halves });
    pass.attend(index, None);
    pass.add_product(&w.attn_output);

    let ffn = w.dense();
    pass.norm(&w.ffn_norm, &ffn.gate);
    pass.project_gate_up(ffn);
    pass.swiglu(ffn);
    pass.add_product(&ffn.down);
}
