//! The buffers of a pass, all of them parts of the scratch region.

use std::sync::Mutex;

use super::activations::ActivationBuffer;
use super::carver::Carver;
use super::lists::Lists;
use super::partials::Partials;
use super::rotation::Rotation;
use super::routing::Routed;
use super::rows::padded;
use crate::kernels::{ActivationLayout, attend_scratch, partials_len};
use crate::model::config::{AttentionConfig, Config, LayerConfig, MixerConfig};
use crate::model::sequence::Sizes;

/// Bytes of scratch for a pass of these sizes; `None` if they exceed 2^64.
pub fn scratch_bytes(config: &Config, n_vocab: usize, sizes: &Sizes) -> Option<u64> {
    let mut carver = Carver::counting();
    Buffers::cut(&mut carver, config, n_vocab, sizes, None);
    carver.taken()
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
        (buffers, carver.rest())
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
            .map(|cols| ActivationLayout::new(cols).bytes())
            .into_iter()
            .max();
        let n_partials = sizes.sequences * config.attention_max(|attention| attention.n_kv_heads);
        let partials_len = partials_len(sizes.ctx, config.attention_max(|attention| attention.value_dim));
        let [kernel_bytes, gathered_bytes] = worker_bytes(config, sizes);
        Buffers {
            x: carver.take(n * padded(e)),
            branch: carver.take(if config.post_norms { n * padded(e) } else { 0 }),
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
