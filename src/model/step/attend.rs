//! Attention of a pass over the cache: blocks of tokens and heads, or ranges of keys.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::buffers::{Buffers, WorkerScratch};
use super::lists::{Band, Lists, Ranged, Shares};
use super::partials::Partials;
use super::pass::ForwardPass;
use super::routing::sigmoid;
use super::rows::{each_row, padded, share};
use crate::bytes;
use crate::kernels::{
    ActivationFormat, ActivationLayout, Kernels, KvHead, Partition, QUERY_ROWS_MAX, Queries, RANGE_KEYS_MIN, RowResult,
    Team, Window, attend_scratch,
};
use crate::model::cache::LayerPages;
use crate::model::config::{AttentionConfig, OutputGate};
use crate::model::sequence::SequenceSlice;
use crate::model::weights::AttentionWeights;

/// The tokens of one call: `n` of a slice from token `first` of the pass on.
#[derive(Clone, Copy)]
pub(super) struct Tokens {
    pub slice: usize,
    pub first: usize,
    pub n: usize,
}

/// The attention of one layer.
pub(super) trait Attend: Sync {
    /// How it is shared out.
    fn shares(&self) -> Shares;

    /// One head of some tokens over all keys, or over a range: which, and how many keys one has.
    fn attend(
        &self,
        tokens: Tokens,
        head: usize,
        range: Option<(usize, usize)>,
        scratch: &mut [f32],
        put: &mut dyn FnMut(RowResult<'_>),
    );
}

/// What the attention of one layer works with.
struct Operands<'a> {
    kernels: &'a Kernels,
    config: AttentionConfig,
    slices: &'a [SequenceSlice<'a>],
    cache: LayerPages<&'a [u8]>,
    q: &'a [f32],
    /// Values of `q` from token to token.
    q_stride: usize,
    sinks: Option<&'a [f32]>,
    slopes: Option<&'a [f32]>,
}

impl Operands<'_> {
    /// Keys and values of a slice's sequence.
    fn kv(&self, slice: usize, head: usize) -> KvHead<'_> {
        let layout = &self.cache.layout;
        KvHead {
            kv_type: layout.kv_type,
            key_dim: self.config.key_dim,
            value_dim: self.config.value_dim,
            bytes: self.cache.bytes,
            page_bytes: layout.page_bytes(),
            offset: head * layout.head_bytes(),
            pages: &self.slices[slice].pages[self.cache.pool],
        }
    }

    /// Those of some tokens.
    fn queries(&self, Tokens { slice, first, n }: Tokens, head: usize) -> Queries<'_> {
        let (group, of_slice) = (self.config.group(), &self.slices[slice]);
        Queries {
            values: &self.q[first * self.q_stride + head * group * self.config.key_dim..],
            stride: self.q_stride,
            group,
            n_tokens: n,
            position: of_slice.position + first - of_slice.first,
            len: of_slice.position + of_slice.n,
            window: self.config.window.unwrap_or(Window::ALL),
            scale: self.config.scale,
            cap: self.config.score_cap,
            slopes: self.slopes.map(|slopes| &slopes[head * group..][..group]),
            sinks: self.sinks.map(|sinks| &sinks[head * group..][..group]),
        }
    }
}

impl Attend for Operands<'_> {
    fn shares(&self) -> Shares {
        let AttentionConfig { n_kv_heads, key_dim, value_dim, .. } = self.config;
        Shares {
            heads: n_kv_heads,
            group: self.config.group(),
            value_dim,
            window: self.config.window.unwrap_or(Window::ALL),
            rows_max: QUERY_ROWS_MAX,
            keys_min: RANGE_KEYS_MIN,
            scratch_len: attend_scratch(key_dim.max(value_dim)),
        }
    }

    fn attend(
        &self,
        tokens: Tokens,
        head: usize,
        range: Option<(usize, usize)>,
        scratch: &mut [f32],
        put: &mut dyn FnMut(RowResult<'_>),
    ) {
        let mut queries = self.queries(tokens, head);
        let (index, len) = range.unwrap_or((0, queries.keys()));
        let start = queries.first_key() + index * len;
        let keys = start..queries.keys().min(start + len);
        // A sink is counted once.
        queries.sinks = queries.sinks.filter(|_| index == 0);
        self.kernels.attend(&self.kv(tokens.slice, head), &queries, keys, scratch, put);
    }
}

impl ForwardPass<'_, '_> {
    /// Multiplies what attention has left in the activation records by a function of its gates, if it has any: one for each
    /// value, or one for each head.
    pub fn gate_attention(&mut self, layer: usize, attn: &AttentionWeights) {
        let config = *self.attention_config(layer);
        let (Some(function), Some(map)) = (config.gate, &attn.gate) else { return };
        let (n, width, kernels) = (self.tokens.len(), map.weight.rows, self.kernels);
        let values_of_a_gate = config.output_width() / width;
        let Buffers { acts, head_gates, .. } = &mut *self.buffers;
        let (gates, layout) = (&**head_gates, acts.layout());
        let records = acts.writable(layout, ActivationFormat::F32);
        let partition = each_row(self.team, records, (n, layout.bytes(), layout.bytes()));
        share(self.team, n, &|worker| {
            while let Some(mut block) = partition.next_for(worker) {
                let gates = &gates[block.row0 * padded(width)..][..width];
                let values = layout.values_mut(block.row(0));
                if (function, values_of_a_gate) == (OutputGate::Sigmoid, 1) {
                    kernels.sigmoid_mul(gates, values);
                    continue;
                }
                for (values, &gate) in values.chunks_exact_mut(values_of_a_gate).zip(gates) {
                    let factor = match function {
                        OutputGate::Sigmoid => sigmoid(gate),
                        OutputGate::Softplus => gate.max(0.0) + (-gate.abs()).exp().ln_1p(),
                    };
                    values.iter_mut().for_each(|x| *x *= factor);
                }
            }
        });
    }

    /// Attends over the cache of layer `layer`; the result goes to the activation records. Every head may have a sink.
    pub fn attend(&mut self, layer: usize, attn: &AttentionWeights) {
        let begun = self.attention_time.is_some().then(Instant::now);
        self.attend_over(layer, attn);
        if let (Some(time), Some(begun)) = (&mut self.attention_time, begun) {
            **time += begun.elapsed();
        }
    }

    fn attend_over(&mut self, layer: usize, attn: &AttentionWeights) {
        let config = *self.attention_config(layer);
        let (slices, kernels, team) = (self.slices, self.kernels, self.team);
        let sinks = attn.sinks.as_ref().map(|sinks| sinks.values(self.region));
        let cache = self.cache.pages(layer);
        let Buffers { acts, q, workers, partials, lists, slopes, .. } = &mut *self.buffers;
        let slopes = config.alibi.map(|_| &**slopes);
        let attention =
            Operands { kernels, config, slices, cache, q, q_stride: padded(config.q_width()), sinks, slopes };
        let layout = ActivationLayout::new(config.output_width());
        let records = acts.writable(layout, ActivationFormat::F32);
        share_out(&attention, (team, workers), slices, (lists, partials), (records, layout.bytes()));
    }
}

/// Shares an attention out: the results of every token go to the f32 values that `records`, `stride` bytes each, begin with.
pub(super) fn share_out(
    attention: &dyn Attend,
    (team, workers): (&dyn Team, &[Mutex<WorkerScratch<'_>>]),
    slices: &[SequenceSlice<'_>],
    (lists, partials): (&mut Lists, &mut [Mutex<Partials<'_>>]),
    (records, stride): (&mut [u8], usize),
) {
    let shares = attention.shares();
    let Shares { heads, group, value_dim, scratch_len, .. } = shares;
    lists.list_bands(slices, &shares, team.size());
    let Lists { cuts, bands, ranged, .. } = &*lists;
    let n_tasks = ranged.last().map_or(0, |last| last.first_task + heads * last.n_ranges);
    let columns = group * value_dim * 4;
    let next = AtomicUsize::new(0);
    // Later tokens see more keys, and tokens of prompts come last.
    let partition = Partition::grouped(records, (heads * columns, stride), (cuts, 1), columns).reversed();
    team.run_dynamic(&|worker| {
        let Ok(mut scratch) = workers[worker].lock() else { return };
        let scratch: &mut [f32] = bytes::cast_mut(&mut scratch.kernels[..scratch_len * 4]);
        while let Some(mut block) = partition.next() {
            let (Band { slice, is_ranged }, head) = (bands[block.band], block.col0 / columns);
            if is_ranged {
                continue;
            }
            let tokens = Tokens { slice, first: block.row0, n: block.rows };
            attention.attend(tokens, head, None, scratch, &mut |result| {
                let row: &mut [f32] = bytes::cast_mut(block.row(result.token));
                row[result.head * value_dim..][..value_dim].copy_from_slice(result.values);
            });
        }
        // Few rows over many keys: ranges of keys are shared out; who finishes a head's last range merges them.
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= n_tasks {
                break;
            }
            let place = ranged.partition_point(|ranged| ranged.first_task <= task) - 1;
            let Ranged { slice, first_task, n_ranges, range_len } = ranged[place];
            let (head, range) = ((task - first_task) / n_ranges, (task - first_task) % n_ranges);
            let (SequenceSlice { first, n, .. }, partials) = (slices[slice], &partials[place * heads + head]);
            attention.attend(Tokens { slice, first, n }, head, Some((range, range_len)), scratch, &mut |result| {
                let Ok(mut partials) = partials.lock() else { return };
                partials.put(range * n * group + result.token * group + result.head, result.values, result.log_sum);
            });
            let Ok(mut partials) = partials.lock() else { return };
            partials.finish_range(n_ranges, n * group, value_dim);
        }
    });
    for (place, Ranged { slice, .. }) in ranged.iter().enumerate() {
        let SequenceSlice { first, n, .. } = slices[*slice];
        for (head, partials) in partials[place * heads..][..heads].iter_mut().enumerate() {
            let Ok(partials) = partials.get_mut() else { return };
            let records = &mut records[first * stride..];
            partials.put_merged(records, stride, (n, group, value_dim), head * group);
        }
    }
}
