//! Llama (arXiv:2302.13971, 2407.21783), Mistral and SmolLM: RMSNorm, rotary pairs of neighbours, grouped queries, SwiGLU;
//! in Mixtral (arXiv:2401.04088) as many SwiGLU layers as there are experts, of which the router chooses two.

use super::step::{Activation, HeadSteps, Pairing, Pass};
use super::weights::{FeedForward, Layer, Presence, Tensors};

pub(super) const TENSORS: Tensors = Tensors {
    qkv_biases: Presence::Perhaps,
    attn_output_bias: Presence::Perhaps,
    ffn_biases: Presence::Perhaps,
    ..Tensors::PLAIN
};

/// One layer.
pub(super) fn layer(pass: &mut Pass<'_, '_>, index: usize, w: &Layer) {
    pass.norm(&w.attn_norm, &w.q);
    pass.project_qkv(&w.q, &w.k, &w.v);
    pass.prepare_heads(index, &HeadSteps { biases: w.biases.as_ref(), norms: None, pairing: Pairing::Neighbours });
    pass.attend(index, None);
    pass.add_product(&w.attn_output);
    if let Some(bias) = &w.attn_output_bias {
        pass.add_bias(bias);
    }

    pass.norm(&w.ffn_norm, w.ffn.first());
    match &w.ffn {
        FeedForward::Dense(ffn) => {
            pass.project_gate_up(ffn);
            if let Some([gate, up, _]) = &ffn.biases {
                pass.add_gate_up_biases(gate, up);
            }
            pass.swiglu(ffn);
            pass.add_product(&ffn.down);
            if let Some([_, _, down]) = &ffn.biases {
                pass.add_bias(down);
            }
        }
        FeedForward::Experts(moe) => {
            pass.route(moe);
            pass.project_experts(moe);
            pass.add_experts(moe, Activation::Swiglu);
        }
    }
}
