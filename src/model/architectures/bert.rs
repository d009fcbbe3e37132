//! BERT (arXiv:1810.04805) and Nomic Embed (arXiv:2402.01613): tokens see the whole text, and each norm follows what it is
//! the norm of. BERT has learned positions and GELU; Nomic's rotates heads and has SwiGLU.

use crate::kernels::NormKind;
use crate::model::architecture::Architecture;
use crate::model::config::{Config, EmbeddingNorm, Residual, Style};
use crate::model::error::ModelError;
use crate::model::header::Header;
use crate::model::step::{Activation, ForwardPass, Pairing};
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::Layer;

pub(super) const BERT: Architecture = Architecture {
    output_norm: None,
    config: |header| {
        let mut config = encoder(header, Activation::Gelu)?;
        config.learned_positions = true;
        config.gated_ffn = false;
        config.do_not_rotate();
        Ok(config)
    },
    tensors,
    ..Architecture::new("bert", layer)
};

pub(super) const NOMIC_BERT: Architecture = Architecture {
    output_norm: None,
    config: |header| encoder(header, Activation::Silu),
    tensors,
    ..Architecture::new("nomic-bert", layer)
};

fn encoder(header: &Header<'_, '_>, activation: Activation) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    config.norm = NormKind::Layer;
    config.style = Style { pairing: Pairing::Halves, activation, residual: Residual::InTurn };
    config.embedding_norm = EmbeddingNorm::Weighted;
    config.ends_normed = true;
    config.token_kinds = true;
    config.see_both_ways();
    Ok(config)
}

fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    Ok(Layer {
        mixer: find.attention(QkNorms::None)?,
        attn_post_norm: find.norm("attn_output_norm")?,
        ffn: find.feed_forward()?,
        ffn_post_norm: find.norm("layer_output_norm")?,
        ..Layer::default()
    })
}

fn layer(pass: &mut ForwardPass<'_, '_>, index: usize, w: &Layer) {
    let attn = w.attention();
    let Style { pairing, activation, .. } = pass.config.style;
    pass.norm(&None, &attn.q.weight);
    pass.project_qkv(attn);
    pass.prepare_heads(index, attn, pairing);
    pass.attend(index, attn);
    pass.keep_output_rows(index);
    pass.add_product(&attn.output);
    w.attn_post_norm.iter().for_each(|norm| pass.norm_stream(norm));
    pass.add_feed_forward(&None, &w.ffn, activation);
    w.ffn_post_norm.iter().for_each(|norm| pass.norm_stream(norm));
}
