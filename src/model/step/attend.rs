//! Attention of a pass over the cache: blocks of tokens and heads, or ranges of keys.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::buffers::Buffers;
use super::lists::{Band, Lists, Ranged};
use super::partials::Partials;
use super::pass::ForwardPass;
use super::routing::sigmoid;
use super::rows::{each_row, padded, share};
use crate::bytes;
use crate::kernels::{ActivationFormat, ActivationLayout, Kernels, KvHead, Partition, Queries, Window, attend_scratch};
use crate::model::cache::LayerPages;
use crate::model::config::{AttentionConfig, OutputGate};
use crate::model::sequence::SequenceSlice;
use crate::model::weights::AttentionWeights;

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

    /// Those of the tokens of a slice from `first` of the pass on.
    fn queries(&self, slice: usize, head: usize, first: usize, n_tokens: usize) -> Queries<'_> {
        let (group, of_slice) = (self.config.group(), &self.slices[slice]);
        Queries {
            values: &self.q[first * self.q_stride + head * group * self.config.key_dim..],
            stride: self.q_stride,
            group,
            n_tokens,
            position: of_slice.position + first - of_slice.first,
            window: self.config.window.unwrap_or(Window::ALL),
            scale: self.config.scale,
            cap: self.config.score_cap,
            slopes: self.slopes.map(|slopes| &slopes[head * group..][..group]),
            sinks: self.sinks.map(|sinks| &sinks[head * group..][..group]),
        }
    }

    /// One head over one range of keys; who finishes a head's last range merges them.
    fn attend_range(&self, ranged: &Ranged, task: usize, partials: &[Mutex<Partials<'_>>], scratch: &mut [f32]) {
        let &Ranged { slice, first_task, n_ranges, range_len } = ranged;
        let (head, range) = ((task - first_task) / n_ranges, (task - first_task) % n_ranges);
        let mut queries = self.queries(slice, head, self.slices[slice].first, self.slices[slice].n);
        let start = queries.first_key() + range * range_len;
        let keys = start..queries.keys().min(start + range_len);
        queries.sinks = queries.sinks.filter(|_| range == 0);
        self.kernels.attend(&self.kv(slice, head), &queries, keys, scratch, &mut |result| {
            let Ok(mut partials) = partials[head].lock() else { return };
            let row = range * queries.rows() + result.token * queries.group + result.head;
            partials.put(row, result.values, result.log_sum);
        });
        let Ok(mut partials) = partials[head].lock() else { return };
        partials.finish_range(n_ranges, queries.rows(), self.config.value_dim);
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
        let (heads, group, value_dim) = (config.n_kv_heads, config.group(), config.value_dim);
        let (slices, kernels, team) = (self.slices, self.kernels, self.team);
        let sinks = attn.sinks.as_ref().map(|sinks| sinks.values(self.region));
        let cache = self.cache.pages(layer);
        let Buffers { acts, q, workers, partials, lists, slopes, .. } = &mut *self.buffers;
        let slopes = config.alibi.map(|_| &**slopes);
        let operands =
            Operands { kernels, config, slices, cache, q, q_stride: padded(config.q_width()), sinks, slopes };
        let layout = ActivationLayout::new(config.output_width());
        let acts = acts.writable(layout, ActivationFormat::F32);
        lists.list_bands(slices, (heads, group, config.window.unwrap_or(Window::ALL)), team.size());
        let Lists { cuts, bands, ranged, .. } = &*lists;
        let n_tasks = ranged.last().map_or(0, |last| last.first_task + heads * last.n_ranges);
        let columns = group * value_dim * 4;
        let next = AtomicUsize::new(0);
        // Later tokens see more keys, and tokens of prompts come last.
        let partition = Partition::grouped(acts, (heads * columns, layout.bytes()), (cuts, 1), columns).reversed();
        team.run_dynamic(&|worker| {
            let Ok(mut scratch) = workers[worker].lock() else { return };
            let n_scratch = attend_scratch(config.key_dim.max(value_dim)) * 4;
            let scratch: &mut [f32] = bytes::cast_mut(&mut scratch.kernels[..n_scratch]);
            while let Some(mut block) = partition.next() {
                let (Band { slice, is_ranged }, head) = (bands[block.band], block.col0 / columns);
                if is_ranged {
                    continue;
                }
                let queries = operands.queries(slice, head, block.row0, block.rows);
                let keys = queries.first_key()..queries.keys();
                kernels.attend(&operands.kv(slice, head), &queries, keys, scratch, &mut |result| {
                    let row: &mut [f32] = bytes::cast_mut(block.row(result.token));
                    row[result.head * value_dim..][..value_dim].copy_from_slice(result.values);
                });
            }
            // Few rows over many keys: ranges of keys are shared out.
            loop {
                let task = next.fetch_add(1, Ordering::Relaxed);
                if task >= n_tasks {
                    break;
                }
                let place = ranged.partition_point(|ranged| ranged.first_task <= task) - 1;
                operands.attend_range(&ranged[place], task, &partials[place * heads..][..heads], scratch);
            }
        });
        debug_assert!(cuts.last() == Some(&(self.tokens.len() as u32)));
        for (place, Ranged { slice, .. }) in ranged.iter().enumerate() {
            let SequenceSlice { first, n, .. } = slices[*slice];
            for (head, partials) in partials[place * heads..][..heads].iter_mut().enumerate() {
                let Ok(partials) = partials.get_mut() else { return };
                let acts = &mut acts[first * layout.bytes()..];
                partials.put_merged(acts, layout, (n, group, value_dim), head * group);
            }
        }
    }
}
