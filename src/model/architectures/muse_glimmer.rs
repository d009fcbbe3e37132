//! Muse Glimmer (Meta, 2026): embeddings are normed; norms before and after attention and feed-forward part, and on every
//! head of Q and K; results of attention are multiplied by the sigmoid of a gate. Most layers have a window, and those alone
//! are rotated. Logits are scaled and squeezed.

use crate::model::architecture::Architecture;
use crate::model::config::{Config, EmbeddingNorm, OutputGate};
use crate::model::error::ModelError;
use crate::model::header::Header;
use crate::model::rope::Rope;
use crate::model::step::{Activation, ForwardPass};
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::{Layer, Norm};

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors, ..Architecture::new("muse-glimmer", layer) };

/// Added under the root of norms of what layers add.
const POST_NORM_EPS: f32 = 1e-8;

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    (config.has_branch, config.embedding_norm) = (true, EmbeddingNorm::Plain);
    config.logit_scale = header.required_float("logit_scale")?;
    config.logit_cap = Some(header.float("final_logit_softcapping")?.unwrap_or(30.0)).filter(|&cap| cap > 0.0);
    config.set_gate(OutputGate::Sigmoid);
    header.refuse_yarn(&config)?;
    let rope = |full: &Rope, base: Option<f32>| full.unstretched(base.unwrap_or(full.base));
    header.set_windows(&mut config, header.required_windows(4)?, rope)?;
    config.rotate_windows_alone();
    Ok(config)
}

fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    let mut post_norm = |name: &str| find.norm(name).map(|norm| norm.map(|norm| Norm { eps: POST_NORM_EPS, ..norm }));
    let (attn_post_norm, ffn_post_norm) = (post_norm("post_attention_norm")?, post_norm("post_ffw_norm")?);
    Ok(Layer { attn_post_norm, ffn_post_norm, ..find.pre_norm_layer_with(QkNorms::PerHead, "ffn_norm")? })
}

/// One layer.
pub(super) fn layer(pass: &mut ForwardPass<'_, '_>, index: usize, w: &Layer) {
    let attn = w.attention();
    pass.norm(&w.attn_norm, &attn.q.weight);
    pass.project_qkv(attn);
    pass.prepare_heads(index, attn, pass.config.style.pairing);
    pass.attend(index, attn);
    pass.gate_attention(index, attn);
    pass.keep_output_rows(index);
    pass.add_normed_product(&attn.output, &w.attn_post_norm);

    pass.hold_feed_forward(&w.ffn_norm, &w.ffn, Activation::Silu);
    pass.add_normed_held(&w.ffn_post_norm);
}
