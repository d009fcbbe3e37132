//! What one sequence and many have in common: a model in its regions, and a pass over its weights.

use std::time::Duration;

use super::error::EngineError;
use crate::kernels::{Kernels, Team};
use crate::load::rows::Tables;
use crate::memory::Growing;
use crate::model::{Buffers, Cache, CachePlan, ForwardPass, Model, OutputRows, SequenceSlice, Sizes};

/// A model that is ready to run.
pub struct Core<'a> {
    pub(super) model: &'a Model,
    pub(super) kernels: &'a Kernels,
    pub(super) team: &'a dyn Team,
    pub(super) region: &'a [u8],
    pub(super) buffers: Buffers<'a>,
    pub(super) cache: Cache<'a>,
    pub(super) sizes: Sizes,
    pub(super) attention_time: Option<Duration>,
    pub(super) tables: Tables,
    /// What the scratch region has beyond what passes need.
    pub(super) spare: &'a mut [u8],
}

impl<'a> Core<'a> {
    /// Over loaded regions: weights, KV cache, states, scratch. `sizes` are those the regions were planned with; `tables`
    /// are those that are not in the weights region.
    ///
    /// # Panics
    /// If a region is smaller than planned, or the team is of another size.
    pub fn new(
        model: &'a Model,
        kernels: &'a Kernels,
        team: &'a dyn Team,
        sizes: Sizes,
        (weights, kv, states, scratch): (&'a [u8], Growing<'a>, Growing<'a>, &'a mut [u8]),
        tables: Tables,
    ) -> Core<'a> {
        assert_eq!(team.size(), sizes.workers);
        let factors = model
            .weights
            .rope_factors
            .as_ref()
            .map(|factors| factors.of(sizes.ctx, model.config.ropes[0].ctx_original).values(weights));
        let (buffers, spare) = Buffers::carve(scratch, &model.config, model.n_drawable(), &sizes, factors);
        let cache = Cache::new(kv, states, CachePlan::new(&model.config, &sizes));
        Core { model, kernels, team, region: weights, buffers, cache, sizes, attention_time: None, tables, spare }
    }

    /// One pass over the weights; `finish` sees the hidden states of the output rows.
    ///
    /// # Errors
    /// [`EngineError::Embedding`] or [`EngineError::Memory`]; no sequence has changed then.
    pub(super) fn pass(
        &mut self,
        tokens: &[u32],
        slices: &[SequenceSlice<'_>],
        output_rows: OutputRows<'_>,
        finish: impl FnOnce(&mut ForwardPass<'_, 'a>, &Model),
    ) -> Result<(), EngineError> {
        for slice in slices {
            self.cache.populate(slice).map_err(EngineError::Memory)?;
        }
        let mut pass = ForwardPass {
            config: &self.model.config,
            region: self.region,
            kernels: self.kernels,
            team: self.team,
            tile: self.sizes.tile,
            buffers: &mut self.buffers,
            cache: &mut self.cache,
            tokens,
            output_rows,
            n_rows: tokens.len(),
            slices,
            attention_time: self.attention_time.as_mut(),
            tables: &self.tables,
        };
        self.model.forward(&mut pass).map_err(EngineError::Embedding)?;
        finish(&mut pass, self.model);
        Ok(())
    }
}
