//! A pass: tokens on their way through the layers, and everything the operations work with.

use std::time::Duration;

use super::buffers::Buffers;
use super::product::Tools;
use crate::kernels::{Kernels, Team, Tile};
use crate::load::rows::Tables;
use crate::model::cache::Cache;
use crate::model::config::{AttentionConfig, Config};
use crate::model::sequence::SequenceSlice;

/// Tokens of a pass whose hidden states are read in the end.
#[derive(Clone, Copy, Debug)]
pub enum OutputRows<'p> {
    /// Of every token.
    All,
    /// Of these, which rise.
    Tokens(&'p [usize]),
}

/// Tokens on their way through the layers.
pub struct ForwardPass<'p, 'a> {
    /// The model's numbers.
    pub config: &'p Config,
    /// The sealed weights region.
    pub region: &'p [u8],
    /// Kernels of the chosen tier.
    pub kernels: &'p Kernels,
    /// The workers.
    pub team: &'p dyn Team,
    /// Cache tile.
    pub tile: Tile,
    /// The buffers.
    pub buffers: &'p mut Buffers<'a>,
    /// Pages and states.
    pub cache: &'p mut Cache<'a>,
    /// The tokens; ids below the vocabulary's size.
    pub tokens: &'p [u32],
    /// Whose hidden states are read in the end.
    pub output_rows: OutputRows<'p>,
    /// Rows of the residual stream: one per token, until the last layer leaves the output rows alone.
    pub n_rows: usize,
    /// Whose tokens they are: without a gap, at most [`Sizes::sequences`](crate::model::Sizes::sequences).
    pub slices: &'p [SequenceSlice<'p>],
    /// Where the time spent in attention is added up, if anybody asks.
    pub attention_time: Option<&'p mut Duration>,
    /// The tables that are not in the region.
    pub tables: &'p Tables,
}

impl<'p> ForwardPass<'p, '_> {
    pub(super) fn tools(&self) -> Tools<'p> {
        Tools { kernels: self.kernels, team: self.team, region: self.region, tile: self.tile }
    }

    /// The attention of a layer.
    pub(super) fn attention_config(&self, layer: usize) -> &AttentionConfig {
        self.config.layers[layer].attention().expect("this layer has attention")
    }
}
