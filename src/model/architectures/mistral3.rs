//! Ministral 3 and Devstral 2: Llama with YaRN, and queries that grow with the logarithm of their position.

use super::super::header::Header;
use super::{Architecture, Config, ModelError, llama};

pub(super) const ARCHITECTURE: Architecture = Architecture { name: "mistral3", config, ..Architecture::USUAL };

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
