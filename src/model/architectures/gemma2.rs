//! Gemma 2 (arXiv:2408.00118): Gemma with norms before and after attention and feed-forward layer, a sliding window in every
//! second layer, and caps on scores and logits.

use super::{decoder, gemma3};
use crate::model::architecture::Architecture;
use crate::model::config::Config;
use crate::model::error::ModelError;
use crate::model::header::Header;
use crate::model::rope::Rope;
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::Layer;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors, ..Architecture::new("gemma2", decoder::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    config.has_branch = true;
    config.style = gemma3::STYLE;
    config.embedding_scale = (config.n_embd as f32).sqrt();
    // Both are on whether or not the file has them.
    config.logit_cap = Some(header.positive("final_logit_softcapping")?.unwrap_or(30.0));
    let score_cap = Some(header.positive("attn_logit_softcapping")?.unwrap_or(50.0));
    // Of the published sizes the one with 46 layers alone scales by the width of the stream.
    let by_stream = (config.n_layers() == 46).then_some(config.n_embd);
    for attn in config.layers.iter_mut().filter_map(|layer| layer.attention_mut()) {
        attn.score_cap = score_cap;
        if let Some(n_embd) = by_stream {
            attn.scale = ((n_embd / attn.n_heads) as f32).sqrt().recip();
        }
    }
    if let Some(windows) = header.windows_or(2, 4096)? {
        let rope = |full: &Rope, base: Option<f32>| Rope { base: base.unwrap_or(full.base), ..full.clone() };
        header.set_windows(&mut config, windows, rope)?;
    }
    Ok(config)
}

fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    gemma3::tensors_with(find, QkNorms::None)
}
