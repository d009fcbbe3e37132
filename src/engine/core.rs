//! What one sequence and many have in common: a model in its regions, and a pass over its weights.

use std::time::Duration;

use super::error::EngineError;
use crate::kernels::{Kernels, Team};
use crate::load::rows::Rows;
use crate::memory::Growing;
use crate::model::step::scratch_bytes;
use crate::model::{Buffers, Kv, Model, Pass, Sizes, Span, Wanted};

/// A model that is ready to run.
pub struct Core<'a> {
    pub(super) model: &'a Model,
    pub(super) kernels: &'a Kernels,
    pub(super) team: &'a dyn Team,
    pub(super) region: &'a [u8],
    pub(super) buffers: Buffers<'a>,
    pub(super) kv: Kv<'a>,
    pub(super) sizes: Sizes,
    pub(super) attention_time: Option<Duration>,
    pub(super) rows: Option<Rows>,
    /// What the scratch region has beyond what passes need.
    pub(super) spare: &'a mut [u8],
}

impl<'a> Core<'a> {
    /// Over loaded regions: weights, KV cache, scratch. `sizes` are those the regions were planned with; `rows` are those of
    /// an embedding table that is not in the weights region.
    ///
    /// # Panics
    /// If a region is smaller than planned, or the team is of another size.
    pub fn new(
        model: &'a Model,
        kernels: &'a Kernels,
        team: &'a dyn Team,
        sizes: Sizes,
        (weights, kv, scratch): (&'a [u8], impl Into<Growing<'a>>, &'a mut [u8]),
        rows: Option<Rows>,
    ) -> Core<'a> {
        assert_eq!(team.size(), sizes.workers);
        let factors = model
            .weights
            .rope_factors
            .as_ref()
            .map(|factors| factors.of(sizes.ctx, model.config.rope.ctx_original).values(weights));
        let n_vocab = model.weights.n_vocab();
        let need = scratch_bytes(&model.config, n_vocab, &sizes).expect("the sizes have been planned");
        let (scratch, spare) = scratch.split_at_mut(need as usize);
        let buffers = Buffers::carve(scratch, &model.config, n_vocab, &sizes, factors);
        let kv = Kv::new(kv, &model.config, &sizes);
        Core { model, kernels, team, region: weights, buffers, kv, sizes, attention_time: None, rows, spare }
    }

    /// One pass over the weights; `finish` sees the hidden states of the tokens that are wanted.
    ///
    /// # Errors
    /// [`EngineError::Embedding`] or [`EngineError::Memory`]; the pass has then done nothing that counts.
    pub(super) fn pass(
        &mut self,
        tokens: &[u32],
        spans: &[Span<'_>],
        wanted: Wanted<'_>,
        finish: impl FnOnce(&mut Pass<'_, 'a>, &Model),
    ) -> Result<(), EngineError> {
        for span in spans {
            self.kv.bring(span).map_err(EngineError::Memory)?;
        }
        let mut failure = None;
        let mut pass = Pass {
            config: &self.model.config,
            region: self.region,
            kernels: self.kernels,
            team: self.team,
            tile: self.sizes.tile,
            buffers: &mut self.buffers,
            kv: &mut self.kv,
            tokens,
            wanted,
            n_rows: tokens.len(),
            spans,
            attention_time: self.attention_time.as_mut(),
            rows: self.rows.as_ref().map(|rows| (rows, &mut failure)),
        };
        self.model.forward(&mut pass);
        if let Some((_, Some(error))) = pass.rows {
            return Err(EngineError::Embedding(*error));
        }
        finish(&mut pass, self.model);
        Ok(())
    }
}
