//! The buffers of a pass and the operations an architecture file is written in.
//!
//! All buffers are parts of the scratch region; widths are padded to whole panels, because matrix products write whole
//! panels. Operations over few tokens run on the calling thread; everything else is handed to the team, one barrier
//! an operation.

mod experts;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::config::{Config, HEAD_DIM_MAX, ModelError};
use super::weights::{Form, Weight};
use crate::bytes;
use crate::kernels::{
    ActLayout, ActType, Acts, Grid, Kernels, KvHead, KvType, Matrix, QUERY_ROWS_MAX, Queries, Team, Tile,
    attend_scratch, key_ranges, merge, partials_len,
};
use crate::quant::{GROUP, PANEL_ROWS};
use experts::Routed;

/// Tokens up to which work on single rows is not worth waking the team.
const ALONE_TOKENS_MAX: usize = 2;

/// Sizes that decide how much memory a pass needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Most tokens of one pass.
    pub n_batch: usize,
    /// Most rows of logits asked for at once.
    pub n_logits: usize,
    /// Positions of the KV cache; a multiple of 16.
    pub ctx: usize,
    /// How K and V are kept.
    pub kv_type: KvType,
    /// Workers of the team.
    pub workers: usize,
    /// Cache tile.
    pub tile: Tile,
}

fn padded(n: usize) -> usize {
    n.next_multiple_of(PANEL_ROWS)
}

/// Bytes of each buffer, in the order of [`Buffers`].
fn buffer_sizes(config: &Config, n_vocab: usize, sizes: &Sizes) -> [usize; 13] {
    let (n, f32s) = (sizes.n_batch, 4);
    let q_width = config.n_heads * config.head_dim;
    let n_ff = if config.experts.is_some() { 0 } else { config.n_ff };
    let record = [config.n_embd, q_width, n_ff].map(|cols| ActLayout::new(cols).bytes()).into_iter().max();
    [
        n * padded(config.n_embd) * f32s,
        n.max(sizes.n_logits) * record.unwrap_or(0),
        n * padded(q_width) * f32s,
        n * padded(config.n_kv_heads * config.head_dim) * f32s,
        n * padded(config.n_kv_heads * config.head_dim) * f32s,
        n * padded(n_ff) * f32s,
        n * padded(n_ff) * f32s,
        n * config.rope_dim / 2 * f32s,
        n * config.rope_dim / 2 * f32s,
        config.rope_dim / 2 * 8,
        sizes.n_logits * padded(n_vocab) * f32s,
        config.n_kv_heads * partials_len(sizes.ctx, config.head_dim) * f32s,
        Routed::bytes(config, sizes),
    ]
}

/// Bytes of a worker's scratch: what its kernels need, and room for the activations of a group of rows.
fn worker_bytes(config: &Config, sizes: &Sizes) -> [usize; 2] {
    let kernels = sizes.tile.scratch_bytes().max(attend_scratch(config.head_dim) * 4).next_multiple_of(64);
    [kernels, Routed::gathered_bytes(config, sizes)]
}

/// Bytes of scratch for a pass of these sizes; `None` if the product overflows.
pub fn scratch_bytes(config: &Config, n_vocab: usize, sizes: &Sizes) -> Option<u64> {
    let buffers = buffer_sizes(config, n_vocab, sizes).into_iter().map(|b| b.next_multiple_of(64) as u64).sum::<u64>();
    buffers.checked_add((sizes.workers * worker_bytes(config, sizes).iter().sum::<usize>()) as u64)
}

/// Bytes of the KV cache; `None` if the product overflows.
pub fn kv_bytes(config: &Config, sizes: &Sizes) -> Option<u64> {
    let head = (sizes.ctx as u64).checked_mul(2 * sizes.kv_type.row_bytes(config.head_dim) as u64)?;
    head.checked_mul((config.n_layers * config.n_kv_heads) as u64)
}

/// Whether the cache type suits the model.
///
/// # Errors
/// q8_0 needs heads of whole groups of 32.
pub fn check_kv_type(config: &Config, kv_type: KvType) -> Result<(), ModelError> {
    match kv_type {
        KvType::Q8_0 if !config.head_dim.is_multiple_of(GROUP) => Err(ModelError::Range {
            what: "the size of a head",
            found: config.head_dim as u64,
            need: "a multiple of 32 for --kv-type q8_0; use --kv-type f16",
        }),
        _ => Ok(()),
    }
}

/// What the attention of one KV head over ranges of keys has come to.
struct Partials<'a> {
    /// Ranges that are done.
    done: usize,
    /// `[n_ranges][rows][head_dim values, mass]`
    rows: &'a mut [f32],
}

/// The buffers of a pass.
pub struct Buffers<'a> {
    /// Residual stream, `[n_batch, padded(n_embd)]`.
    x: &'a mut [f32],
    /// Activation records of whatever matrix comes next.
    acts: &'a mut [u8],
    /// `[n_batch, padded(n_heads * head_dim)]`.
    q: &'a mut [f32],
    /// `[n_batch, padded(n_kv_heads * head_dim)]`, as `v`.
    k: &'a mut [f32],
    v: &'a mut [f32],
    /// `[n_batch, padded(n_ff)]`, as `up`.
    gate: &'a mut [f32],
    up: &'a mut [f32],
    /// `[n_batch, rope_dim / 2]`, as `sin`.
    cos: &'a mut [f32],
    sin: &'a mut [f32],
    /// Rotary frequencies, `[rope_dim / 2]`.
    frequencies: &'a mut [f64],
    /// `[n_logits, padded(n_vocab)]`.
    logits: &'a mut [f32],
    /// Results of key ranges, one buffer per KV head.
    partials: Vec<Mutex<Partials<'a>>>,
    /// The experts' rows.
    routed: Routed<'a>,
    /// One scratch buffer per worker; each worker locks its own.
    workers: Vec<Mutex<WorkerScratch<'a>>>,
}

/// The scratch of one worker.
struct WorkerScratch<'a> {
    kernels: &'a mut [u8],
    /// Activation records of one group of rows.
    gathered: &'a mut [u8],
}

impl<'a> Buffers<'a> {
    /// Carves the buffers out of the scratch region and fills the table of rotary frequencies,
    /// `base^(-2i / rope_dim) / (scale * factor_i)`.
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
        let mut parts = buffer_sizes(config, n_vocab, sizes).map(|bytes| {
            let (part, tail) = std::mem::take(&mut rest).split_at_mut(bytes.next_multiple_of(64));
            rest = tail;
            Some(&mut part[..bytes])
        });
        let mut part = |i: usize| parts[i].take().unwrap_or_default();
        let frequencies: &mut [f64] = bytes::cast_mut(part(9));
        for (i, frequency) in frequencies.iter_mut().enumerate() {
            let factor = rope_factors.map_or(1.0, |f| f64::from(f[i]));
            let exponent = -2.0 * i as f64 / config.rope_dim as f64;
            *frequency = f64::from(config.rope_base).powf(exponent) / (f64::from(config.rope_scale) * factor);
        }
        let mut waiting: &mut [f32] = bytes::cast_mut(part(11));
        let partials = (0..config.n_kv_heads).map(|_| {
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
            x: bytes::cast_mut(part(0)),
            acts: part(1),
            q: bytes::cast_mut(part(2)),
            k: bytes::cast_mut(part(3)),
            v: bytes::cast_mut(part(4)),
            gate: bytes::cast_mut(part(5)),
            up: bytes::cast_mut(part(6)),
            cos: bytes::cast_mut(part(7)),
            sin: bytes::cast_mut(part(8)),
            frequencies,
            logits: bytes::cast_mut(part(10)),
            partials,
            routed: Routed::carve(part(12), config, sizes),
            workers,
        }
    }
}

impl Buffers<'_> {
    /// The rows last written by [`Pass::logits`].
    pub fn logits_mut(&mut self) -> &mut [f32] {
        self.logits
    }
}

/// The KV cache: `[n_layers][n_kv_heads]{K, V}` of `ctx` positions each.
pub struct Kv<'a> {
    /// Its bytes.
    pub bytes: &'a mut [u8],
    /// How K and V are kept.
    pub kv_type: KvType,
    /// Positions; a multiple of 16.
    pub ctx: usize,
}

/// Which values of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// `(2i, 2i + 1)`
    Neighbours,
    /// `(i, i + rope_dim / 2)`
    Halves,
}

/// What an architecture does to its heads between projection and attention.
pub struct HeadSteps<'w> {
    /// Biases of Q, K and V.
    pub biases: Option<&'w [Weight; 3]>,
    /// RMSNorm weights for every head of Q and of K.
    pub norms: Option<&'w [Weight; 2]>,
    /// The rotation of Q and K.
    pub pairing: Pairing,
}

/// Some consecutive tokens on their way through the layers.
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
    /// Position of the first.
    pub position: usize,
    /// Where the time spent in attention is added up, if anybody asks.
    pub attention_time: Option<&'p mut Duration>,
}

/// Runs `job`, which draws its work, on the team, or right here when there is too little to share.
fn share(team: &dyn Team, n_tokens: usize, job: &(dyn Fn(usize) + Sync)) {
    if n_tokens <= ALONE_TOKENS_MAX { job(0) } else { team.drain(job) }
}

impl Pass<'_, '_> {
    /// Rows of the embedding table into the residual stream.
    pub fn embed(&mut self, table: &Weight) {
        let (n, e) = (self.tokens.len(), self.config.n_embd);
        let (tokens, data, ty) = (self.tokens, table.of(self.region), table.ty);
        let grid = Grid::new(self.buffers.x, (n, e, padded(e)), (1, e));
        share(self.team, n, &|_| {
            while let Some(mut block) = grid.next() {
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
            }
        });
    }

    /// Cosines and sines of every token's position.
    pub fn rotate(&mut self) {
        let half = self.config.rope_dim / 2;
        let Buffers { cos, sin, frequencies, .. } = &mut *self.buffers;
        for (t, (cos, sin)) in
            cos.chunks_exact_mut(half).zip(sin.chunks_exact_mut(half)).take(self.tokens.len()).enumerate()
        {
            let position = (self.position + t) as f64;
            for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(frequencies.iter()) {
                let (s, c) = (position * frequency).sin_cos();
                (*cos, *sin) = (c as f32, s as f32);
            }
        }
    }

    /// RMSNorm of the residual stream into the activation records.
    pub fn norm(&mut self, weight: &Weight) {
        self.norm_rows(weight, 0, self.tokens.len());
    }

    fn norm_rows(&mut self, weight: &Weight, first: usize, n: usize) {
        let e = self.config.n_embd;
        let layout = ActLayout::new(e);
        let weight: &[f32] = bytes::cast(weight.of(self.region));
        let (kernels, eps, x) = (self.kernels, self.config.norm_eps, &*self.buffers.x);
        let grid = Grid::new(self.buffers.acts, (n, layout.bytes(), layout.bytes()), (1, layout.bytes()));
        share(self.team, n, &|_| {
            while let Some(mut block) = grid.next() {
                let x = &x[(first + block.row0) * padded(e)..][..e];
                kernels.rms_norm(x, weight, eps, layout.values_mut(block.row(0)));
            }
        });
    }

    /// Q, K and V of the normed stream.
    pub fn project_qkv(&mut self, q: &Weight, k: &Weight, v: &Weight) {
        let n = self.tokens.len();
        let Buffers { acts, q: q_out, k: k_out, v: v_out, workers, .. } = &mut *self.buffers;
        let products = [(q, &mut **q_out), (k, &mut **k_out), (v, &mut **v_out)];
        multiply(self.kernels, self.team, self.region, (self.tile, workers), acts, n, products, false);
    }

    /// Makes the heads ready for attention: adds biases, norms Q and K, rotates them by their token's position, and stores
    /// K and V in the cache of layer `layer`.
    pub fn prepare_heads(&mut self, layer: usize, steps: &HeadSteps<'_>) {
        let (n, d, half) = (self.tokens.len(), self.config.head_dim, self.config.rope_dim / 2);
        let (n_heads, n_kv_heads, group) = (self.config.n_heads, self.config.n_kv_heads, self.config.group());
        let (position, kv_type, kernels) = (self.position, self.kv.kv_type, self.kernels);
        let (eps, region) = (self.config.norm_eps, self.region);
        let bias = |i: usize| -> Option<&[f32]> { steps.biases.map(|b| bytes::cast(b[i].of(region))) };
        let [q_bias, k_bias, v_bias] = [bias(0), bias(1), bias(2)];
        let norm = |i: usize| -> Option<&[f32]> { steps.norms.map(|w| bytes::cast(w[i].of(region))) };
        let [q_norm, k_norm] = [norm(0), norm(1)];
        let add_bias = |head: &mut [f32], bias: Option<&[f32]>, first: usize| {
            for (x, b) in head.iter_mut().zip(bias.into_iter().flat_map(|b| &b[first..])) {
                *x += b;
            }
        };
        let Buffers { q, k, v, cos, sin, .. } = &mut *self.buffers;
        let (k, v, cos, sin) = (&**k, &**v, &**cos, &**sin);
        let turn = |head: &[f32], norm: Option<&[f32]>, token: usize, out: &mut [f32]| {
            match norm {
                Some(norm) => kernels.rms_norm(head, norm, eps, out),
                None => out.copy_from_slice(head),
            }
            let (cos, sin) = (&cos[token * half..][..half], &sin[token * half..][..half]);
            match steps.pairing {
                Pairing::Neighbours => kernels.rope_pairs(&mut out[..2 * half], cos, sin),
                Pairing::Halves => kernels.rope_halves(&mut out[..2 * half], cos, sin),
            }
        };
        // K and V of the heads in turn, in blocks of whole panels: tokens of one panel share cache lines.
        let cache_bytes = self.kv.ctx * kv_type.row_bytes(d);
        let panel_bytes = kv_type.panel_bytes(d);
        let panels = position / PANEL_ROWS..(position + n).div_ceil(PANEL_ROWS);
        let cache = &mut self.kv.bytes[layer * 2 * n_kv_heads * cache_bytes..][..2 * n_kv_heads * cache_bytes];
        let cached = Grid::new(
            &mut cache[panels.start * panel_bytes..],
            (2 * n_kv_heads, panels.len() * panel_bytes, cache_bytes),
            (1, 4 * panel_bytes),
        );
        let turned = Grid::new(q, (n, n_heads * d, padded(n_heads * d)), (PANEL_ROWS, group * d));
        let width = padded(n_kv_heads * d);
        share(self.team, n, &|_| {
            let (mut raw, mut ready) = ([0f32; HEAD_DIM_MAX], [0f32; HEAD_DIM_MAX]);
            let (raw, ready) = (&mut raw[..d], &mut ready[..d]);
            while let Some(mut block) = cached.next() {
                let (head, is_value) = (block.row0 / 2, block.row0 % 2 == 1);
                let first = panels.start * PANEL_ROWS + block.col0 / panel_bytes * PANEL_ROWS;
                for (i, panel) in block.row(0).chunks_exact_mut(panel_bytes).enumerate() {
                    let positions = first + i * PANEL_ROWS..first + (i + 1) * PANEL_ROWS;
                    for at in positions.start.max(position)..positions.end.min(position + n) {
                        let (token, lane) = (at - position, at % PANEL_ROWS);
                        let from = token * width + head * d;
                        if is_value {
                            raw.copy_from_slice(&v[from..][..d]);
                            add_bias(raw, v_bias, head * d);
                            let row = &mut panel[lane * kv_type.row_bytes(d)..][..kv_type.row_bytes(d)];
                            kernels.store_value(kv_type, raw, row);
                        } else {
                            raw.copy_from_slice(&k[from..][..d]);
                            add_bias(raw, k_bias, head * d);
                            turn(raw, k_norm, token, ready);
                            kernels.store_key(kv_type, ready, panel, lane);
                        }
                    }
                }
            }
            while let Some(mut block) = turned.next() {
                for t in 0..block.rows {
                    let (token, col0) = (block.row0 + t, block.col0);
                    for (h, head) in block.row(t).chunks_exact_mut(d).enumerate() {
                        raw.copy_from_slice(head);
                        add_bias(raw, q_bias, col0 + h * d);
                        turn(raw, q_norm, token, head);
                    }
                }
            }
        });
    }

    /// Attends over the cache of layer `layer`; the result goes to the activation records.
    pub fn attend(&mut self, layer: usize) {
        let begun = self.attention_time.is_some().then(Instant::now);
        self.attend_over(layer);
        if let (Some(time), Some(begun)) = (&mut self.attention_time, begun) {
            **time += begun.elapsed();
        }
    }

    fn attend_over(&mut self, layer: usize) {
        let (n, d, heads, group) =
            (self.tokens.len(), self.config.head_dim, self.config.n_kv_heads, self.config.group());
        let (position, kv_type, kernels) = (self.position, self.kv.kv_type, self.kernels);
        let cache_bytes = self.kv.ctx * kv_type.row_bytes(d);
        let cache = &self.kv.bytes[layer * 2 * heads * cache_bytes..][..2 * heads * cache_bytes];
        let Buffers { acts, q, workers, partials, .. } = &mut *self.buffers;
        let (q, q_width) = (&**q, padded(heads * group * d));
        let job = |worker: usize, task: &mut dyn FnMut(&mut [f32])| {
            let Ok(mut scratch) = workers[worker].lock() else { return };
            task(bytes::cast_mut(&mut scratch.kernels[..attend_scratch(d) * 4]));
        };
        let head_of = |head: usize| {
            let (keys, values) = cache[2 * head * cache_bytes..][..2 * cache_bytes].split_at(cache_bytes);
            KvHead { kv_type, keys, values, head_dim: d }
        };
        let queries_of = |head: usize, first: usize, n_tokens: usize| Queries {
            values: &q[first * q_width + head * group * d..],
            stride: q_width,
            group,
            n_tokens,
            position: position + first,
            window: usize::MAX,
            scale: (d as f32).sqrt().recip(),
            sinks: None,
        };
        let layout = ActLayout::new(heads * group * d);
        let n_rows = n * group;
        let (n_ranges, range_len) = key_ranges(position + n, n_rows);
        if n_rows > QUERY_ROWS_MAX || n_ranges == 1 {
            // As many rows at once as a call takes; half of them where that leaves too few blocks to share out evenly.
            let (fewest, most) = (n.div_ceil(QUERY_ROWS_MAX / group), n.div_ceil((QUERY_ROWS_MAX / 2 / group).max(1)));
            let bands = (4 * self.team.size()).div_ceil(heads).clamp(fewest, most);
            let columns = group * d * 4;
            let grid = Grid::new(acts, (n, heads * columns, layout.bytes()), (n.div_ceil(bands), columns));
            // Later tokens see more keys.
            let grid = grid.last_first();
            return self.team.drain(&|worker| {
                job(worker, &mut |scratch| {
                    while let Some(mut block) = grid.next() {
                        let queries = queries_of(block.col0 / columns, block.row0, block.rows);
                        kernels.attend(
                            &head_of(block.col0 / columns),
                            &queries,
                            queries.first_key()..queries.keys(),
                            scratch,
                            &mut |result| {
                                let row: &mut [f32] = bytes::cast_mut(block.row(result.token));
                                row[result.head * d..][..d].copy_from_slice(result.values);
                            },
                        );
                    }
                });
            });
        }
        // Few rows over many keys: ranges of keys are shared out, and who finishes a head's last range merges them.
        let width = d + 1;
        let next = AtomicUsize::new(0);
        self.team.drain(&|worker| {
            job(worker, &mut |scratch| {
                loop {
                    let task = next.fetch_add(1, Ordering::Relaxed);
                    let (head, range) = (task / n_ranges, task % n_ranges);
                    if head >= heads {
                        break;
                    }
                    let queries = queries_of(head, 0, n);
                    let keys = range * range_len..queries.keys().min((range + 1) * range_len);
                    kernels.attend(&head_of(head), &queries, keys, scratch, &mut |result| {
                        let Ok(mut partials) = partials[head].lock() else { return };
                        let row = range * n_rows + result.token * group + result.head;
                        let part = &mut partials.rows[row * width..][..width];
                        part[..d].copy_from_slice(result.values);
                        part[d] = result.mass;
                    });
                    let Ok(mut partials) = partials[head].lock() else { return };
                    partials.done += 1;
                    if partials.done == n_ranges {
                        partials.done = 0;
                        merge(&mut partials.rows[..n_ranges * n_rows * width], n_rows, d);
                    }
                }
            });
        });
        for (head, partials) in partials.iter_mut().enumerate() {
            let Ok(partials) = partials.get_mut() else { return };
            for (row, part) in partials.rows.chunks_exact(width).take(n_rows).enumerate() {
                let record = &mut acts[row / group * layout.bytes()..][..layout.bytes()];
                layout.values_mut(record)[(head * group + row % group) * d..][..d].copy_from_slice(&part[..d]);
            }
        }
    }

    /// The output projection of attention, added to the residual stream.
    pub fn add_attention(&mut self, weight: &Weight) {
        self.add_product(weight);
    }

    fn add_product(&mut self, weight: &Weight) {
        let n = self.tokens.len();
        let Buffers { x, acts, workers, .. } = &mut *self.buffers;
        multiply(self.kernels, self.team, self.region, (self.tile, workers), acts, n, [(weight, &mut **x)], true);
    }

    /// Gate and up projections of the normed stream.
    pub fn project_gate_up(&mut self, gate: &Weight, up: &Weight) {
        let n = self.tokens.len();
        let Buffers { acts, gate: gate_out, up: up_out, workers, .. } = &mut *self.buffers;
        let products = [(gate, &mut **gate_out), (up, &mut **up_out)];
        multiply(self.kernels, self.team, self.region, (self.tile, workers), acts, n, products, false);
    }

    /// `down(silu(gate) * up)`, added to the residual stream.
    pub fn add_swiglu(&mut self, down: &Weight) {
        let (n, f) = (self.tokens.len(), self.config.n_ff);
        let layout = ActLayout::new(f);
        let kernels = self.kernels;
        let Buffers { acts, gate, up, .. } = &mut *self.buffers;
        let (gate, up) = (&**gate, &**up);
        let grid = Grid::new(acts, (n, layout.bytes(), layout.bytes()), (1, layout.bytes()));
        share(self.team, n, &|_| {
            while let Some(mut block) = grid.next() {
                let from = block.row0 * padded(f);
                kernels.silu_mul(&gate[from..][..f], &up[from..][..f], layout.values_mut(block.row(0)));
            }
        });
        self.add_product(down);
    }

    /// Logits of tokens `first .. first + n`, rows of `padded(n_vocab)` values of which `n_vocab` count.
    ///
    /// # Panics
    /// If more rows are asked for than the buffers were sized for.
    pub fn logits(&mut self, norm: &Weight, output: &Weight, first: usize, n: usize) -> &mut [f32] {
        assert!(n * padded(output.rows) <= self.buffers.logits.len() && first + n <= self.tokens.len());
        self.norm_rows(norm, first, n);
        let Buffers { acts, logits, workers, .. } = &mut *self.buffers;
        multiply(self.kernels, self.team, self.region, (self.tile, workers), acts, n, [(output, &mut **logits)], false);
        &mut self.buffers.logits[..n * padded(output.rows)]
    }
}

/// Products of one set of activations with up to three matrices, under one barrier. The activations are quantised
/// once for each form the matrices need.
#[allow(clippy::too_many_arguments, reason = "the parts of a Pass, borrowed separately")]
fn multiply<const N: usize>(
    kernels: &Kernels,
    team: &dyn Team,
    region: &[u8],
    (tile, workers): (Tile, &[Mutex<WorkerScratch<'_>>]),
    records: &mut [u8],
    n: usize,
    products: [(&Weight, &mut [f32]); N],
    accumulate: bool,
) {
    let cols = products[0].0.cols;
    let layout = ActLayout::new(cols);
    let kinds: [ActType; N] = std::array::from_fn(|i| kernels.act_type(products[i].0.ty, n));
    let jobs = products.map(|(w, out)| (w, kernels.share(out, n, padded(w.rows), team.size())));
    for kind in ActType::ALL {
        if !kinds.contains(&kind) {
            continue;
        }
        if kind != ActType::F32 {
            let grid = Grid::new(records, (n, layout.bytes(), layout.bytes()), (1, layout.bytes()));
            share(team, n, &|_| {
                while let Some(mut block) = grid.next() {
                    kernels.quantise(layout, kind, block.row(0));
                }
            });
        }
        let acts = Acts { records: &*records, layout, n_tokens: n };
        team.drain(&|worker| {
            let Ok(mut scratch) = workers[worker].lock() else { return };
            for (w, grid) in jobs.iter().filter(|(w, _)| kernels.act_type(w.ty, n) == kind) {
                let matrix = Matrix { panels: w.of(region), panel_bytes: w.ty.panel_bytes(cols), cols };
                while let Some(mut block) = grid.next_of(worker) {
                    kernels.matmul(w.ty, &matrix, &acts, &mut block, accumulate, (tile, &mut *scratch.kernels));
                }
            }
        });
    }
}
