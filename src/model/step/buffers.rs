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
use crate::model::config::{AttentionConfig, Config, DeltaNetConfig, LayerConfig, MixerConfig};
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
    /// What is held aside before it is added to the stream, `[n_batch, padded(n_embd)]`, in architectures that do so.
    pub(super) branch: &'a mut [f32],
    /// The same of experts beside a part that has norms of its own.
    pub(super) apart: &'a mut [f32],
    /// What every layer has of its own of a token's embedding, `[n_batch, padded(n_layers * n_embd_per_layer)]`.
    pub(super) per_layer: &'a mut [f32],
    /// Activations on their way into whatever matrix comes next.
    pub(super) acts: ActivationBuffer<'a>,
    /// `[n_batch, padded(n_heads * key_dim)]` of the layer with the most.
    pub(super) q: &'a mut [f32],
    /// `[n_batch, padded(n_kv_heads * key_dim)]`.
    pub(super) k: &'a mut [f32],
    /// `[n_batch, padded(n_kv_heads * value_dim)]`.
    pub(super) v: &'a mut [f32],
    /// What heads' results are gated by, `[n_batch, padded(n_heads * value_dim)]`.
    pub(super) head_gates: &'a mut [f32],
    /// Gates and input of a convolution, `[n_batch, padded(3 * n_embd)]`.
    pub(super) conv: &'a mut [f32],
    pub(super) delta: DeltaBuffers<'a>,
    /// `[n_batch, padded(n_ff)]`, as `up`.
    pub(super) gate: &'a mut [f32],
    pub(super) up: &'a mut [f32],
    /// What the hidden values of a token's shared expert are multiplied by, `[n_batch]`.
    pub(super) shared_gates: &'a mut [f32],
    /// By their index in [`Config::ropes`].
    pub(super) rotations: Vec<Rotation<'a>>,
    /// `[n_logits, padded(n_vocab)]`.
    pub(super) logits: &'a mut [f32],
    /// What scores lose with distance, by head, in models where they do; all their layers are alike.
    pub(super) slopes: &'a mut [f32],
    /// Results of key ranges, one buffer per sequence and KV head.
    pub(super) partials: Vec<Mutex<Partials<'a>>>,
    /// Which part of a pass is where; as long as a pass can need.
    pub(super) lists: Lists,
    /// The experts' rows.
    pub(super) routed: Routed<'a>,
    /// One scratch buffer per worker; each worker locks its own.
    pub(super) workers: Vec<Mutex<WorkerScratch<'a>>>,
}

/// What a delta rule works with.
pub(super) struct DeltaBuffers<'a> {
    /// Queries, keys and values, `[n_batch, padded(conv_width)]`.
    pub qkv: &'a mut [f32],
    /// What results are gated by, `[n_batch, padded(value_width)]`.
    pub z: &'a mut [f32],
    /// Values on their way to results, as `z`.
    pub out: &'a mut [f32],
    /// What becomes strengths, `[n_batch, padded(n_value_heads)]`, or both, twice as wide; and decays.
    pub strengths: &'a mut [f32],
    pub decays: &'a mut [f32],
    /// Decay and strength of every value head, `[n_batch, n_value_heads, 2]`.
    pub rates: &'a mut [f32],
}

impl<'a> DeltaBuffers<'a> {
    fn cut(carver: &mut Carver<'a>, config: &Config, n: usize) -> DeltaBuffers<'a> {
        let values = n * padded(config.delta_net_max(DeltaNetConfig::value_width));
        let heads = config.delta_net_max(|delta| delta.n_value_heads);
        DeltaBuffers {
            qkv: carver.take(n * padded(config.delta_net_max(DeltaNetConfig::conv_width))),
            z: carver.take(values),
            out: carver.take(values),
            strengths: carver.take(n * padded(2 * heads)),
            decays: carver.take(n * padded(heads)),
            rates: carver.take(n * 2 * heads),
        }
    }
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
        let gated_width = config.attention_max(|attention| attention.gate.map_or(0, |_| attention.output_width()));
        let mixed = config.attention_max(AttentionConfig::output_width);
        // The gate of a layer's own embedding takes the place of that of the feed-forward part.
        let n_ff = n_ff.max(config.n_embd_per_layer);
        let is_apart = config.layers.iter().any(|layer| layer.experts().is_some_and(|experts| experts.apart));
        let record = [e, mixed, config.delta_net_max(DeltaNetConfig::value_width), n_ff]
            .map(|cols| ActivationLayout::new(cols).bytes())
            .into_iter()
            .max();
        let n_partials = sizes.sequences * config.attention_max(|attention| attention.n_kv_heads);
        let partials_len = partials_len(sizes.ctx, config.attention_max(|attention| attention.value_dim));
        let [kernel_bytes, gathered_bytes] = worker_bytes(config, sizes);
        Buffers {
            x: carver.take(n * padded(e)),
            branch: carver.take(if config.holds_aside() { n * padded(e) } else { 0 }),
            apart: carver.take(if is_apart { n * padded(e) } else { 0 }),
            per_layer: carver.take(n * padded(config.n_layers() * config.n_embd_per_layer)),
            acts: ActivationBuffer::new(carver.take(n.max(sizes.n_logits) * record.unwrap_or(0))),
            q: carver.take(n * widest(AttentionConfig::q_width)),
            k: carver.take(n * widest(AttentionConfig::k_width)),
            v: carver.take(n * widest(AttentionConfig::v_width)),
            head_gates: carver.take(n * padded(gated_width)),
            conv: carver.take(if has_conv { n * padded(3 * e) } else { 0 }),
            delta: DeltaBuffers::cut(carver, config, n),
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
            slopes: cut_slopes(carver, config),
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

fn cut_slopes<'a>(carver: &mut Carver<'a>, config: &Config) -> &'a mut [f32] {
    let Some(attention) = config.attentions().find(|attention| attention.alibi.is_some()) else { return &mut [] };
    let slopes = carver.take(attention.n_heads);
    slopes.iter_mut().enumerate().for_each(|(head, slope)| *slope = attention.alibi_slope(head));
    slopes
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
