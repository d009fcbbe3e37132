//! MiniMax M2: Q and K are each normed over all heads together, then the first half of every head is rotated. Experts
//! are chosen by the sigmoid of their score plus a bias that balances them, and weighed by the sigmoid alone.

use super::step::{Activation, HeadSteps, Pairing, Pass};
use super::weights::{Layer, QkNorms, Tensors};

pub(super) const TENSORS: Tensors = Tensors { qk_norms: QkNorms::Whole, selection_bias: true, ..Tensors::PLAIN };

/// One layer.
pub(super) fn layer(pass: &mut Pass<'_, '_>, index: usize, w: &Layer) {
    let norms = w.qk_norms.as_ref().expect("TENSORS demands norms of Q and K");
    pass.norm(&w.attn_norm, &w.q);
    pass.project_qkv(&w.q, &w.k, &w.v);
    pass.norm_qk(norms);
    pass.prepare_heads(index, &HeadSteps { biases: None, norms: None, pairing: Pairing::Halves });
    pass.attend(index, None);
    pass.add_product(&w.attn_output);

    let moe = w.experts();
    pass.norm(&w.ffn_norm, &moe.router);
    pass.route(moe);
    pass.project_experts(moe);
    pass.add_experts(moe, Activation::Swiglu);
}
