//! Nanbeige 4 (arXiv:2512.06266): Llama whose layers are run several times, the stream normed after each time.

use super::llama;
use crate::model::architecture::Architecture;
use crate::model::config::{Config, LAYERS_MAX};
use crate::model::error::ModelError;
use crate::model::header::Header;

pub(super) const ARCHITECTURE: Architecture = Architecture { config, ..Architecture::new("nanbeige", llama::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    config.loops = header.optional("num_loops", 1, LAYERS_MAX / config.n_layers())?;
    config.norm_after_loops = !header.flag("skip_loop_final_norm")?;
    config.layers = config.layers.repeat(config.loops);
    Ok(config)
}
