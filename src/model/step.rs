//! The buffers of a pass and the operations an architecture file is written in.
//!
//! All buffers are parts of the scratch region; widths are padded to whole panels, because matrix products write whole
//! panels. What is done to rows, but for activations, runs on the calling thread where they are few; everything else is
//! handed to the team, one barrier an operation. What concerns heads is in [`heads`] and [`attend`], the cache in [`kv`],
//! layers of experts in [`experts`].

mod attend;
mod experts;
mod heads;
mod kv;

use std::ops::Range;
use std::sync::Mutex;
use std::time::Duration;

use super::config::{Config, HEAD_DIM_MAX};
use super::weights::{Form, Gated, Weight};
use crate::bytes;
use crate::kernels::{
    ActLayout, ActType, Acts, BLOCK, Block, Grid, Kernels, KvType, Matrix, Team, Tile, attend_scratch, partials_len,
    row_stride,
};
use crate::load::rows::{RowError, Rows};
use crate::quant::{PANEL_ROWS, SUPER};
use attend::{Band, Partials, Ranged};
pub use experts::Activation;
use experts::Routed;
use heads::Rotation;
pub use heads::{HeadSteps, Pairing};
pub use kv::{Kv, PAGE_TOKENS, Reach, check_kv_type, kv_bytes, page_counts, window_pages};

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

/// Bytes of each buffer, in the order of [`Buffers`].
fn buffer_sizes(config: &Config, n_vocab: usize, sizes: &Sizes) -> [usize; 12] {
    let (n, f32s) = (sizes.n_batch, 4);
    let q_width = config.n_heads * config.head_dim;
    let n_ff = config.n_ff_dense();
    let record = [config.n_embd, q_width, n_ff].map(|cols| ActLayout::new(cols).bytes()).into_iter().max();
    let branch = if config.arch.tensors().post_norms { padded(config.n_embd) } else { 0 };
    [
        n * padded(config.n_embd) * f32s,
        n * branch * f32s,
        n.max(sizes.n_logits) * record.unwrap_or(0),
        n * padded(q_width) * f32s,
        n * padded(config.n_kv_heads * config.head_dim) * f32s,
        n * padded(config.n_kv_heads * config.head_dim) * f32s,
        n * padded(n_ff) * f32s,
        n * padded(n_ff) * f32s,
        Rotation::bytes(config, sizes),
        sizes.n_logits * padded(n_vocab) * f32s,
        sizes.sequences * config.n_kv_heads * partials_len(sizes.ctx, config.head_dim) * f32s,
        Routed::bytes(config, sizes),
    ]
}

/// Bytes of a worker's scratch: what its kernels need, and room for the activations of a group of rows.
fn worker_bytes(config: &Config, sizes: &Sizes) -> [usize; 2] {
    let kernels = sizes.tile.scratch_bytes().max(attend_scratch(config.head_dim) * 4).next_multiple_of(64);
    [kernels, Routed::gathered_bytes(config, sizes).next_multiple_of(64)]
}

/// Bytes of scratch for a pass of these sizes; `None` if the product overflows.
pub fn scratch_bytes(config: &Config, n_vocab: usize, sizes: &Sizes) -> Option<u64> {
    let buffers = buffer_sizes(config, n_vocab, sizes).into_iter().map(|b| b.next_multiple_of(64) as u64).sum::<u64>();
    buffers.checked_add((sizes.workers * worker_bytes(config, sizes).iter().sum::<usize>()) as u64)
}

/// The buffers of a pass.
pub struct Buffers<'a> {
    /// Residual stream, `[n_batch, padded(n_embd)]`.
    x: &'a mut [f32],
    /// What is normed before it is added to the stream, `[n_batch, padded(n_embd)]`, in architectures that do so.
    branch: &'a mut [f32],
    /// Activations on their way into whatever matrix comes next.
    acts: Records<'a>,
    /// `[n_batch, padded(n_heads * head_dim)]`.
    q: &'a mut [f32],
    /// `[n_batch, padded(n_kv_heads * head_dim)]`, as `v`.
    k: &'a mut [f32],
    v: &'a mut [f32],
    /// `[n_batch, padded(n_ff)]`, as `up`.
    gate: &'a mut [f32],
    up: &'a mut [f32],
    /// Of layers that see everything, and of those with a window.
    rotations: Vec<Rotation<'a>>,
    /// `[n_logits, padded(n_vocab)]`.
    logits: &'a mut [f32],
    /// Results of key ranges, one buffer per sequence and KV head.
    partials: Vec<Mutex<Partials<'a>>>,
    /// Which part of a pass is where; as long as a pass can need.
    lists: Lists,
    /// The experts' rows.
    routed: Routed<'a>,
    /// One scratch buffer per worker; each worker locks its own.
    workers: Vec<Mutex<WorkerScratch<'a>>>,
}

/// Activation records.
struct Records<'a> {
    bytes: &'a mut [u8],
    /// What they hold beside values: [`ActType::F32`] for nothing.
    form: ActType,
    /// Whether they hold values.
    values: bool,
}

impl Default for Records<'_> {
    fn default() -> Self {
        Records::new(&mut [])
    }
}

impl<'a> Records<'a> {
    fn new(bytes: &'a mut [u8]) -> Records<'a> {
        Records { bytes, form: ActType::F32, values: true }
    }

    /// For whoever writes values and `form`.
    fn hold(&mut self, form: ActType) -> &mut [u8] {
        (self.form, self.values) = (form, true);
        self.bytes
    }

    /// Brings the first `n` to `form`, unless whoever wrote their values has done so.
    fn bring(&mut self, (kernels, team): (&Kernels, &dyn Team), layout: ActLayout, n: usize, form: ActType) {
        if form == self.form || form == ActType::F32 && self.values {
            return;
        }
        assert!(self.values, "records that were written for one product alone");
        self.form = form;
        let grid = each_row(team, self.bytes, (n, layout.bytes(), layout.bytes()));
        share(team, n, &|worker| {
            while let Some(mut block) = grid.next_of(worker) {
                kernels.quantise(layout, form, block.row(0));
            }
        });
    }

    /// Writes what the next product alone reads: `form`, and values only where that is not made of 256 of them at a time.
    /// `values` writes those of some columns of a row; `cut` makes a grid of bands and rows over the first so many bytes
    /// of every record and blocks of as many.
    fn write<'b>(
        &'b mut self,
        (kernels, team): (&Kernels, &dyn Team),
        (layout, form): (ActLayout, ActType),
        cut: impl FnOnce(&'b mut [u8], usize, usize) -> Grid<'b, u8>,
        values: impl Fn((usize, usize), Range<usize>, &mut [f32]) + Sync,
    ) {
        (self.form, self.values) = (form, !form.in_blocks());
        if self.values {
            let grid = cut(self.bytes, layout.bytes(), layout.bytes()).in_parts(team.size());
            return team.drain(&|worker| {
                while let Some(mut block) = grid.next_of(worker) {
                    for row in 0..block.rows {
                        let (at, record) = ((block.band, block.row0 + row), block.row(row));
                        values(at, 0..layout.cols(), layout.values_mut(record));
                        kernels.quantise(layout, form, record);
                    }
                }
            });
        }
        let blocks = layout.blocks();
        let grid = cut(&mut self.bytes[blocks.start..], blocks.len(), BLOCK).in_parts(team.size()).tapered();
        team.drain(&|worker| {
            let mut some = [0.0; SUPER];
            while let Some(mut block) = grid.next_of(worker) {
                for row in 0..block.rows {
                    let (at, first) = ((block.band, block.row0 + row), block.col0 / BLOCK * SUPER);
                    for (i, out) in block.row(row).chunks_exact_mut(BLOCK).enumerate() {
                        let from = first + i * SUPER;
                        let cols = from..(from + SUPER).min(layout.cols());
                        let some = &mut some[..cols.len()];
                        values(at, cols, some);
                        kernels.quantise_block(form, some, out);
                    }
                }
            }
        });
    }
}

/// What a pass is made of, made anew for each without allocating.
struct Lists {
    /// The pages that the pass writes to, in rising order, and what is written there; of either [`Reach`].
    picks: [Vec<u32>; 2],
    writes: [Vec<Write>; 2],
    /// Where the bands of tokens of attention end, the first begins at 0; and the span of each.
    cuts: Vec<u32>,
    bands: Vec<Band>,
    /// Spans whose keys are shared out in ranges.
    ranged: Vec<Ranged>,
}

/// A page of a sequence, some positions of which a pass writes.
#[derive(Clone, Copy)]
struct Write {
    page: u32,
    span: u32,
    /// Which page of its sequence.
    index: u32,
}

impl Lists {
    fn new(sizes: &Sizes) -> Lists {
        // A sequence begins and ends within a page.
        let writes = sizes.n_batch.div_ceil(PAGE_TOKENS) + 2 * sizes.sequences;
        Lists {
            picks: [(); 2].map(|()| Vec::with_capacity(writes)),
            writes: [(); 2].map(|()| Vec::with_capacity(writes)),
            cuts: Vec::with_capacity(sizes.n_batch + 1),
            bands: Vec::with_capacity(sizes.n_batch),
            ranged: Vec::with_capacity(sizes.sequences),
        }
    }

    /// Which pages the spans write to.
    fn list_writes(&mut self, spans: &[Span<'_>]) {
        for reach in Reach::BOTH {
            let (picks, writes) = (&mut self.picks[reach as usize], &mut self.writes[reach as usize]);
            picks.clear();
            writes.clear();
            for (number, span) in (0..).zip(spans) {
                let pages = span.position / PAGE_TOKENS..(span.position + span.n).div_ceil(PAGE_TOKENS);
                // A model without such layers has no pages of them.
                for index in pages.filter(|_| !span.pages[reach as usize].is_empty()) {
                    let page = span.pages[reach as usize][index];
                    writes.push(Write { page, span: number, index: index as u32 });
                }
            }
            writes.sort_unstable_by_key(|write| write.page);
            picks.extend(writes.iter().map(|write| write.page));
        }
    }
}

/// The scratch of one worker.
struct WorkerScratch<'a> {
    kernels: &'a mut [u8],
    /// Activation records of one group of rows.
    gathered: &'a mut [u8],
}

impl<'a> Buffers<'a> {
    /// Carves the buffers out of the scratch region and fills the tables of rotary frequencies, whose divisors are
    /// `rope_factors`.
    ///
    /// # Panics
    /// If the region is smaller than [`scratch_bytes`].
    pub fn carve(
        scratch: &'a mut [u8],
        config: &Config,
        n_vocab: usize,
        sizes: &Sizes,
        rope_factors: Option<&[f32]>,
    ) -> Buffers<'a> {
        let mut rest = scratch;
        let [x, branch, acts, q, k, v, gate, up, rotations, logits, waiting, routed] =
            buffer_sizes(config, n_vocab, sizes).map(|bytes| {
                let (part, tail) = std::mem::take(&mut rest).split_at_mut(bytes.next_multiple_of(64));
                rest = tail;
                &mut part[..bytes]
            });
        let mut waiting: &mut [f32] = bytes::cast_mut(waiting);
        let partials = (0..sizes.sequences * config.n_kv_heads).map(|_| {
            let (rows, tail) = std::mem::take(&mut waiting).split_at_mut(partials_len(sizes.ctx, config.head_dim));
            waiting = tail;
            Mutex::new(Partials { done: 0, rows })
        });
        let partials = partials.collect();
        let [kernels_bytes, gathered_bytes] = worker_bytes(config, sizes);
        let workers = rest.chunks_exact_mut(kernels_bytes + gathered_bytes).take(sizes.workers).map(|scratch| {
            let (kernels, gathered) = scratch.split_at_mut(kernels_bytes);
            Mutex::new(WorkerScratch { kernels, gathered })
        });
        let workers = workers.collect();
        Buffers {
            x: bytes::cast_mut(x),
            branch: bytes::cast_mut(branch),
            acts: Records::new(acts),
            q: bytes::cast_mut(q),
            k: bytes::cast_mut(k),
            v: bytes::cast_mut(v),
            gate: bytes::cast_mut(gate),
            up: bytes::cast_mut(up),
            rotations: Rotation::carve(rotations, config, sizes, rope_factors),
            logits: bytes::cast_mut(logits),
            partials,
            lists: Lists::new(sizes),
            routed: Routed::carve(routed, config, sizes),
            workers,
        }
    }
}

impl Buffers<'_> {
    /// The rows last written by [`Pass::logits`].
    pub fn logits_mut(&mut self) -> &mut [f32] {
        self.logits
    }

    /// Values from row to row of logits.
    pub fn logits_stride(&self, n_vocab: usize) -> usize {
        padded(n_vocab)
    }
}

/// Some consecutive tokens of one sequence, which has the pages for them.
#[derive(Clone, Copy, Debug)]
pub struct Span<'p> {
    /// Which token of the pass is the first.
    pub first: usize,
    /// How many there are.
    pub n: usize,
    /// Position of the first.
    pub position: usize,
    /// The sequence's pages in order, of either [`Reach`]. No two sequences have the same page where one writes.
    pub pages: [&'p [u32]; 2],
}

/// Tokens of a pass whose hidden states are read in the end.
#[derive(Clone, Copy, Debug)]
pub enum Wanted<'p> {
    /// Of every token.
    All,
    /// Of these, which rise.
    Tokens(&'p [usize]),
}

/// Tokens on their way through the layers.
pub struct Pass<'p, 'a> {
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
    /// The KV cache.
    pub kv: &'p mut Kv<'a>,
    /// The tokens; ids below the vocabulary's size.
    pub tokens: &'p [u32],
    /// Whose hidden states are read in the end.
    pub wanted: Wanted<'p>,
    /// Rows of the residual stream: one per token, until the attention of the last layer leaves only those wanted.
    pub n_rows: usize,
    /// Whose they are: without a gap, at most [`Sizes::sequences`].
    pub spans: &'p [Span<'p>],
    /// Where the time spent in attention is added up, if anybody asks.
    pub attention_time: Option<&'p mut Duration>,
    /// Of an embedding table that is not in the region, its rows, and where it is said that one could not be read: the pass
    /// means nothing then.
    pub rows: Option<(&'p Rows, &'p mut Option<RowError>)>,
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

impl<'p> Pass<'p, '_> {
    fn tools(&self) -> Tools<'p> {
        Tools { kernels: self.kernels, team: self.team, region: self.region, tile: self.tile }
    }

    /// Rows of the embedding table, scaled, into the residual stream.
    pub fn embed(&mut self, table: &Weight) {
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
    }

    fn embed_from_file(&mut self, table: &Weight) {
        let (rows, failed) = self.rows.as_mut().expect("the engine has the rows of a table in a file");
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
                if let Err(error) = rows.read(token as usize, i * blocks * ty.block_bytes(), bytes) {
                    **failed = Some(error);
                    return;
                }
                ty.decode_row(bytes, out);
            }
            if scale != 1.0 {
                out[..e].iter_mut().for_each(|x| *x *= scale);
            }
        }
    }

    /// Leaves the rows of the tokens that are wanted: what attention came to and the residual stream. The others are in the
    /// cache, where they are needed. A pass has one row at least.
    fn keep_wanted(&mut self) {
        let Wanted::Tokens(tokens) = self.wanted else { return };
        let (e, width) = (self.config.n_embd, self.config.n_heads * self.config.head_dim);
        let record = ActLayout::new(width).bytes();
        for (row, &token) in tokens.iter().enumerate() {
            self.buffers.x.copy_within(token * padded(e)..token * padded(e) + e, row * padded(e));
            self.buffers.acts.bytes.copy_within(token * record..token * record + width * 4, row * record);
        }
        self.n_rows = tokens.len().max(1);
    }

    /// RMSNorm of the residual stream into the activation records, which meet `next` first.
    pub fn norm(&mut self, weight: &Weight, next: &Weight) {
        self.norm_rows(weight, 0..self.n_rows, next);
    }

    fn norm_rows(&mut self, weight: &Weight, rows: Range<usize>, next: &Weight) {
        let (e, n, first) = (self.config.n_embd, rows.len(), rows.start);
        let form = self.kernels.act_type(next.ty, n);
        let layout = ActLayout::new(e);
        let weight = weight.values(self.region);
        let (kernels, eps) = (self.kernels, self.config.norm_eps);
        let Buffers { x, acts, .. } = &mut *self.buffers;
        let x = &**x;
        let grid = each_row(self.team, acts.hold(form), (n, layout.bytes(), layout.bytes()));
        share(self.team, n, &|worker| {
            while let Some(mut block) = grid.next_of(worker) {
                let x = &x[(first + block.row0) * padded(e)..][..e];
                kernels.rms_norm(x, weight, eps, layout.values_mut(block.row(0)));
                kernels.quantise(layout, form, block.row(0));
            }
        });
    }

    /// The product of `weight` and the activation records, added to the residual stream.
    pub fn add_product(&mut self, weight: &Weight) {
        let (n, tools) = (self.n_rows, self.tools());
        let Buffers { x, acts, workers, .. } = &mut *self.buffers;
        multiply(tools, workers, (acts, n), [(weight, &mut **x)], true);
    }

    /// A bias, added to the residual stream.
    pub fn add_bias(&mut self, bias: &Weight) {
        add_to_rows(self.team, self.buffers.x, self.n_rows, bias.values(self.region));
    }

    /// Biases, added to the gate and up projections.
    pub fn add_gate_up_biases(&mut self, gate: &Weight, up: &Weight) {
        let n = self.n_rows;
        add_to_rows(self.team, self.buffers.gate, n, gate.values(self.region));
        add_to_rows(self.team, self.buffers.up, n, up.values(self.region));
    }

    /// The RMSNorm of the product of `weight` and the activation records, added to the residual stream.
    pub fn add_normed_product(&mut self, weight: &Weight, norm: &Weight) {
        let (n, e, kernels, eps) = (self.n_rows, self.config.n_embd, self.kernels, self.config.norm_eps);
        let tools = self.tools();
        let Buffers { x, branch, acts, workers, .. } = &mut *self.buffers;
        multiply(tools, workers, (acts, n), [(weight, &mut **branch)], false);
        let (branch, norm) = (&**branch, norm.values(self.region));
        let grid = each_row(self.team, x, (n, e, padded(e)));
        share(self.team, n, &|worker| {
            while let Some(mut block) = grid.next_of(worker) {
                let branch = &branch[block.row0 * padded(e)..][..e];
                kernels.add_rms_norm(branch, norm, eps, block.row(0));
            }
        });
    }

    /// Gate and up projections of the normed stream, which stays in the activation records.
    pub fn project_gate_up(&mut self, ffn: &Gated) {
        let (n, tools) = (self.n_rows, self.tools());
        let Buffers { acts, gate, up, workers, .. } = &mut *self.buffers;
        let products = [(&ffn.gate, &mut **gate), (&ffn.up, &mut **up)];
        multiply(tools, workers, (acts, n), products, false);
    }

    /// `silu(gate) * up` into the activation records.
    pub fn swiglu(&mut self, ffn: &Gated) {
        self.activate(ffn, Kernels::silu_mul);
    }

    /// `gelu(gate) * up` into the activation records.
    pub fn geglu(&mut self, ffn: &Gated) {
        self.activate(ffn, Kernels::gelu_mul);
    }

    fn activate(&mut self, ffn: &Gated, gated: impl Fn(&Kernels, &[f32], &[f32], &mut [f32]) + Sync) {
        let (n, f, kernels, team) = (self.n_rows, ffn.down.cols, self.kernels, self.team);
        // A factor meets values before they become anything else.
        let form = if ffn.down.factors.is_some() { ActType::F32 } else { kernels.act_type(ffn.down.ty, n) };
        let layout = ActLayout::new(f);
        let Buffers { acts, gate, up, .. } = &mut *self.buffers;
        let (gate, up) = (&**gate, &**up);
        let rows = |bytes, cols, block| Grid::new(bytes, (n, cols, layout.bytes()), (1, block));
        acts.write((kernels, team), (layout, form), rows, |(_, row), cols, out| {
            let (gate, up) = (&gate[row * padded(f)..][cols.clone()], &up[row * padded(f)..][cols]);
            gated(kernels, gate, up, out);
        });
    }

    /// Logits of some of the tokens that are wanted: rows of `padded(n_vocab)` values of which `n_vocab` count.
    ///
    /// # Panics
    /// If more rows are asked for than the buffers were sized for, or than there are.
    pub fn logits(&mut self, (norm, output): (&Weight, &Weight), rows: Range<usize>) -> &mut [f32] {
        let n = rows.len();
        assert!(n * padded(output.rows) <= self.buffers.logits.len() && rows.end <= self.n_rows);
        self.norm_rows(norm, rows, output);
        let tools = self.tools();
        let Buffers { acts, logits, workers, .. } = &mut *self.buffers;
        multiply(tools, workers, (acts, n), [(output, &mut **logits)], false);
        let logits = &mut self.buffers.logits[..n * padded(output.rows)];
        if let Some(cap) = self.config.logit_cap {
            let grid = Grid::new(logits, (1, logits.len(), logits.len()), (1, 1024));
            self.team.drain(&|_| {
                while let Some(mut block) = grid.next() {
                    block.row(0).iter_mut().for_each(|x| *x = cap * (*x / cap).tanh());
                }
            });
        }
        &mut self.buffers.logits[..n * padded(output.rows)]
    }
}

/// Adds a vector to each of `n` rows.
fn add_to_rows(team: &dyn Team, data: &mut [f32], n: usize, values: &[f32]) {
    let grid = each_row(team, data, (n, values.len(), padded(values.len())));
    share(team, n, &|worker| {
        while let Some(mut block) = grid.next_of(worker) {
            block.row(0).iter_mut().zip(values).for_each(|(x, value)| *x += value);
        }
    });
}

/// Multiplies what a block holds.
fn scale(block: &mut Block<'_, f32>, factor: f32) {
    if factor != 1.0 {
        (0..block.rows).for_each(|row| block.row(row).iter_mut().for_each(|x| *x *= factor));
    }
}

/// What products are made with.
#[derive(Clone, Copy)]
struct Tools<'p> {
    kernels: &'p Kernels,
    team: &'p dyn Team,
    region: &'p [u8],
    tile: Tile,
}

/// Products of `n` activation records with up to three matrices, or with one whose product is added, under one barrier. The
/// activations are quantised once for each form the matrices need.
fn multiply<const N: usize>(
    Tools { kernels, team, region, tile }: Tools<'_>,
    workers: &[Mutex<WorkerScratch<'_>>],
    (records, n): (&mut Records<'_>, usize),
    products: [(&Weight, &mut [f32]); N],
    accumulate: bool,
) {
    assert!(N == 1 || !accumulate);
    let cols = products[0].0.cols;
    let layout = ActLayout::new(cols);
    let added_factor = if accumulate { products[0].0.factor_of(region, 0) } else { 1.0 };
    if added_factor != 1.0 {
        // The sum must not be scaled, so what is multiplied is.
        assert!(records.values);
        for record in records.hold(ActType::F32).chunks_exact_mut(layout.bytes()).take(n) {
            layout.values_mut(record).iter_mut().for_each(|x| *x *= added_factor);
        }
    }
    let kinds: [ActType; N] = std::array::from_fn(|i| kernels.act_type(products[i].0.ty, n));
    let jobs = products.map(|(w, out)| (w, kernels.share(out, n, w.rows, team.size())));
    for kind in records.form.and_others() {
        if !kinds.contains(&kind) {
            continue;
        }
        records.bring((kernels, team), layout, n, kind);
        let acts = Acts { records: &*records.bytes, layout, n_tokens: n };
        team.drain(&|worker| {
            let Ok(mut scratch) = workers[worker].lock() else { return };
            // Of every product what is one's own comes first: only who is done with all of it takes from others.
            for parts in [1, team.size()] {
                for (w, grid) in jobs.iter().filter(|(w, _)| kernels.act_type(w.ty, n) == kind) {
                    let matrix = Matrix { panels: w.of(region), panel_bytes: w.ty.panel_bytes(cols), cols };
                    while let Some(mut block) = grid.next_in(worker, parts) {
                        kernels.matmul(w.ty, &matrix, &acts, &mut block, accumulate, (tile, &mut *scratch.kernels));
                        if !accumulate {
                            scale(&mut block, w.factor_of(region, 0));
                        }
                    }
                }
            }
        });
    }
}
