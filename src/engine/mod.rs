//! The engine: one sequence over a model, its KV cache and the worker pool.

mod handle;
pub mod pool;
mod request;
mod scheduler;

use std::fmt;
use std::time::Duration;

use crate::error::{Error, Exit};
use crate::kernels::{Kernels, Team};
use crate::load::rows::{RowError, Rows};
use crate::model::{Buffers, Kv, Model, Pass, Sizes};
pub use crate::sampling::BAN_BIAS;
use crate::sampling::SamplingError;
pub use handle::{EVENTS_MAX, EngineHandle, SlotState, Stats, Ticket};
pub use request::{
    Event, Finish, LOGIT_BIAS_MAX, Limits, QUEUE_MAX, Request, RequestError, SLOTS_MAX, Step, SubmitError,
    TOP_LOGPROBS_MAX, Timings,
};
pub use scheduler::Scheduler;

/// What a sequence cannot do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum EngineError {
    /// More tokens than the context holds.
    ContextFull {
        /// Tokens there would be.
        need: usize,
        /// Positions there are.
        ctx: usize,
    },
    /// A token id that the model does not have.
    Token {
        /// The id.
        id: u32,
        /// Tokens of the vocabulary.
        n_vocab: usize,
    },
    /// A row of an embedding table on the disk that cannot be read.
    Embedding(RowError),
    /// Logits that no token can be drawn from.
    Sampling(SamplingError),
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EngineError::ContextFull { need, ctx } => {
                write!(
                    f,
                    "the context is full: {need} tokens needed, {ctx} positions planned; use a shorter prompt or a larger --ctx"
                )
            }
            EngineError::Token { id, n_vocab } => {
                write!(f, "token {id} does not exist: the model has {n_vocab} tokens")
            }
            EngineError::Embedding(error) => error.fmt(f),
            EngineError::Sampling(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for EngineError {}

impl From<EngineError> for Error {
    fn from(e: EngineError) -> Self {
        match e {
            EngineError::Embedding(error) => error.into(),
            EngineError::Sampling(error) => error.into(),
            other => Error::new(Exit::Usage, other),
        }
    }
}

/// A sequence: tokens go in, logits come out.
pub struct Engine<'a> {
    model: &'a Model,
    kernels: &'a Kernels,
    team: &'a dyn Team,
    region: &'a [u8],
    buffers: Buffers<'a>,
    kv: Kv<'a>,
    sizes: Sizes,
    position: usize,
    /// Positions that the cache has seen since it was empty.
    written: usize,
    attention_time: Option<Duration>,
    rows: Option<Rows>,
}

impl<'a> Engine<'a> {
    /// Builds the engine over loaded regions; `sizes` are those the regions were planned with.
    pub fn new(
        model: &'a Model,
        kernels: &'a Kernels,
        team: &'a dyn Team,
        sizes: Sizes,
        (weights, kv, scratch): (&'a [u8], &'a mut [u8], &'a mut [u8]),
    ) -> Engine<'a> {
        assert_eq!(team.size(), sizes.workers);
        let factors = model
            .weights
            .rope_factors
            .as_ref()
            .map(|factors| factors.of(sizes.ctx, model.config.rope.ctx_original).values(weights));
        let buffers = Buffers::carve(scratch, &model.config, model.weights.n_vocab(), &sizes, factors);
        let kv = Kv::new(kv, &model.config, &sizes);
        let region = weights;
        Engine {
            model,
            kernels,
            team,
            region,
            buffers,
            kv,
            sizes,
            position: 0,
            written: 0,
            attention_time: None,
            rows: None,
        }
    }

    /// Gives it the rows of an embedding table that is not in the weights region.
    #[must_use]
    pub fn with_embedding_rows(self, rows: Option<Rows>) -> Self {
        Engine { rows, ..self }
    }

    /// Positions of the context.
    pub fn ctx(&self) -> usize {
        self.sizes.ctx
    }

    /// Most tokens of one pass.
    pub fn n_batch(&self) -> usize {
        self.sizes.n_batch
    }

    /// The logits of the last token that was fed, `[n_vocab]`, as they have been left.
    pub fn last_logits(&mut self) -> &mut [f32] {
        let n_vocab = self.model.weights.n_vocab();
        &mut self.buffers.logits_mut()[..n_vocab]
    }

    /// Tokens in the context.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Forgets all but the first `position` tokens, and returns how many are left: none where those in the window of
    /// the next token have been overwritten, so that all must be fed again.
    pub fn rewind(&mut self, position: usize) -> usize {
        self.position = self.position.min(position);
        if !self.kv.holds(self.position, self.written, &self.model.config) {
            self.position = 0;
        }
        if self.position == 0 {
            self.written = 0;
        }
        self.position
    }

    /// Measures the time spent in attention from here on, and returns what was measured since the last call.
    pub fn take_attention_time(&mut self) -> Duration {
        self.attention_time.replace(Duration::ZERO).unwrap_or_default()
    }

    /// The kernels it runs on.
    pub fn kernels(&self) -> &'a Kernels {
        self.kernels
    }

    /// The model.
    pub fn model(&self) -> &'a Model {
        self.model
    }

    /// Takes tokens into the context and returns the logits of the last, `[n_vocab]`.
    ///
    /// # Errors
    /// A full context or an unknown token; the context is as before then.
    ///
    /// # Panics
    /// If there are no tokens.
    pub fn feed(&mut self, tokens: &[u32]) -> Result<&mut [f32], EngineError> {
        self.check(tokens)?;
        let n_batch = self.sizes.n_batch;
        let last_batch = tokens.len().div_ceil(n_batch) - 1;
        for batch in tokens[..last_batch * n_batch].chunks_exact(n_batch) {
            self.pass(batch, |_, _| ())?;
        }
        let n_vocab = self.model.weights.n_vocab();
        let last = &tokens[last_batch * n_batch..];
        self.pass(last, |pass, model| {
            pass.logits(&model.weights.output_norm, &model.weights.output, last.len() - 1, 1);
        })?;
        Ok(&mut self.buffers.logits_mut()[..n_vocab])
    }

    /// Takes tokens into the context and hands the logits of every one to `each(index, logits)`.
    ///
    /// # Errors
    /// As [`Engine::feed`].
    pub fn feed_all(&mut self, tokens: &[u32], mut each: impl FnMut(usize, &[f32])) -> Result<(), EngineError> {
        self.check(tokens)?;
        let n_vocab = self.model.weights.n_vocab();
        let (n_batch, n_logits) = (self.sizes.n_batch, self.sizes.n_logits);
        for (b, batch) in tokens.chunks(n_batch).enumerate() {
            self.pass(batch, |pass, model| {
                for first in (0..batch.len()).step_by(n_logits) {
                    let n = n_logits.min(batch.len() - first);
                    let rows = pass.logits(&model.weights.output_norm, &model.weights.output, first, n);
                    let stride = rows.len() / n;
                    for (i, row) in rows.chunks_exact(stride).enumerate() {
                        each(b * n_batch + first + i, &row[..n_vocab]);
                    }
                }
            })?;
        }
        Ok(())
    }

    fn check(&self, tokens: &[u32]) -> Result<(), EngineError> {
        assert!(!tokens.is_empty());
        let n_vocab = self.model.weights.n_vocab();
        if let Some(&id) = tokens.iter().find(|&&id| id as usize >= n_vocab) {
            return Err(EngineError::Token { id, n_vocab });
        }
        match self.position + tokens.len() {
            need if need > self.sizes.ctx => Err(EngineError::ContextFull { need, ctx: self.sizes.ctx }),
            _ => Ok(()),
        }
    }

    fn pass(&mut self, tokens: &[u32], finish: impl FnOnce(&mut Pass<'_, 'a>, &Model)) -> Result<(), EngineError> {
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
            position: self.position,
            attention_time: self.attention_time.as_mut(),
            rows: self.rows.as_ref().map(|rows| (rows, &mut failure)),
        };
        self.model.forward(&mut pass);
        if let Some((_, Some(error))) = pass.rows {
            return Err(EngineError::Embedding(*error));
        }
        finish(&mut pass, self.model);
        self.position += tokens.len();
        self.written = self.written.max(self.position);
        Ok(())
    }
}
