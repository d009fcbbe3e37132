//! The buffers of a pass, all of them parts of the scratch region.

use std::sync::Mutex;

use super::activations::ActivationBuffer;
use super::carver::Carver;
use super::lists::Lists;
use super::partials::Partials;
use super::rotation::Rotation;
use super::routing::Routed;
use super::rows::padded;
use crate::kernels::{ActivationLayout, LATENT_KEYS_MIN, RANGE_KEYS_MIN, attend_scratch, latent_scratch, partials_len};
use crate::model::config::{AttentionConfig, Config, LatentConfig, LayerConfig, MixerConfig, RecurrentWidths};
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
    pub(super) recurrent: RecurrentBuffers<'a>,
    pub(super) latent: LatentBuffers<'a>,
    /// `[n_batch, padded(n_ff)]`, as `up`.
    pub(super) gate: &'a mut [f32],
    pub(super) up: &'a mut [f32],
    /// What the hidden values of a token's shared expert are multiplied by, `[n_batch]`.
    pub(super) shared_gates: &'a mut [f32],
    /// By their index in [`Config::ropes`].
    pub(super) rotations: Vec<Rotation<'a>>,
    /// `[n_logits, padded(n_vocab)]`.
    pub(super) logits: &'a mut [f32],
    /// What maps of pooled vectors come to, `[sequences, padded(the widest)]`.
    pub(super) pooled: &'a mut [f32],
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

/// What a recurrence behind a convolution works with.
pub(super) struct RecurrentBuffers<'a> {
    /// What is convolved, `[n_batch, padded(conv_width)]`.
    pub convolved: &'a mut [f32],
    /// What results are gated by, `[n_batch, padded(values)]`.
    pub z: &'a mut [f32],
    /// Values on their way to results, as `z`.
    pub out: &'a mut [f32],
    /// What becomes strengths and decays, `[n_batch, padded(heads)]`; `strengths` may be both, twice as wide. Of state spaces
    /// `decays` are steps, and `strengths` what these are made of with `b` and `c`.
    pub strengths: &'a mut [f32],
    pub decays: &'a mut [f32],
    /// Two rates of every head, `[n_batch, heads, 2]`.
    pub rates: &'a mut [f32],
}

impl<'a> RecurrentBuffers<'a> {
    fn cut(carver: &mut Carver<'a>, config: &Config, n: usize) -> RecurrentBuffers<'a> {
        let RecurrentWidths { conv, values, made_of, rates } = config.recurrent_widths();
        RecurrentBuffers {
            convolved: carver.take(n * padded(conv)),
            z: carver.take(n * padded(values)),
            out: carver.take(n * padded(values)),
            strengths: carver.take(n * padded(made_of[0])),
            decays: carver.take(n * padded(made_of[1])),
            rates: carver.take(n * rates),
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
        let latent = config.latent_max(LatentConfig::output_width).max(config.latent_max(|latent| latent.q_rank));
        // The gate of a layer's own embedding takes the place of that of the feed-forward part.
        let n_ff = n_ff.max(config.n_embd_per_layer);
        let is_apart = config.layers.iter().any(|layer| layer.experts().is_some_and(|experts| experts.apart));
        let record =
            [config.experts_width(), mixed, latent, config.recurrent_widths().values, n_ff, config.head_width()]
                .map(|cols| ActivationLayout::new(cols).bytes())
                .into_iter()
                .max();
        let heads = config.attention_max(|attention| attention.n_kv_heads);
        let n_partials = sizes.sequences * heads.max(config.latent_max(LatentConfig::head_blocks));
        let partials_len =
            partials_len(sizes.ctx, config.attention_max(|attention| attention.value_dim), RANGE_KEYS_MIN)
                .max(partials_len(sizes.ctx, config.latent_max(|latent| latent.kv_rank), LATENT_KEYS_MIN));
        let [kernel_bytes, gathered_bytes] = worker_bytes(config, sizes);
        Buffers {
            x: carver.take(n * padded(e)),
            branch: carver.take(if config.holds_aside() { n * padded(e) } else { 0 }),
            apart: carver.take(if is_apart { n * padded(e) } else { 0 }),
            per_layer: carver.take(n * padded(config.n_layers() * config.n_embd_per_layer)),
            acts: ActivationBuffer::new(carver.take(n.max(sizes.n_logits) * record.unwrap_or(0))),
            q: carver.take(n * widest(AttentionConfig::q_width).max(padded(config.latent_max(LatentConfig::q_width)))),
            k: carver.take(n * widest(AttentionConfig::k_width)),
            v: carver.take(n * widest(AttentionConfig::v_width)),
            head_gates: carver.take(n * padded(gated_width)),
            conv: carver.take(if has_conv { n * padded(3 * e) } else { 0 }),
            recurrent: RecurrentBuffers::cut(carver, config, n),
            latent: LatentBuffers::cut(carver, config, n),
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
            pooled: carver.take(sizes.sequences * padded(config.head_width())),
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
    let latent = config.latents().map(|latent| latent_scratch(latent.row_dim(), latent.kv_rank)).max().unwrap_or(0);
    let kernels = sizes.tile.scratch_bytes().max(attend_scratch(head_dim).max(latent) * size_of::<f32>());
    [kernels, Routed::gathered_bytes(config, sizes)]
}

/// What latent attention works with.
pub(super) struct LatentBuffers<'a> {
    /// What queries are made of, `[n_batch, padded(q_rank)]`.
    pub q_a: &'a mut [f32],
    /// The latent and the rotated part of the key, `[n_batch, padded(row_dim)]`.
    pub rows: &'a mut [f32],
    /// Activations of one head of one token each, head by head.
    pub records: ActivationBuffer<'a>,
    /// What meets latents, `[n_heads * n, padded(kv_rank)]`, later values, `[n_heads * n, padded(value_dim)]`.
    pub by_head: &'a mut [f32],
    /// Weighted sums of latents, `[n_batch, n_heads * kv_rank]`.
    pub mixed: &'a mut [f32],
    /// The number of every head, and where its rows begin; the last ends there.
    pub heads: &'a mut [u32],
    pub cuts: &'a mut [u32],
}

impl<'a> LatentBuffers<'a> {
    /// Takes its parts.
    pub(super) fn cut(carver: &mut Carver<'a>, config: &Config, n: usize) -> LatentBuffers<'a> {
        let most = |number: fn(&LatentConfig) -> usize| config.latent_max(number);
        let heads = most(|latent| latent.n_heads);
        let record = ActivationLayout::new(most(|latent| latent.kv_rank.max(latent.plain_dim))).bytes();
        LatentBuffers {
            q_a: carver.take(n * padded(most(|latent| latent.q_rank))),
            rows: carver.take(n * padded(most(LatentConfig::row_dim))),
            records: ActivationBuffer::new(carver.take(if heads == 0 { 0 } else { heads * n * record })),
            by_head: carver.take(heads * n * padded(most(|latent| latent.kv_rank.max(latent.value_dim)))),
            mixed: carver.take(n * most(|latent| latent.n_heads * latent.kv_rank)),
            heads: carver.take(heads),
            cuts: carver.take(heads + 1),
        }
    }
}
