//! Ministral 3 and Devstral 2: Llama with YaRN, and queries that grow with the logarithm of their position.

use super::llama;
use crate::model::architecture::Architecture;
use crate::model::config::Config;
use crate::model::error::ModelError;
use crate::model::header::Header;

pub(super) const ARCHITECTURE: Architecture = Architecture { config, ..Architecture::new("mistral3", llama::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    // Files may carry a window that is not applied, as in llama.cpp.
    header.accept("attention.sliding_window");
    let mut config = llama::config(header)?;
    let temperature = header.query_temperature(config.ropes[0].ctx_original)?;
    for attn in config.layers.iter_mut().filter_map(|layer| layer.attention_mut()) {
        attn.temperature = temperature;
    }
    Ok(config)
}
