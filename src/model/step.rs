//! The buffers of a pass and the operations an architecture file is written in.
//!
//! All buffers are parts of the scratch region; widths are padded to whole panels, because matrix products write whole
//! panels. Operations over few tokens run on the calling thread; everything else is handed to the team, one barrier
//! an operation.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::config::{Config, ModelError};
use super::weights::{Form, Weight};
use crate::bytes;
use crate::kernels::{
    ActLayout, ActType, Acts, Grid, Kernels, KvHead, KvType, Matrix, QUERY_ROWS_MAX, Queries, Team, Tile,
    attend_scratch, rope_pairs,
};
use crate::quant::{GROUP, PANEL_ROWS};

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
fn buffer_sizes(config: &Config, n_vocab: usize, sizes: &Sizes) -> [usize; 11] {
    let (n, f32s) = (sizes.n_batch, 4);
    let q_width = config.n_heads * config.head_dim;
    let record = [config.n_embd, q_width, config.n_ff].map(|cols| ActLayout::new(cols).bytes()).into_iter().max();
    [
        n * padded(config.n_embd) * f32s,
        n.max(sizes.n_logits) * record.unwrap_or(0),
        n * padded(q_width) * f32s,
        n * padded(config.n_kv_heads * config.head_dim) * f32s,
        n * padded(config.n_kv_heads * config.head_dim) * f32s,
        n * padded(config.n_ff) * f32s,
        n * padded(config.n_ff) * f32s,
        n * config.rope_dim / 2 * f32s,
        n * config.rope_dim / 2 * f32s,
        config.rope_dim / 2 * 8,
        sizes.n_logits * padded(n_vocab) * f32s,
    ]
}

fn worker_bytes(config: &Config, sizes: &Sizes) -> usize {
    sizes.tile.scratch_bytes().max(attend_scratch(config.head_dim) * 4).next_multiple_of(64)
}

/// Bytes of scratch for a pass of these sizes; `None` if the product overflows.
pub fn scratch_bytes(config: &Config, n_vocab: usize, sizes: &Sizes) -> Option<u64> {
    let buffers = buffer_sizes(config, n_vocab, sizes).into_iter().map(|b| b.next_multiple_of(64) as u64).sum::<u64>();
    buffers.checked_add((sizes.workers * worker_bytes(config, sizes)) as u64)
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
    /// One scratch buffer per worker; each worker locks its own.
    workers: Vec<Mutex<&'a mut [u8]>>,
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
            workers: rest.chunks_exact_mut(worker_bytes(config, sizes)).take(sizes.workers).map(Mutex::new).collect(),
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

    /// Adds the biases of Q, K and V.
    pub fn add_biases(&mut self, biases: &[Weight; 3]) {
        let n = self.tokens.len();
        let region = self.region;
        let Buffers { q, k, v, .. } = &mut *self.buffers;
        for (values, bias) in [q, k, v].into_iter().zip(biases) {
            let bias: &[f32] = bytes::cast(bias.of(region));
            for row in values.chunks_exact_mut(padded(bias.len())).take(n) {
                row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
            }
        }
    }

    /// RMSNorm of every head of Q and K.
    pub fn norm_heads(&mut self, norms: &[Weight; 2]) {
        let (n, d) = (self.tokens.len(), self.config.head_dim);
        let (kernels, eps, region) = (self.kernels, self.config.norm_eps, self.region);
        let Buffers { q, k, .. } = &mut *self.buffers;
        let widths = [self.config.n_heads * d, self.config.n_kv_heads * d];
        for ((values, norm), width) in [q, k].into_iter().zip(norms).zip(widths) {
            let norm: &[f32] = bytes::cast(norm.of(region));
            let grid = Grid::new(values, (n, width, padded(width)), (1, width));
            share(self.team, n, &|_| {
                // Heads have at most 1,024 values (checked by Config).
                let mut head_in = [0f32; 1024];
                while let Some(mut block) = grid.next() {
                    for head in block.row(0).chunks_exact_mut(d) {
                        head_in[..d].copy_from_slice(head);
                        kernels.rms_norm(&head_in[..d], norm, eps, head);
                    }
                }
            });
        }
    }

    /// Rotates every head of Q and K by its token's position.
    pub fn rope(&mut self, pairing: Pairing) {
        let (n, d, half) = (self.tokens.len(), self.config.head_dim, self.config.rope_dim / 2);
        let kernels = self.kernels;
        let Buffers { q, k, cos, sin, .. } = &mut *self.buffers;
        let (cos, sin) = (&**cos, &**sin);
        for (values, heads) in [(q, self.config.n_heads), (k, self.config.n_kv_heads)] {
            let grid = Grid::new(values, (n, heads * d, padded(heads * d)), (1, heads * d));
            share(self.team, n, &|_| {
                while let Some(mut block) = grid.next() {
                    let (cos, sin) = (&cos[block.row0 * half..][..half], &sin[block.row0 * half..][..half]);
                    for head in block.row(0).chunks_exact_mut(d) {
                        match pairing {
                            Pairing::Neighbours => rope_pairs(&mut head[..2 * half], cos, sin),
                            Pairing::Halves => kernels.rope_halves(&mut head[..2 * half], cos, sin),
                        }
                    }
                }
            });
        }
    }

    /// Stores K and V in the cache of layer `layer` and attends over it; the result goes to the activation records.
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
        let head_bytes = 2 * cache_bytes;
        let Buffers { acts, q, k, v, workers, .. } = &mut *self.buffers;
        let (q, k, v) = (&**q, &**k, &**v);
        let width = padded(heads * d);
        let cache = &mut self.kv.bytes[layer * heads * head_bytes..][..heads * head_bytes];
        let grid = Grid::new(cache, (heads, head_bytes, head_bytes), (1, head_bytes));
        share(self.team, n, &|_| {
            while let Some(mut block) = grid.next() {
                let head = block.row0;
                let (keys, values) = block.row(0).split_at_mut(cache_bytes);
                for t in 0..n {
                    kv_type.store_key(keys, position + t, &k[t * width + head * d..][..d]);
                    kv_type.store_value(values, position + t, &v[t * width + head * d..][..d]);
                }
            }
        });
        let cache = &*cache;
        let layout = ActLayout::new(heads * group * d);
        let q_width = padded(heads * group * d);
        let tokens_at_once = (QUERY_ROWS_MAX / group).max(1);
        let columns = group * d * 4;
        let grid = Grid::new(acts, (n, heads * columns, layout.bytes()), (tokens_at_once, columns));
        self.team.drain(&|worker| {
            let Ok(mut scratch) = workers[worker].lock() else { return };
            let scratch: &mut [f32] = bytes::cast_mut(&mut scratch[..attend_scratch(d) * 4]);
            while let Some(mut block) = grid.next() {
                let head = block.col0 / columns;
                let (keys, values) = cache[head * head_bytes..][..head_bytes].split_at(cache_bytes);
                let kv = KvHead { kv_type, keys, values, head_dim: d };
                let queries = Queries {
                    values: &q[block.row0 * q_width + head * group * d..],
                    stride: q_width,
                    group,
                    n_tokens: block.rows,
                    position: position + block.row0,
                };
                kernels.attend(&kv, &queries, scratch, &mut |t, h, values| {
                    let row: &mut [f32] = bytes::cast_mut(block.row(t));
                    row[h * d..][..d].copy_from_slice(values);
                });
            }
        });
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
    (tile, workers): (Tile, &[Mutex<&mut [u8]>]),
    records: &mut [u8],
    n: usize,
    products: [(&Weight, &mut [f32]); N],
    accumulate: bool,
) {
    let cols = products[0].0.cols;
    let layout = ActLayout::new(cols);
    let streamed = n <= crate::kernels::STREAM_TOKENS_MAX;
    let kinds: [ActType; N] = std::array::from_fn(|i| kernels.act_type(products[i].0.ty, n));
    let jobs = products.map(|(w, out)| {
        let width = padded(w.rows);
        // A stripe is one register block in prefill. In decode it is some panels in a row: a straight stream, but
        // small enough that workers finish together.
        let stripe = match streamed {
            true => (width / PANEL_ROWS / (team.size() * 8)).clamp(1, 16) * PANEL_ROWS,
            false => kernels.stripe_rows(),
        };
        (w, Grid::new(out, (n, width, width), (n.max(1), stripe)).in_parts(team.size()))
    });
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
                    kernels.matmul(w.ty, &matrix, &acts, &mut block, accumulate, (tile, &mut scratch));
                }
            }
        });
    }
}
