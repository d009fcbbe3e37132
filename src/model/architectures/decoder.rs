//! The layer that most decoders have: attention and a feed-forward part, each behind a norm, some with a norm of what they
//! add, or both of them beside each other. What differs between them are numbers ([`Style`]); architectures of their own are
//! written out in their files.

use crate::model::config::{Residual, Style};
use crate::model::step::ForwardPass;
use crate::model::weights::{FeedForward, Layer};

/// One layer.
pub(super) fn layer(pass: &mut ForwardPass<'_, '_>, index: usize, w: &Layer) {
    layer_in(pass.config.style, pass, index, w);
}

/// One layer of another style than the model's.
pub(super) fn layer_in(style: Style, pass: &mut ForwardPass<'_, '_>, index: usize, w: &Layer) {
    let attn = w.attention();
    let Style { pairing, activation, residual } = style;
    pass.norm(&w.attn_norm, &attn.q.weight);
    pass.project_qkv(attn);
    if attn.qk_norms_are_whole {
        pass.norm_qk(attn);
    }
    pass.prepare_heads(index, attn, pairing);
    pass.attend(index, attn);
    pass.gate_attention(index, attn);
    pass.keep_output_rows(index);
    match (residual, &w.ffn) {
        // x + attention(norm(x)) + ffn(norm(x)), the norms the same or not.
        (Residual::Parallel, ffn) => {
            pass.hold_product(&attn.output);
            pass.add_feed_forward(w.ffn_norm.as_ref().map_or(&w.attn_norm, |_| &w.ffn_norm), ffn, activation);
            pass.add_held();
        }
        (Residual::InTurn, FeedForward::Dense(ffn)) if w.ffn_post_norm.is_some() => {
            pass.add_normed_product(&attn.output, &w.attn_post_norm);
            pass.norm(&w.ffn_norm, ffn.first());
            pass.project_gate_up(ffn);
            pass.activate(ffn, activation);
            pass.add_normed_product(&ffn.down, &w.ffn_post_norm);
        }
        (Residual::InTurn, ffn) => {
            pass.add_product(&attn.output);
            pass.add_feed_forward(&w.ffn_norm, ffn, activation);
        }
    }
}
