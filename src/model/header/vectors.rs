//! What a model makes that makes no text.

use super::Header;
use crate::gguf::Value;
use crate::model::config::{Config, LayerConfig, MixerConfig, Pooling, Vectors, WIDTH_MAX};
use crate::model::error::{ModelError, range};

/// Whether a layer can let tokens see those that come after them: recurrences know one way alone; windows, falling scores and
/// latents are made for it.
fn can_see_both_ways(layer: &LayerConfig) -> bool {
    match &layer.mixer {
        MixerConfig::None | MixerConfig::Linear => true,
        MixerConfig::Attention(attention) => attention.window.is_none() && attention.alibi.is_none(),
        _ => false,
    }
}

impl Header<'_, '_> {
    /// Reads what the model makes if it makes no text, and whether tokens see what comes after them.
    ///
    /// The numbers of `pooling_type` are llama.cpp's (`llama_pooling_type` in `llama.h`): 0 none, 1 mean, 2 first, 3 last, 4
    /// a classifier.
    pub(in crate::model) fn read_vectors(&self, config: &mut Config) -> Result<(), ModelError> {
        let is_causal = self.flag_if_there("attention.causal")?;
        let pooling = self.get("pooling_type").and_then(|value| value.as_integer());
        // -1 is what converters write for what they do not know.
        let pooling = pooling.filter(|kind| ![0, -1, i128::from(u32::MAX)].contains(kind));
        match (is_causal, config.both_ways) {
            (Some(false), false) if pooling.is_some() && config.layers.iter().all(can_see_both_ways) => {
                config.see_both_ways();
            }
            (Some(false), false) => return self.unsupported("attention.causal", "false".to_owned()),
            (Some(true), true) => return self.unsupported("attention.causal", "true".to_owned()),
            _ => {}
        }
        let first_or_last = if config.both_ways { Pooling::First } else { Pooling::Last };
        let vectors = match pooling {
            None if config.both_ways => {
                let need = "1 (mean), 2 (first), 3 (last) or 4 (rank): one vector for each token is not there";
                return range("pooling_type", "0, or missing", need.to_owned());
            }
            None => return Ok(()),
            Some(1) => Vectors::of_texts(Pooling::Mean),
            Some(2) => Vectors::of_texts(Pooling::First),
            Some(3) => Vectors::of_texts(Pooling::Last),
            Some(4) => {
                let pooling = match self.get("classifier.pooling_type").and_then(|value| value.as_integer()) {
                    Some(1) => Pooling::Mean,
                    _ => first_or_last,
                };
                let n_scores = match self.get("classifier.output_labels") {
                    Some(Value::Array(labels)) => labels.len(),
                    _ => 1,
                };
                if !(1..=config.n_embd).contains(&n_scores) {
                    return range("classifier.output_labels", n_scores, format!("1 to {} labels", config.n_embd));
                }
                let softmax = matches!(self.name, "qwen3" | "qwen3vl");
                Vectors { pooling, n_scores, softmax, n_dense: 0 }
            }
            Some(kind) => return self.unsupported("pooling_type", kind.to_string()),
        };
        let n_dense = if vectors.ranks() { 0 } else { self.count("dense_2_feat_out", WIDTH_MAX)? };
        config.vectors = Some(Vectors { n_dense, ..vectors });
        Ok(())
    }
}
