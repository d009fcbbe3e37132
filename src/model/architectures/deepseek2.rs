//! DeepSeek V2 to R1 (arXiv:2405.04434, 2412.19437), Kimi K2, GLM-4.7-Flash: multi-head latent attention. The first layers
//! are dense; in the others experts are chosen by softmax, or by sigmoid plus a bias and from the best groups, and shared
//! ones meet every token.

use crate::model::architecture::Architecture;
use crate::model::config::{Config, Gating, LAYERS_MAX, MixerConfig};
use crate::model::error::ModelError;
use crate::model::header::{ExpertWidth, Header, Routing};
use crate::model::rope::Rope;
use crate::model::step::ForwardPass;
use crate::model::tensors::LayerTensors;
use crate::model::weights::Layer;

pub(super) const ARCHITECTURE: Architecture = Architecture { config, tensors, ..Architecture::new("deepseek2", layer) };

/// Tokens of GLM-4.7-Flash, whose first files do not say that its experts are chosen by sigmoid.
const GLM_FLASH_VOCAB: usize = 154_880;

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    // Cosines of these models are as they are: scores make up for it.
    decoder(header, |_, _| 1.0)
}

/// The numbers of the family; `length` is what cosines and sines are multiplied by with YaRN of a certain strength.
pub(super) fn decoder(header: &Header<'_, '_>, length: fn(&Rope, f32) -> f32) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    let mut latent = header.latent(&config)?;
    latent.scale *= header.latent_stretch(&mut config.ropes[0], length)?;
    latent.temperature = header.query_temperature(config.ropes[0].ctx_original)?;
    config.layers.iter_mut().for_each(|layer| layer.mixer = MixerConfig::Latent(latent));
    let n_dense = header.count("leading_dense_block_count", LAYERS_MAX)?;
    if n_dense < header.n_layers {
        let is_glm_flash = (47..=48).contains(&header.n_layers) && header.vocabulary() == GLM_FLASH_VOCAB;
        let gating = if is_glm_flash { Gating::Sigmoid } else { Gating::Softmax };
        let routing = Routing { gating, normalised: None, width: ExpertWidth::OwnOrDense };
        config.set_experts(n_dense, header.required_experts(routing)?);
    }
    Ok(config)
}

pub(super) fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    Ok(Layer {
        attn_norm: find.norm("attn_norm")?,
        mixer: find.latent_attention()?,
        ffn_norm: find.norm("ffn_norm")?,
        ffn: find.feed_forward()?,
        ..Layer::default()
    })
}

/// One layer.
pub(super) fn layer(pass: &mut ForwardPass<'_, '_>, index: usize, w: &Layer) {
    let latent = w.latent();
    pass.norm(&w.attn_norm, &latent.kv_a.weight);
    pass.latent_attention(index, latent);
    pass.keep_output_rows(index);
    pass.add_product(&latent.output);

    pass.add_feed_forward(&w.ffn_norm, &w.ffn, pass.config.style.activation);
}
