//! Granite (arXiv:2405.04324 and IBM, 2024): Llama with factors of embeddings, of scores, of what layers add to the stream and
//! of logits; with experts one more may meet every token.

use super::llama;
use crate::model::architecture::Architecture;
use crate::model::config::Config;
use crate::model::error::ModelError;
use crate::model::header::{ExpertWidth, Header, Routing};

pub(super) const ARCHITECTURE: Architecture = Architecture { config, ..Architecture::new("granite", llama::layer) };

/// The same under another name.
pub(super) const WITH_EXPERTS: Architecture = Architecture { name: "granitemoe", ..ARCHITECTURE };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    set_scales(header, &mut config)?;
    if let Some(experts) = header.experts(Routing { width: ExpertWidth::Dense, ..Routing::SOFTMAX })? {
        config.set_experts(0, experts);
    }
    Ok(config)
}

/// The factors, which are 1 where the file has none, and whether heads are rotated. Logits are divided by theirs.
pub(super) fn set_scales(header: &Header<'_, '_>, config: &mut Config) -> Result<(), ModelError> {
    let factor = |suffix| Ok::<_, ModelError>(header.positive(suffix)?.unwrap_or(1.0));
    config.embedding_scale = factor("embedding_scale")?;
    config.residual_scale = factor("residual_scale")?;
    config.logit_scale = factor("logit_scale")?.recip();
    let (scale, is_rotated) = (header.positive("attention.scale")?, header.flag_if_there("rope.scaling.finetuned")?);
    for attn in config.layers.iter_mut().filter_map(|layer| layer.attention_mut()) {
        attn.scale = scale.unwrap_or(attn.scale);
        attn.rope = attn.rope.filter(|_| is_rotated != Some(false));
    }
    Ok(())
}
