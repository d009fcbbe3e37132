//! Qwen, the first (arXiv:2309.16609): Q, K and V in one matrix with biases, rotary pairs half a head apart; headers tell the
//! width of gate and up together.

use super::qwen2;
use crate::model::architecture::Architecture;
use crate::model::config::{Config, FfnConfig};
use crate::model::error::{ModelError, range};
use crate::model::header::Header;

pub(super) const ARCHITECTURE: Architecture = Architecture { config, ..Architecture::new("qwen", qwen2::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    for layer in &mut config.layers {
        let FfnConfig::Dense { n_ff } = &mut layer.ffn else { continue };
        if !n_ff.is_multiple_of(2) {
            return range("feed_forward_length", *n_ff, "an even number".to_owned());
        }
        *n_ff /= 2;
    }
    Ok(config)
}
