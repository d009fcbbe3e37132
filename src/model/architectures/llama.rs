//! Llama (arXiv:2302.13971, 2407.21783), Mistral and SmolLM: RMSNorm, rotary pairs of neighbours, grouped queries, SwiGLU;
//! in Mixtral (arXiv:2401.04088) as many SwiGLU layers as there are experts, of which the router chooses two.

use crate::model::architecture::Architecture;
use crate::model::config::Config;
use crate::model::error::ModelError;
use crate::model::header::{ExpertWidth, Header, Routing};
use crate::model::step::{Activation, ForwardPass, Pairing};
use crate::model::weights::Layer;

pub(super) const ARCHITECTURE: Architecture = Architecture { config, ..Architecture::new("llama", layer) };

/// Llama whose tokens see those that come after them, for vectors of texts.
pub(super) const EMBED: Architecture = Architecture {
    config: |header| {
        let mut config = config(header)?;
        config.see_both_ways();
        Ok(config)
    },
    ..Architecture::new("llama-embed", layer)
};

pub(super) fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    if let Some(experts) = header.experts(Routing { width: ExpertWidth::Dense, ..Routing::SOFTMAX })? {
        config.set_experts(0, experts);
    }
    Ok(config)
}

/// One layer.
pub(super) fn layer(pass: &mut ForwardPass<'_, '_>, index: usize, w: &Layer) {
    let attn = w.attention();
    pass.norm(&w.attn_norm, &attn.q.weight);
    pass.project_qkv(attn);
    pass.prepare_heads(index, attn, Pairing::Neighbours);
    pass.attend(index, attn);
    pass.keep_output_rows(index);
    pass.add_product(&attn.output);

    pass.add_feed_forward(&w.ffn_norm, &w.ffn, Activation::Silu);
}
