//! The layer that most decoders have: attention and a feed-forward part, each behind a norm, or both of them beside each
//! other. What differs between them are numbers ([`Style`]); architectures of their own are written out in their files.

use crate::model::config::{Residual, Style};
use crate::model::step::ForwardPass;
use crate::model::weights::Layer;

/// One layer.
pub(super) fn layer(pass: &mut ForwardPass<'_, '_>, index: usize, w: &Layer) {
    let attn = w.attention();
    let Style { pairing, activation, residual } = pass.config.style;
    pass.norm(&w.attn_norm, &attn.q.weight);
    pass.project_qkv(attn);
    if attn.qk_norms_are_whole {
        pass.norm_qk(attn);
    }
    pass.prepare_heads(index, attn, pairing);
    pass.attend(index, attn);
    pass.gate_attention(index, attn);
    pass.keep_output_rows(index);
    match residual {
        Residual::InTurn => {
            pass.add_product(&attn.output);
            pass.add_feed_forward(&w.ffn_norm, &w.ffn, activation);
        }
        // x + attention(norm(x)) + ffn(norm(x)), the norms the same or not.
        Residual::Parallel => {
            pass.hold_product(&attn.output);
            pass.add_feed_forward(w.ffn_norm.as_ref().map_or(&w.attn_norm, |_| &w.ffn_norm), &w.ffn, activation);
            pass.add_held();
        }
    }
}
