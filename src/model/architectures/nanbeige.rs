//! Nanbeige 4: Llama whose layers are run several times, each time with keys and values of their own; the stream meets the
//! last norm after each time.

use super::decoder;
use crate::model::architecture::Architecture;
use crate::model::config::{Config, LAYERS_MAX};
use crate::model::error::ModelError;
use crate::model::header::Header;

pub(super) const ARCHITECTURE: Architecture = Architecture { config, ..Architecture::new("nanbeige", decoder::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    config.loops = header.count("num_loops", LAYERS_MAX / config.layers.len())?.max(1);
    config.norm_after_loops = !header.flag("skip_loop_final_norm")?;
    config.layers = config.layers.repeat(config.loops);
    Ok(config)
}
