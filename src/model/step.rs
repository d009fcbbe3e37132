//! The operations an architecture file is written in.
//!
//! What is done to rows, but for activations, runs on the calling thread where they are few; everything else is handed to
//! the team, one barrier an operation. What concerns heads is in [`heads`] and [`attend`], convolutions in [`conv`], layers
//! of experts in [`experts`], products in [`product`]; the memory of it all in [`buffers`].

mod activations;
mod attend;
mod buffers;
mod conv;
mod experts;
mod heads;
mod product;

use std::ops::Range;
use std::time::Duration;

use super::cache::{Cache, PAGE_TOKENS};
use super::config::{Config, HEAD_DIM_MAX};
use super::weights::{FeedForward, Form, GatedFfn, Linear, MoeFfn, Weight};
use crate::kernels::{ActLayout, ActType, Grid, Kernels, KvType, Team, Tile, row_stride};
use crate::load::rows::{RowError, Rows};
use crate::quant::PANEL_ROWS;
pub use buffers::{Buffers, scratch_bytes};
pub use heads::Pairing;
use product::{Tools, multiply};

/// Tokens up to which work on single rows is not worth waking the team.
const ALONE_TOKENS_MAX: usize = 2;

/// Sizes that decide how much memory a pass needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Most tokens of one pass.
    pub n_batch: usize,
    /// Most rows of logits asked for at once.
    pub n_logits: usize,
    /// Positions of one sequence.
    pub ctx: usize,
    /// Most sequences of one pass.
    pub sequences: usize,
    /// Positions that the KV cache holds, of all sequences together; rounded up to whole pages.
    pub kv_tokens: usize,
    /// How K and V are kept.
    pub kv_type: KvType,
    /// Workers of the team.
    pub workers: usize,
    /// Cache tile.
    pub tile: Tile,
}

/// Values from row to row of a buffer of `n` values a row.
fn padded(n: usize) -> usize {
    row_stride(n)
}

/// What a feed-forward layer makes of its gate and up projections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `silu(gate) * up`
    Swiglu,
    /// `gelu(gate) * up`
    Geglu,
    /// The clamped one of gpt-oss.
    SwigluClamped,
}

impl Activation {
    fn apply(self, kernels: &Kernels, gate: &[f32], up: &[f32], out: &mut [f32]) {
        match self {
            Activation::Swiglu => kernels.silu_mul(gate, up, out),
            Activation::Geglu => kernels.gelu_mul(gate, up, out),
            Activation::SwigluClamped => kernels.swiglu_clamped(gate, up, out),
        }
    }
}

/// Some consecutive tokens of one sequence, which has the pages for them.
#[derive(Clone, Copy, Debug)]
pub struct SequenceSlice<'p> {
    /// Which token of the pass is the first.
    pub first: usize,
    /// How many there are.
    pub n: usize,
    /// Position of the first.
    pub position: usize,
    /// The sequence's pages in order, of each pool. No two sequences have the same page where one writes.
    pub pages: &'p [Vec<u32>],
    /// The state the sequence is in before the first token; [`NONE`](super::cache::NONE) at its beginning.
    pub state_before: u32,
    /// Where its state is written, alone of all sequences.
    pub state: u32,
    /// By page, where the state at the page's end is written as well; [`NONE`](super::cache::NONE) for nowhere.
    pub checkpoints: &'p [u32],
}

impl SequenceSlice<'_> {
    /// The pages that hold its tokens.
    pub fn page_range(&self) -> Range<usize> {
        self.position / PAGE_TOKENS..(self.position + self.n).div_ceil(PAGE_TOKENS)
    }

    /// How many pages it comes to the end of.
    pub fn ended_pages(&self) -> usize {
        (self.position + self.n) / PAGE_TOKENS - self.position / PAGE_TOKENS
    }
}

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
    /// Whose tokens they are: without a gap, at most [`Sizes::sequences`].
    pub slices: &'p [SequenceSlice<'p>],
    /// Where the time spent in attention is added up, if anybody asks.
    pub attention_time: Option<&'p mut Duration>,
    /// The rows of an embedding table that is not in the region.
    pub rows: Option<&'p Rows>,
}

/// Runs `job`, which draws its work, on the team, or right here when there is too little to share.
fn share(team: &dyn Team, n_tokens: usize, job: &(dyn Fn(usize) + Sync)) {
    if n_tokens <= ALONE_TOKENS_MAX { job(0) } else { team.drain(job) }
}

/// The rows `(n, columns, stride)` of `data`, one at a time and each worker its own stretch of them: what it made of a row in
/// one operation is in its caches for the next.
fn each_row<'a, T>(team: &dyn Team, data: &'a mut [T], (n, cols, stride): (usize, usize, usize)) -> Grid<'a, T> {
    Grid::new(data, (n, cols, stride), (1, cols)).in_parts(team.size())
}

impl<'p> ForwardPass<'p, '_> {
    fn tools(&self) -> Tools<'p> {
        Tools { kernels: self.kernels, team: self.team, region: self.region, tile: self.tile }
    }

    /// Rows of the embedding table, scaled, into the residual stream.
    ///
    /// # Errors
    /// A row of a table in a file that cannot be read.
    pub fn embed(&mut self, table: &Weight) -> Result<(), RowError> {
        if table.form == Form::File {
            return self.embed_from_file(table);
        }
        let (n, e) = (self.tokens.len(), self.config.n_embd);
        let (tokens, data, ty) = (self.tokens, table.of(self.region), table.ty);
        let scale = self.config.embedding_scale;
        let grid = each_row(self.team, self.buffers.x, (n, e, padded(e)));
        share(self.team, n, &|worker| {
            while let Some(mut block) = grid.next_of(worker) {
                let token = tokens[block.row0] as usize;
                let out = block.row(0);
                match table.form {
                    Form::Panels => {
                        let panel_bytes = ty.panel_bytes(e);
                        let panel = &data[token / PANEL_ROWS * panel_bytes..][..panel_bytes];
                        ty.decode_panel_row(panel, token % PANEL_ROWS, out);
                    }
                    _ => ty.decode_row(&data[token * ty.row_bytes(e)..][..ty.row_bytes(e)], out),
                }
                if scale != 1.0 {
                    out.iter_mut().for_each(|x| *x *= scale);
                }
            }
        });
        Ok(())
    }

    fn embed_from_file(&mut self, table: &Weight) -> Result<(), RowError> {
        let rows = self.rows.expect("the engine has the rows of a table in a file");
        let (e, ty, scale) = (self.config.n_embd, table.ty, self.config.embedding_scale);
        if self.tokens.len() > 1 {
            self.tokens.iter().for_each(|&token| rows.prefetch(token as usize));
        }
        // The records of activations are not in use yet, and hold some blocks of a row whatever its type.
        let buffer = &mut *self.buffers.acts.bytes;
        let blocks = buffer.len() / ty.block_bytes();
        for (&token, out) in self.tokens.iter().zip(self.buffers.x.chunks_exact_mut(padded(e))) {
            let pieces = out[..e].chunks_mut(blocks * ty.block_len());
            for (i, out) in pieces.enumerate() {
                let bytes = &mut buffer[..ty.row_bytes(out.len())];
                rows.read(token as usize, i * blocks * ty.block_bytes(), bytes)?;
                ty.decode_row(bytes, out);
            }
            if scale != 1.0 {
                out[..e].iter_mut().for_each(|x| *x *= scale);
            }
        }
        Ok(())
    }

    /// After the mixer of the last layer only output rows go on: what the mixer came to and the residual stream. The other
    /// tokens are in the cache, where they are needed. A pass has one row at least.
    pub fn keep_output_rows(&mut self, layer: usize) {
        let OutputRows::Tokens(tokens) = self.output_rows else { return };
        if layer + 1 < self.config.n_layers() {
            return;
        }
        let e = self.config.n_embd;
        for (row, &token) in tokens.iter().enumerate() {
            self.buffers.x.copy_within(token * padded(e)..token * padded(e) + e, row * padded(e));
        }
        self.buffers.acts.keep(tokens);
        self.n_rows = tokens.len().max(1);
    }

    /// RMSNorm of the residual stream, or the stream itself without a norm, into the activation records, which meet `next`
    /// first.
    pub fn norm(&mut self, norm: &Option<Weight>, next: &Weight) {
        self.norm_rows(norm.as_ref(), 0..self.n_rows, next);
    }

    fn norm_rows(&mut self, norm: Option<&Weight>, rows: Range<usize>, next: &Weight) {
        let (e, n, first) = (self.config.n_embd, rows.len(), rows.start);
        let format = self.kernels.act_type(next.ty, n);
        let layout = ActLayout::new(e);
        let norm = norm.map(|norm| norm.values(self.region));
        let (kernels, eps) = (self.kernels, self.config.norm_eps);
        let Buffers { x, acts, .. } = &mut *self.buffers;
        let x = &**x;
        let grid = each_row(self.team, acts.writable(layout, format), (n, layout.bytes(), layout.bytes()));
        share(self.team, n, &|worker| {
            while let Some(mut block) = grid.next_of(worker) {
                let x = &x[(first + block.row0) * padded(e)..][..e];
                let out = layout.values_mut(block.row(0));
                match norm {
                    Some(norm) => kernels.rms_norm(x, norm, eps, out),
                    None => out.copy_from_slice(x),
                }
                kernels.quantise(layout, format, block.row(0));
            }
        });
    }

    /// The linear map of the activation records, added to the residual stream.
    pub fn add_product(&mut self, map: &Linear) {
        let (n, tools) = (self.n_rows, self.tools());
        let Buffers { x, acts, workers, .. } = &mut *self.buffers;
        multiply(tools, workers, (acts, n), [(map, &mut **x)], true);
    }

    /// The RMSNorm of the linear map of the activation records, added to the residual stream.
    pub fn add_normed_product(&mut self, map: &Linear, norm: &Option<Weight>) {
        let norm = norm.as_ref().expect("the architecture has norms of what is added");
        let (n, e, kernels, eps) = (self.n_rows, self.config.n_embd, self.kernels, self.config.norm_eps);
        let tools = self.tools();
        let Buffers { x, branch, acts, workers, .. } = &mut *self.buffers;
        multiply(tools, workers, (acts, n), [(map, &mut **branch)], false);
        let (branch, norm) = (&**branch, norm.values(self.region));
        let grid = each_row(self.team, x, (n, e, padded(e)));
        share(self.team, n, &|worker| {
            while let Some(mut block) = grid.next_of(worker) {
                let branch = &branch[block.row0 * padded(e)..][..e];
                kernels.add_rms_norm(branch, norm, eps, block.row(0));
            }
        });
    }

    /// Everything of a feed-forward part that has a norm before it, added to the residual stream: of a dense layer
    /// `down(activation(gate(h)) * up(h))` with `h` the normed stream; of experts the weighted sum of as much over the chosen
    /// ones, and over the shared one.
    pub fn add_feed_forward(&mut self, norm: &Option<Weight>, ffn: &FeedForward, activation: Activation) {
        let Some(first) = ffn.first() else { return };
        self.norm(norm, first);
        match ffn {
            FeedForward::None => {}
            FeedForward::Dense(ffn) => self.add_gated(ffn, activation),
            FeedForward::Experts(moe) => self.add_moe(moe, activation),
        }
    }

    fn add_gated(&mut self, ffn: &GatedFfn, activation: Activation) {
        self.project_gate_up(ffn);
        self.activate(ffn, activation);
        self.add_product(&ffn.down);
    }

    fn add_moe(&mut self, moe: &MoeFfn, activation: Activation) {
        self.route(moe);
        self.project_experts(moe);
        self.add_experts(moe, activation);
        let Some(shared) = &moe.shared else { return };
        match &shared.gate {
            None => self.add_gated(&shared.ffn, activation),
            Some(gate) => {
                self.score_shared(gate);
                self.project_gate_up(&shared.ffn);
                self.activate_shared(&shared.ffn, activation);
                self.add_product(&shared.ffn.down);
            }
        }
    }

    /// Gate and up projections of the normed stream, which stays in the activation records.
    pub fn project_gate_up(&mut self, ffn: &GatedFfn) {
        let (n, tools) = (self.n_rows, self.tools());
        let Buffers { acts, gate, up, workers, .. } = &mut *self.buffers;
        let products = [(&ffn.gate, &mut **gate), (&ffn.up, &mut **up)];
        multiply(tools, workers, (acts, n), products, false);
    }

    /// `activation(gate) * up` into the activation records.
    pub fn activate(&mut self, ffn: &GatedFfn, activation: Activation) {
        let kernels = self.kernels;
        self.activate_rows(ffn, |_, gate, up, out| activation.apply(kernels, gate, up, out));
    }

    /// The same, times the token's [`ForwardPass::score_shared`]: the map that follows is linear.
    fn activate_shared(&mut self, ffn: &GatedFfn, activation: Activation) {
        let kernels = self.kernels;
        let scores = std::mem::take(&mut self.buffers.shared_gates);
        self.activate_rows(ffn, |row, gate, up, out| {
            activation.apply(kernels, gate, up, out);
            out.iter_mut().for_each(|x| *x *= scores[row]);
        });
        self.buffers.shared_gates = scores;
    }

    fn activate_rows(&mut self, ffn: &GatedFfn, apply: impl Fn(usize, &[f32], &[f32], &mut [f32]) + Sync) {
        let down = &ffn.down.weight;
        let (n, f, kernels, team) = (self.n_rows, down.cols, self.kernels, self.team);
        // A factor meets values before they become anything else.
        let format = if down.factors.is_some() { ActType::F32 } else { kernels.act_type(down.ty, n) };
        let layout = ActLayout::new(f);
        let Buffers { acts, gate, up, .. } = &mut *self.buffers;
        let (gate, up) = (&**gate, &**up);
        let rows = |bytes, cols, block| Grid::new(bytes, (n, cols, layout.bytes()), (1, block));
        acts.write((kernels, team), (layout, format), rows, |(_, row), cols, out| {
            let (gate, up) = (&gate[row * padded(f)..][cols.clone()], &up[row * padded(f)..][cols]);
            apply(row, gate, up, out);
        });
    }

    /// Logits of some of the output rows: rows of `padded(n_vocab)` values of which `n_vocab` count.
    ///
    /// # Panics
    /// If more rows are asked for than the buffers were sized for, or than there are.
    pub fn logits(&mut self, (norm, output): (&Weight, &Linear), rows: Range<usize>) -> &mut [f32] {
        let (n, width) = (rows.len(), padded(output.weight.rows));
        assert!(n * width <= self.buffers.logits.len() && rows.end <= self.n_rows);
        self.norm_rows(Some(norm), rows, &output.weight);
        let tools = self.tools();
        let Buffers { acts, logits, workers, .. } = &mut *self.buffers;
        multiply(tools, workers, (acts, n), [(output, &mut **logits)], false);
        let logits = &mut self.buffers.logits[..n * width];
        if let Some(cap) = self.config.logit_cap {
            let grid = Grid::new(logits, (1, n * width, n * width), (1, 1024));
            self.team.drain(&|_| {
                while let Some(mut block) = grid.next() {
                    block.row(0).iter_mut().for_each(|x| *x = cap * (*x / cap).tanh());
                }
            });
        }
        &mut self.buffers.logits[..n * width]
    }
}
