//! Baichuan and Baichuan 2 (arXiv:2309.10305): Llama's layer. Headers do not say that the model of 13B knows distances by
//! biases of scores (ALiBi, arXiv:2108.12409) and not by a rotation; its depth does.

use super::llama;
use crate::model::architecture::Architecture;
use crate::model::config::Config;
use crate::model::error::ModelError;
use crate::model::header::Header;

pub(super) const ARCHITECTURE: Architecture = Architecture { config, ..Architecture::new("baichuan", llama::layer) };

/// Layers of the models of 7B and of 13B.
const ROTATED: usize = 32;
const BIASED: usize = 40;

const ALIBI_BIAS: f32 = 8.0;

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    match config.n_layers() {
        ROTATED => {}
        BIASED => config.set_alibi(ALIBI_BIAS),
        other => {
            let found = format!("{other}: neither {ROTATED}, of a model that rotates, nor {BIASED}, of one with ALiBi");
            return header.unsupported("block_count", found);
        }
    }
    Ok(config)
}
