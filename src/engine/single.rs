//! One sequence over a model.

use std::time::Duration;

use super::core::Core;
use super::error::EngineError;
use super::pages::{Pages, Table};
use super::stops::{StopRules, Stops};
use crate::kernels::Kernels;
use crate::model::cache::PAGE_TOKENS;
use crate::model::{ForwardPass, Model, OutputRows};

/// A sequence: tokens go in, logits come out.
pub struct Engine<'a> {
    core: Core<'a>,
    /// All of them are this sequence's.
    pages: Pages<'a>,
    table: Table,
    position: usize,
    stop_rules: StopRules,
    /// Of what is being fed.
    stops: Stops,
}

impl<'a> Engine<'a> {
    /// A sequence that has the whole cache of `core` to itself.
    pub fn new(core: Core<'a>) -> Engine<'a> {
        let pages = Pages::new(core.cache.plan(), &mut []);
        let table = Table::new(core.cache.plan(), core.sizes.ctx, 0);
        let stop_rules = StopRules::new(core.cache.plan());
        Engine { core, pages, table, position: 0, stop_rules, stops: Stops::default() }
    }

    /// Positions of the context.
    pub fn ctx(&self) -> usize {
        self.core.sizes.ctx
    }

    /// Tokens in the context.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Forgets all but the first `position` tokens, and returns how many are left: fewer where recurrent layers have a state
    /// of an earlier position alone, none where those in the window of the next token have been given up. The others must be
    /// fed again.
    pub fn rewind(&mut self, position: usize) -> usize {
        self.position = self.pages.resumable(&self.table, self.position, self.position.min(position));
        self.pages.truncate(&mut self.table, self.position);
        self.position
    }

    /// Measures the time spent in attention from here on, and returns what was measured since the last call.
    pub fn take_attention_time(&mut self) -> Duration {
        self.core.attention_time.replace(Duration::ZERO).unwrap_or_default()
    }

    /// The kernels it runs on.
    pub fn kernels(&self) -> &'a Kernels {
        self.core.kernels
    }

    /// The model.
    pub fn model(&self) -> &'a Model {
        self.core.model
    }

    /// Takes tokens into the context and returns the logits of the last, `[n_vocab]`.
    ///
    /// # Errors
    /// A full context or an unknown token; the context is as before then.
    ///
    /// # Panics
    /// If there are no tokens.
    pub fn feed(&mut self, tokens: &[u32]) -> Result<&mut [f32], EngineError> {
        self.begin(tokens)?;
        let n_batch = self.core.sizes.n_batch;
        let last_batch = tokens.len().div_ceil(n_batch) - 1;
        for batch in tokens[..last_batch * n_batch].chunks_exact(n_batch) {
            self.pass(batch, OutputRows::Tokens(&[]), |_, _| ())?;
        }
        let n_vocab = self.core.model.weights.n_vocab();
        let last = &tokens[last_batch * n_batch..];
        self.pass(last, OutputRows::Tokens(&[last.len() - 1]), |pass, model| {
            pass.logits((&model.weights.output_norm, &model.weights.output), 0..1);
        })?;
        Ok(&mut self.core.buffers.logits_mut()[..n_vocab])
    }

    /// Takes tokens into the context and hands the logits of every one to `each(index, logits)`.
    ///
    /// # Errors
    /// As [`Engine::feed`].
    pub fn feed_all(&mut self, tokens: &[u32], mut each: impl FnMut(usize, &[f32])) -> Result<(), EngineError> {
        self.begin(tokens)?;
        let n_vocab = self.core.model.weights.n_vocab();
        let (n_batch, n_logits) = (self.core.sizes.n_batch, self.core.sizes.n_logits);
        for (b, batch) in tokens.chunks(n_batch).enumerate() {
            self.pass(batch, OutputRows::All, |pass, model| {
                for first in (0..batch.len()).step_by(n_logits) {
                    let n = n_logits.min(batch.len() - first);
                    let output = (&model.weights.output_norm, &model.weights.output);
                    let rows = pass.logits(output, first..first + n);
                    let stride = rows.len() / n;
                    for (i, row) in rows.chunks_exact(stride).enumerate() {
                        each(b * n_batch + first + i, &row[..n_vocab]);
                    }
                }
            })?;
        }
        Ok(())
    }

    /// Whether it can take these tokens; it makes ready to do so.
    fn begin(&mut self, tokens: &[u32]) -> Result<(), EngineError> {
        assert!(!tokens.is_empty());
        let n_vocab = self.core.model.weights.n_vocab();
        if let Some(&id) = tokens.iter().find(|&&id| id as usize >= n_vocab) {
            return Err(EngineError::Token { id, n_vocab });
        }
        match self.position + tokens.len() {
            need if need > self.ctx() => Err(EngineError::ContextFull { need, ctx: self.ctx() }),
            end => {
                self.stops = self.stop_rules.of_feed(self.position / PAGE_TOKENS, tokens.len(), end);
                Ok(())
            }
        }
    }

    fn pass(
        &mut self,
        tokens: &[u32],
        output_rows: OutputRows<'_>,
        finish: impl FnOnce(&mut ForwardPass<'_, 'a>, &Model),
    ) -> Result<(), EngineError> {
        let has_pages = self.pages.extend(&mut self.table, self.position, tokens.len(), &self.stops);
        assert!(has_pages, "the cache has pages for the whole context");
        let slice = self.table.slice(0, tokens.len(), self.position);
        self.core.pass(tokens, &[slice], output_rows, finish)?;
        self.position += tokens.len();
        self.pages.advance(&mut self.table, self.position);
        Ok(())
    }
}
