//! Gemma 4 (Google, 2026): Gemma 3 with heads of two sizes, of which those of layers that see everything are rotated in part
//! and may use keys as values; values are normed, scores are not scaled. Experts, where there are any, stand beside the
//! dense part. In the small models the last layers read the keys and values of earlier ones, and every layer has an
//! embedding of its own.

use crate::model::architecture::Architecture;
use crate::model::config::{Config, Experts, FfnConfig};
use crate::model::error::{ModelError, range};
use crate::model::header::{Header, Routing};
use crate::model::rope::Rope;
use crate::model::step::{Activation, ForwardPass, Pairing};
use crate::model::tensors::LayerTensors;
use crate::model::weights::{FeedForward, Layer};

pub(super) const ARCHITECTURE: Architecture = Architecture { config, tensors, ..Architecture::new("gemma4", layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    config.has_branch = true;
    config.embedding_scale = (config.n_embd as f32).sqrt();
    // On where the file does not say, off where it says 0 (llama.cpp's `llama_hparams`).
    config.logit_cap = Some(header.float("final_logit_softcapping")?.unwrap_or(30.0)).filter(|&cap| cap > 0.0);
    config.n_embd_per_layer = header.count("embedding_length_per_layer_input", 1 << 14)?;
    let rope_dim = header.optional("rope.dimension_count_swa", config.ropes[0].dim, 1 << 14)?;
    let rope = |full: &Rope, base: Option<f32>| Rope { dim: rope_dim, ..full.unstretched(base.unwrap_or(10_000.0)) };
    header.set_windows(&mut config, header.listed_windows()?, rope)?;
    header.set_window_heads(&mut config)?;
    for attn in config.layers.iter_mut().filter_map(|layer| layer.attention_mut()) {
        attn.scale = 1.0;
        if attn.window.is_some() && rope_dim > attn.key_dim || !rope_dim.is_multiple_of(2) {
            return range("rope.dimension_count_swa", rope_dim, format!("an even number up to {}", attn.key_dim));
        }
        if attn.key_dim != attn.value_dim {
            return range("attention.value_length", attn.value_dim, format!("{}, as keys", attn.key_dim));
        }
    }
    header.share_kv(&mut config)?;
    if let Some(experts) = header.experts(Routing::SOFTMAX)? {
        for layer in &mut config.layers {
            layer.ffn = FfnConfig::Experts(Experts { n_ff_shared: layer.n_ff_dense(), apart: true, ..experts });
        }
    }
    Ok(config)
}

fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    if find.layer.attention().is_some_and(|attention| attention.window.is_none()) {
        find.require_rope_factors()?;
    }
    Ok(Layer {
        attn_norm: find.norm("attn_norm")?,
        mixer: find.attention_that_may_share()?,
        attn_post_norm: find.norm("post_attention_norm")?,
        ffn_norm: find.norm("ffn_norm")?,
        ffn: find.feed_forward()?,
        ffn_post_norm: find.norm("post_ffw_norm")?,
        per_layer: find.per_layer_maps()?,
        output_scale: find.output_scale()?,
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
    pass.add_normed_product(&attn.output, &w.attn_post_norm);

    if let FeedForward::Experts(moe) = &w.ffn {
        let (norms, dense) = moe.apart();
        pass.norm_for_router(&norms.router, &moe.router);
        pass.route(moe);
        pass.norm(&norms.experts, moe.first());
        pass.project_experts(moe);
        pass.add_experts(moe, Activation::Gelu);
        pass.norm(&w.ffn_norm, dense.first());
        pass.project_gate_up(dense);
        pass.activate(dense, Activation::Gelu);
        pass.add_normed_sum(&dense.down, norms, &w.ffn_post_norm);
    } else {
        let ffn = w.dense();
        pass.norm(&w.ffn_norm, ffn.first());
        pass.project_gate_up(ffn);
        pass.activate(ffn, Activation::Gelu);
        pass.add_normed_product(&ffn.down, &w.ffn_post_norm);
    }

    if let Some(maps) = &w.per_layer {
        pass.add_per_layer(index, maps);
    }
    pass.scale_stream(&w.output_scale);
}
