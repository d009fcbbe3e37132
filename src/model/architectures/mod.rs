//! One file for each architecture: its keys, its tensors, and its layer, which reads like the paper.
//!
//! A new one is a file with an `ARCHITECTURE` and a line in [`ALL`].

mod deci;
mod gemma3;
mod glm4;
mod glm4moe;
mod gpt_oss;
mod lfm2;
mod llama;
mod minimax_m2;
mod mistral3;
mod olmo2;
mod openelm;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3moe;
mod seed_oss;
mod smollm3;

use std::fmt;

use super::config::Config;
use super::error::ModelError;
use super::header::Header;
use super::step::ForwardPass;
use super::tensors::LayerTensors;
use super::weights::Layer;

/// All architectures.
const ALL: [&Architecture; 17] = [
    &llama::ARCHITECTURE,
    &qwen2::ARCHITECTURE,
    &qwen3::ARCHITECTURE,
    &qwen3moe::ARCHITECTURE,
    &minimax_m2::ARCHITECTURE,
    &gpt_oss::ARCHITECTURE,
    &glm4moe::ARCHITECTURE,
    &gemma3::ARCHITECTURE,
    &phi3::ARCHITECTURE,
    &lfm2::ARCHITECTURE,
    &mistral3::ARCHITECTURE,
    &smollm3::ARCHITECTURE,
    &seed_oss::ARCHITECTURE,
    &olmo2::ARCHITECTURE,
    &glm4::ARCHITECTURE,
    &openelm::ARCHITECTURE,
    &deci::ARCHITECTURE,
];

/// A family of models that share keys, tensors and the order of operations.
pub struct Architecture {
    /// `general.architecture`, and the prefix of the other keys.
    pub name: &'static str,
    /// The name of the last norm.
    pub(super) output_norm: &'static str,
    /// Whether what layers add to the stream is normed first.
    pub(super) post_norms: bool,
    /// Reads the numbers of its header.
    pub(super) config: fn(&Header<'_, '_>) -> Result<Config, ModelError>,
    /// Finds the tensors of a layer.
    pub(super) tensors: fn(&mut LayerTensors<'_, '_>) -> Result<Layer, ModelError>,
    /// One layer over the tokens of a pass.
    pub(super) layer: fn(&mut ForwardPass<'_, '_>, usize, &Layer),
}

impl Architecture {
    /// What most have.
    const USUAL: Architecture = Architecture {
        name: "",
        output_norm: "output_norm",
        post_norms: false,
        config: |header| header.decoder(),
        tensors: |find| find.pre_norm_layer(),
        layer: llama::layer,
    };

    /// All architectures.
    pub fn all() -> impl Iterator<Item = &'static Architecture> {
        ALL.into_iter()
    }

    /// Their names.
    pub fn names() -> [&'static str; ALL.len()] {
        ALL.map(|architecture| architecture.name)
    }

    /// The one of this name.
    pub(super) fn named(name: &str) -> Option<&'static Architecture> {
        Architecture::all().find(|architecture| architecture.name == name)
    }
}

impl fmt::Debug for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for Architecture {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}
