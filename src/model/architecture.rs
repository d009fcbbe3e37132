//! What an architecture is: its name, and what reads its header, finds its tensors and runs its layers.

use std::fmt;

use super::config::Config;
use super::error::ModelError;
use super::header::Header;
use super::step::ForwardPass;
use super::tensors::{LayerTensors, TensorsFn};
use super::weights::Layer;

/// One layer over the tokens of a pass, by its index.
pub(super) type LayerFn = fn(&mut ForwardPass<'_, '_>, usize, &Layer);

/// A family of models that share keys, tensors and the order of operations.
pub struct Architecture {
    /// `general.architecture`, and the prefix of the other keys.
    pub name: &'static str,
    /// The name of the last norm, if it has weights.
    pub(super) output_norm: Option<&'static str>,
    /// Reads the numbers of its header.
    pub(super) config: fn(&Header<'_, '_>) -> Result<Config, ModelError>,
    /// Finds the tensors of a layer.
    pub(super) tensors: TensorsFn,
    /// One layer over the tokens of a pass.
    pub(super) layer: LayerFn,
}

impl Architecture {
    /// One with the usual keys, a norm before attention and one before the feed-forward part.
    pub(super) const fn new(name: &'static str, layer: LayerFn) -> Architecture {
        Architecture {
            name,
            output_norm: Some("output_norm"),
            config: |header| header.decoder(),
            tensors: |find: &mut LayerTensors<'_, '_>| find.pre_norm_layer(),
            layer,
        }
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
