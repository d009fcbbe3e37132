//! Gemma 3 (arXiv:2503.19786): five layers with a sliding window to one that sees everything, each kind with its own
//! rotation; norms before and after attention and feed-forward layer, and on every head of Q and K; GeGLU.

use super::step::{HeadSteps, Pairing, Pass};
use super::weights::{Layer, Presence, QkNorms, Tensors};

pub(super) const TENSORS: Tensors =
    Tensors { qk_norms: QkNorms::PerHead(Presence::Always), post_norms: true, rope_factors: false, ..Tensors::PLAIN };

/// One layer.
pub(super) fn layer(pass: &mut Pass<'_, '_>, index: usize, w: &Layer) {
    let [attn_post_norm, ffn_post_norm] = w.post_norms.as_ref().expect("TENSORS demands norms of what is added");
    pass.norm(&w.attn_norm, &w.q);
    pass.project_qkv(&w.q, &w.k, &w.v);
    pass.prepare_heads(index, &HeadSteps { biases: None, norms: w.qk_norms.as_ref(), pairing: Pairing::Halves });
    pass.attend(index, None);
    pass.add_normed_product(&w.attn_output, attn_post_norm);

    let ffn = w.dense();
    pass.norm(&w.ffn_norm, &ffn.gate);
    pass.project_gate_up(ffn);
    pass.geglu(ffn);
    pass.add_normed_product(&ffn.down, ffn_post_norm);
}
