//! Llama 4 (Meta, 2025): three layers that see no further than their chunk of positions, rotated and with heads normed
//! afterwards, to one that sees everything, without a rotation (NoPE, arXiv:2501.18795) but with queries that grow with
//! their position. One expert for each token, whose input is multiplied by the sigmoid of its score, and a shared one.

use super::llama;
use crate::kernels::Window;
use crate::model::architecture::Architecture;
use crate::model::config::{Config, FfnConfig, LAYERS_MAX, QueryTemperature};
use crate::model::error::ModelError;
use crate::model::header::{Header, Routing};

pub(super) const ARCHITECTURE: Architecture = Architecture { config, ..Architecture::new("llama4", llama::layer) };

/// Positions of a chunk; files do not say.
const CHUNK: usize = 8192;

/// Scale of the queries of layers without a rotation; files do not say.
const TEMPERATURE: QueryTemperature = QueryTemperature { beta: 0.1, length: CHUNK, offset: 1 };

/// Layers from one without a rotation to the next.
const NO_ROPE_INTERVAL: usize = 4;

/// Experts of the model that does not norm heads.
const EXPERTS_WITHOUT_NORMS: usize = 128;

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    let mut experts = header.required_experts(Routing { normalised: Some(false), ..Routing::SIGMOID })?;
    (experts.n_ff_shared, experts.weighs_input) = (experts.n_ff, true);
    // Whatever it is but 0, which models without experts have, it is not used.
    header.optional("attention.sliding_window", CHUNK, 1 << 30)?;
    let chunked = header.layers_with_window(NO_ROPE_INTERVAL)?;
    if header.float("rope.freq_base_swa")?.is_some_and(|base| base != config.ropes[0].base) {
        return header.unsupported("rope.freq_base_swa", "another than rope.freq_base".to_owned());
    }
    config.set_windows(Window::Chunk(CHUNK), &chunked);
    let interval = header.number("interleave_moe_layer_step", LAYERS_MAX)?;
    for (index, layer) in config.layers.iter_mut().enumerate() {
        let has_rope = !(index + 1).is_multiple_of(NO_ROPE_INTERVAL);
        if let Some(attention) = layer.attention_mut() {
            attention.normed_after_rope = has_rope && experts.count != EXPERTS_WITHOUT_NORMS;
            if !has_rope {
                (attention.rope, attention.temperature) = (None, Some(TEMPERATURE));
            }
        }
        if (index + 1).is_multiple_of(interval) {
            layer.ffn = FfnConfig::Experts(experts);
        }
    }
    Ok(config)
}
