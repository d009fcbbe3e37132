//! Gemma 3 (arXiv:2503.19786): five layers with a sliding window to one that sees everything, each kind with its own
//! rotation; norms before and after attention and feed-forward layer, and on every head of Q and K; GeGLU.

use crate::model::architecture::Architecture;
use crate::model::config::Config;
use crate::model::error::ModelError;
use crate::model::header::Header;
use crate::model::rope::Rope;
use crate::model::step::{Activation, ForwardPass, Pairing};
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::Layer;

pub(super) const ARCHITECTURE: Architecture = Architecture { config, tensors, ..Architecture::new("gemma3", layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    config.has_branch = true;
    config.embedding_scale = (config.n_embd as f32).sqrt();
    config.logit_cap = header.positive("final_logit_softcapping")?;
    // Of the published sizes the one with 62 layers alone scales by the width of the stream.
    if config.n_layers() == 62 {
        let n_embd = config.n_embd;
        for attn in config.layers.iter_mut().filter_map(|layer| layer.attention_mut()) {
            attn.scale = ((n_embd / attn.n_heads) as f32).sqrt().recip();
        }
    }
    if let Some(windows) = header.windows(6)? {
        // Layers that see little need no stretching.
        let rope = |full: &Rope, base: Option<f32>| full.unscaled(base.unwrap_or(10_000.0));
        header.set_windows(&mut config, windows, rope)?;
    }
    Ok(config)
}

fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    tensors_with(find, QkNorms::PerHead)
}

pub(super) fn tensors_with(find: &mut LayerTensors<'_, '_>, qk_norms: QkNorms) -> Result<Layer, ModelError> {
    Ok(Layer {
        attn_post_norm: find.norm("post_attention_norm")?,
        ffn_post_norm: find.norm("post_ffw_norm")?,
        ..find.pre_norm_layer_with(qk_norms, "ffn_norm")?
    })
}

/// One layer.
pub(super) fn layer(pass: &mut ForwardPass<'_, '_>, index: usize, w: &Layer) {
    let attn = w.attention();
    pass.norm(&w.attn_norm, &attn.q.weight);
    pass.project_qkv(attn);
    pass.prepare_heads(index, attn, Pairing::Halves);
    pass.attend(index, attn);
    pass.keep_output_rows(index);
    pass.add_normed_product(&attn.output, &w.attn_post_norm);

    let ffn = w.dense();
    pass.norm(&w.ffn_norm, ffn.first());
    pass.project_gate_up(ffn);
    pass.activate(ffn, Activation::Gelu);
    pass.add_normed_product(&ffn.down, &w.ffn_post_norm);
}
