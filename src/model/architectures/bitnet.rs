//! BitNet b1.58 (arXiv:2402.17764): Llama with a norm before the last matrix of attention and of the feed-forward part, too;
//! matrices have scales. Rotary pairs are half a head apart.

use crate::model::architecture::Architecture;
use crate::model::error::ModelError;
use crate::model::step::{Activation, ForwardPass, Pairing};
use crate::model::tensors::LayerTensors;
use crate::model::weights::Layer;

pub(super) const ARCHITECTURE: Architecture = Architecture { tensors, ..Architecture::new("bitnet", layer) };

fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    let layer = find.pre_norm_layer()?;
    Ok(Layer {
        attn_post_norm: Some(find.norm_of("attn_sub_norm", layer.attention().output.weight.cols)?),
        ffn_post_norm: Some(find.norm_of("ffn_sub_norm", layer.dense().down.weight.cols)?),
        ..layer
    })
}

/// One layer.
fn layer(pass: &mut ForwardPass<'_, '_>, index: usize, w: &Layer) {
    let attn = w.attention();
    pass.norm(&w.attn_norm, &attn.q.weight);
    pass.project_qkv(attn);
    pass.prepare_heads(index, attn, Pairing::Halves);
    pass.attend(index, attn);
    pass.keep_output_rows(index);
    pass.norm_records(&w.attn_post_norm);
    pass.add_product(&attn.output);

    let ffn = w.dense();
    pass.norm(&w.ffn_norm, ffn.first());
    pass.project_gate_up(ffn);
    pass.activate_and_norm(ffn, Activation::Silu, &w.ffn_post_norm);
    pass.add_product(&ffn.down);
}
