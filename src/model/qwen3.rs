//! Qwen3, dense (arXiv:2505.09388): no biases; every head of Q and K is normed before its rotation.

use super::step::{HeadSteps, Pairing, Pass};
use super::weights::{Layer, Presence, QkNorms, Tensors};

pub(super) const TENSORS: Tensors = Tensors { qk_norms: QkNorms::PerHead(Presence::Always), ..Tensors::PLAIN };

/// One layer.
pub(super) fn layer(pass: &mut Pass<'_, '_>, index: usize, w: &Layer) {
    pass.norm(&w.attn_norm, &w.q);
    pass.project_qkv(&w.q, &w.k, &w.v);
    pass.prepare_heads(index, &HeadSteps { biases: None, norms: w.qk_norms.as_ref(), pairing: Pairing::Halves });
    pass.attend(index, None);
    pass.add_product(&w.attn_output);

    let ffn = w.dense();
    pass.norm(&w.ffn_norm, &ffn.gate);
    pass.project_gate_up(ffn);
    pass.swiglu(ffn);
    pass.add_product(&ffn.down);
}
