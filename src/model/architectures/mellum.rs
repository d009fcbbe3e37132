//! Mellum 2 (JetBrains, 2026): Qwen3 with experts and windows in three of four layers, whose rotation is not stretched.

use super::{qwen2, qwen3};
use crate::model::architecture::Architecture;
use crate::model::config::Config;
use crate::model::error::ModelError;
use crate::model::header::{ExpertWidth, Header, Routing};
use crate::model::rope::Rope;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors: qwen3::tensors, ..Architecture::new("mellum", qwen2::layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    if let Some(windows) = header.windows(4)? {
        header.set_windows(&mut config, windows, |full: &Rope, _| full.unscaled(full.base))?;
    }
    config.set_experts(0, header.required_experts(Routing { width: ExpertWidth::OwnOrShare, ..Routing::SOFTMAX })?);
    Ok(config)
}
