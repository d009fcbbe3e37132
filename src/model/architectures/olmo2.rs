//! OLMo 2 and 3 (arXiv:2501.00656): norms stand behind attention and feed-forward layer instead of before them, and over
//! all heads of Q and of K together. OLMo 3 has windows in three of four layers, whose rotation is not stretched.

use crate::model::architecture::Architecture;
use crate::model::config::Config;
use crate::model::error::ModelError;
use crate::model::header::Header;
use crate::model::rope::Rope;
use crate::model::step::{Activation, ForwardPass, Pairing};
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::Layer;

pub(super) const ARCHITECTURE: Architecture = Architecture { config, tensors, ..Architecture::new("olmo2", layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    config.has_branch = true;
    if let Some(windows) = header.windows(4)? {
        header.set_windows(&mut config, windows, |full: &Rope, _| full.unscaled(full.base))?;
    }
    Ok(config)
}

fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    Ok(Layer {
        mixer: find.attention(QkNorms::Whole)?,
        attn_post_norm: find.norm("post_attention_norm")?,
        ffn: find.feed_forward()?,
        ffn_post_norm: find.norm("post_ffw_norm")?,
        ..Layer::default()
    })
}

/// One layer.
fn layer(pass: &mut ForwardPass<'_, '_>, index: usize, w: &Layer) {
    let attn = w.attention();
    pass.norm(&w.attn_norm, &attn.q.weight);
    pass.project_qkv(attn);
    pass.norm_qk(attn);
    pass.prepare_heads(index, attn, Pairing::Halves);
    pass.attend(index, attn);
    pass.keep_output_rows(index);
    pass.add_normed_product(&attn.output, &w.attn_post_norm);

    let ffn = w.dense();
    pass.norm(&w.ffn_norm, ffn.first());
    pass.project_gate_up(ffn);
    pass.activate(ffn, Activation::Silu);
    pass.add_normed_product(&ffn.down, &w.ffn_post_norm);
}
