//! The buffers of a pass, all of them parts of the scratch region.

use std::sync::Mutex;

use super::activations::ActivationBuffer;
use super::attend::{Band, Partials, Ranged};
use super::experts::Routed;
use super::heads::Rotation;
use super::{SequenceSlice, Sizes, padded};
use crate::bytes::{self, Pod};
use crate::kernels::{ActLayout, attend_scratch, partials_len};
use crate::model::cache::{CachePlan, PAGE_TOKENS, POOLS_MAX};
use crate::model::config::{AttentionConfig, Config, LayerConfig, MixerConfig};

/// Buffers start on a cache line.
const ALIGN: usize = 64;

/// Cuts a region into buffers, or only counts what they take: one piece of code says what there is for both.
pub(super) struct Carver<'a> {
    /// What is left; `None` when counting.
    rest: Option<&'a mut [u8]>,
    /// Bytes taken; `None` once they exceed 2^64.
    taken: Option<u64>,
}

impl<'a> Carver<'a> {
    fn counting() -> Carver<'static> {
        Carver { rest: None, taken: Some(0) }
    }

    fn over(region: &'a mut [u8]) -> Carver<'a> {
        Carver { rest: Some(region), taken: Some(0) }
    }

    /// A buffer of `n` values; empty when counting.
    pub(super) fn take<T: Pod>(&mut self, n: usize) -> &'a mut [T] {
        let bytes =
            (n as u64).checked_mul(size_of::<T>() as u64).and_then(|b| b.checked_next_multiple_of(ALIGN as u64));
        self.taken = self.taken.zip(bytes).and_then(|(taken, bytes)| taken.checked_add(bytes));
        let Some(rest) = &mut self.rest else { return &mut [] };
        let bytes = bytes.expect("what was planned can be counted") as usize;
        let (part, tail) = std::mem::take(rest).split_at_mut(bytes);
        *rest = tail;
        bytes::cast_mut(&mut part[..n * size_of::<T>()])
    }
}

/// Bytes of scratch for a pass of these sizes; `None` if they exceed 2^64.
pub fn scratch_bytes(config: &Config, n_vocab: usize, sizes: &Sizes) -> Option<u64> {
    let mut carver = Carver::counting();
    Buffers::cut(&mut carver, config, n_vocab, sizes, None);
    carver.taken
}

/// The buffers of a pass. Widths are padded to whole panels, because matrix products write whole panels.
pub struct Buffers<'a> {
    /// Residual stream, `[n_batch, padded(n_embd)]`.
    pub(super) x: &'a mut [f32],
    /// What is normed before it is added to the stream, `[n_batch, padded(n_embd)]`, in architectures that do so.
    pub(super) branch: &'a mut [f32],
    /// Activations on their way into whatever matrix comes next.
    pub(super) acts: ActivationBuffer<'a>,
    /// `[n_batch, padded(n_heads * key_dim)]` of the layer with the most.
    pub(super) q: &'a mut [f32],
    /// `[n_batch, padded(n_kv_heads * key_dim)]`.
    pub(super) k: &'a mut [f32],
    /// `[n_batch, padded(n_kv_heads * value_dim)]`.
    pub(super) v: &'a mut [f32],
    /// Gates and input of a convolution, `[n_batch, padded(3 * n_embd)]`.
    pub(super) conv: &'a mut [f32],
    /// `[n_batch, padded(n_ff)]`, as `up`.
    pub(super) gate: &'a mut [f32],
    pub(super) up: &'a mut [f32],
    /// What the hidden values of a token's shared expert are multiplied by, `[n_batch]`.
    pub(super) shared_gates: &'a mut [f32],
    /// By their index in [`Config::ropes`].
    pub(super) rotations: Vec<Rotation<'a>>,
    /// `[n_logits, padded(n_vocab)]`.
    pub(super) logits: &'a mut [f32],
    /// Results of key ranges, one buffer per sequence and KV head.
    pub(super) partials: Vec<Mutex<Partials<'a>>>,
    /// Which part of a pass is where; as long as a pass can need.
    pub(super) lists: Lists,
    /// The experts' rows.
    pub(super) routed: Routed<'a>,
    /// One scratch buffer per worker; each worker locks its own.
    pub(super) workers: Vec<Mutex<WorkerScratch<'a>>>,
}

/// The scratch of one worker.
pub(super) struct WorkerScratch<'a> {
    pub kernels: &'a mut [u8],
    /// Activation records of one group of rows.
    pub gathered: &'a mut [u8],
}

impl<'a> Buffers<'a> {
    /// Carves the buffers out of the scratch region, of [`scratch_bytes`], and fills the tables of rotary frequencies, whose
    /// divisors are `rope_factors`. Returns what is left of the region, too.
    ///
    /// # Panics
    /// If the region is too small.
    pub fn carve(
        scratch: &'a mut [u8],
        config: &Config,
        n_vocab: usize,
        sizes: &Sizes,
        rope_factors: Option<&[f32]>,
    ) -> (Buffers<'a>, &'a mut [u8]) {
        let mut carver = Carver::over(scratch);
        let buffers = Buffers::cut(&mut carver, config, n_vocab, sizes, rope_factors);
        (buffers, carver.rest.unwrap_or_default())
    }

    fn cut(
        carver: &mut Carver<'a>,
        config: &Config,
        n_vocab: usize,
        sizes: &Sizes,
        rope_factors: Option<&[f32]>,
    ) -> Buffers<'a> {
        let (n, e, n_ff) = (sizes.n_batch, config.n_embd, config.n_ff_dense());
        let widest = |number: fn(&AttentionConfig) -> usize| padded(config.attention_max(number));
        let has_conv = config.layers.iter().any(|layer| matches!(layer.mixer, MixerConfig::ShortConv { .. }));
        let record = [e, config.attention_max(AttentionConfig::output_width), n_ff]
            .map(|cols| ActLayout::new(cols).bytes())
            .into_iter()
            .max();
        let n_partials = sizes.sequences * config.attention_max(|attention| attention.n_kv_heads);
        let partials_len = partials_len(sizes.ctx, config.attention_max(|attention| attention.value_dim));
        let [kernel_bytes, gathered_bytes] = worker_bytes(config, sizes);
        Buffers {
            x: carver.take(n * padded(e)),
            branch: carver.take(if config.architecture.post_norms { n * padded(e) } else { 0 }),
            acts: ActivationBuffer::new(carver.take(n.max(sizes.n_logits) * record.unwrap_or(0))),
            q: carver.take(n * widest(AttentionConfig::q_width)),
            k: carver.take(n * widest(AttentionConfig::k_width)),
            v: carver.take(n * widest(AttentionConfig::v_width)),
            conv: carver.take(if has_conv { n * padded(3 * e) } else { 0 }),
            gate: carver.take(n * padded(n_ff)),
            up: carver.take(n * padded(n_ff)),
            shared_gates: carver.take(if config.layers.iter().any(has_shared_expert) { n } else { 0 }),
            rotations: config
                .ropes
                .iter()
                .enumerate()
                .map(|(i, rope)| Rotation::cut(carver, rope, sizes, rope_factors.filter(|_| i == 0)))
                .collect(),
            logits: carver.take(sizes.n_logits * padded(n_vocab)),
            partials: (0..n_partials)
                .map(|_| Mutex::new(Partials { done: 0, rows: carver.take(partials_len) }))
                .collect(),
            lists: Lists::new(config, sizes),
            routed: Routed::cut(carver, config, sizes),
            workers: (0..sizes.workers)
                .map(|_| {
                    let (kernels, gathered) = (carver.take(kernel_bytes), carver.take(gathered_bytes));
                    Mutex::new(WorkerScratch { kernels, gathered })
                })
                .collect(),
        }
    }

    /// The rows last written by [`ForwardPass::logits`](super::ForwardPass::logits).
    pub fn logits_mut(&mut self) -> &mut [f32] {
        self.logits
    }

    /// Values from row to row of logits.
    pub fn logits_stride(&self, n_vocab: usize) -> usize {
        padded(n_vocab)
    }
}

fn has_shared_expert(layer: &LayerConfig) -> bool {
    layer.experts().is_some_and(|experts| experts.n_ff_shared > 0)
}

/// Bytes of a worker's scratch: what its kernels need, and room for the activations of a group of rows.
fn worker_bytes(config: &Config, sizes: &Sizes) -> [usize; 2] {
    let head_dim = config.attention_max(|attention| attention.key_dim.max(attention.value_dim));
    let kernels = sizes.tile.scratch_bytes().max(attend_scratch(head_dim) * size_of::<f32>());
    [kernels, Routed::gathered_bytes(config, sizes)]
}

/// What a pass is made of, made anew for each without allocating.
pub(super) struct Lists {
    /// Of each pool the pages that the pass writes to, in rising order, and what is written there.
    pub picks: heapless::Vec<Vec<u32>, POOLS_MAX>,
    pub writes: heapless::Vec<Vec<Write>, POOLS_MAX>,
    /// Where the bands of tokens of attention end, the first begins at 0; and the sequence of each.
    pub cuts: Vec<u32>,
    pub bands: Vec<Band>,
    /// Sequences whose keys are shared out in ranges.
    pub ranged: Vec<Ranged>,
}

/// A page of a sequence, some positions of which a pass writes.
#[derive(Clone, Copy)]
pub(super) struct Write {
    pub page: u32,
    /// Which slice of the pass.
    pub slice: u32,
    /// Which page of its sequence.
    pub index: u32,
}

impl Lists {
    fn new(config: &Config, sizes: &Sizes) -> Lists {
        // A sequence begins and ends within a page.
        let n_writes = sizes.n_batch.div_ceil(PAGE_TOKENS) + 2 * sizes.sequences;
        let pools = CachePlan::new(config, sizes).pools.len();
        Lists {
            picks: (0..pools).map(|_| Vec::with_capacity(n_writes)).collect(),
            writes: (0..pools).map(|_| Vec::with_capacity(n_writes)).collect(),
            cuts: Vec::with_capacity(sizes.n_batch + 1),
            bands: Vec::with_capacity(sizes.n_batch),
            ranged: Vec::with_capacity(sizes.sequences),
        }
    }

    /// Which pages the slices write to.
    pub(super) fn list_writes(&mut self, slices: &[SequenceSlice<'_>]) {
        for (pool, (picks, writes)) in self.picks.iter_mut().zip(&mut self.writes).enumerate() {
            picks.clear();
            writes.clear();
            for (number, slice) in (0..).zip(slices) {
                for index in slice.page_range() {
                    writes.push(Write { page: slice.pages[pool][index], slice: number, index: index as u32 });
                }
            }
            writes.sort_unstable_by_key(|write| write.page);
            picks.extend(writes.iter().map(|write| write.page));
        }
    }
}
