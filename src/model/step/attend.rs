//! Attention of a pass over the cache: blocks of tokens and heads, or ranges of keys.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::buffers::Buffers;
use super::lists::{Band, Lists, Ranged};
use super::pass::ForwardPass;
use super::rows::padded;
use crate::bytes;
use crate::kernels::{ActivationFormat, ActivationLayout, KvHead, Partition, Queries, attend_scratch};
use crate::model::sequence::SequenceSlice;
use crate::model::weights::AttentionWeights;

impl ForwardPass<'_, '_> {
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
        let (n, heads, group) = (self.tokens.len(), config.n_kv_heads, config.group());
        let (key_dim, value_dim, window) = (config.key_dim, config.value_dim, config.window_len());
        let (slices, kernels, team) = (self.slices, self.kernels, self.team);
        let sinks = attn.sinks.as_ref().map(|sinks| sinks.values(self.region));
        let cache = self.cache.pages(layer);
        let Buffers { acts, q, workers, partials, lists, .. } = &mut *self.buffers;
        let layout = ActivationLayout::new(config.output_width());
        let acts = acts.writable(layout, ActivationFormat::F32);
        let (q, q_stride) = (&**q, padded(config.q_width()));
        let head_of = |slice: usize, head: usize| KvHead {
            kv_type: cache.layout.kv_type,
            key_dim,
            value_dim,
            bytes: cache.bytes,
            page_bytes: cache.layout.page_bytes(),
            offset: head * cache.layout.head_bytes(),
            pages: &slices[slice].pages[cache.pool],
        };
        // Of the tokens of a slice from `first` of the pass on.
        let queries_of = |slice: usize, head: usize, first: usize, n_tokens: usize| Queries {
            values: &q[first * q_stride + head * group * key_dim..],
            stride: q_stride,
            group,
            n_tokens,
            position: slices[slice].position + first - slices[slice].first,
            window,
            scale: config.scale,
            sinks: sinks.map(|sinks| &sinks[head * group..][..group]),
        };
        lists.list_bands(slices, (heads, group, window), team.size());
        let Lists { cuts, bands, ranged, .. } = &*lists;
        let n_tasks = ranged.last().map_or(0, |last| last.first_task + heads * last.n_ranges);
        let columns = group * value_dim * 4;
        let next = AtomicUsize::new(0);
        // Later tokens see more keys, and tokens of prompts come last.
        let partition = Partition::grouped(acts, (heads * columns, layout.bytes()), (cuts, 1), columns).reversed();
        team.run_dynamic(&|worker| {
            let Ok(mut scratch) = workers[worker].lock() else { return };
            let n_scratch = attend_scratch(key_dim.max(value_dim)) * 4;
            let scratch: &mut [f32] = bytes::cast_mut(&mut scratch.kernels[..n_scratch]);
            while let Some(mut block) = partition.next() {
                let (Band { slice, is_ranged }, head) = (bands[block.band], block.col0 / columns);
                if is_ranged {
                    continue;
                }
                let queries = queries_of(slice, head, block.row0, block.rows);
                let keys = queries.first_key()..queries.keys();
                kernels.attend(&head_of(slice, head), &queries, keys, scratch, &mut |result| {
                    let row: &mut [f32] = bytes::cast_mut(block.row(result.token));
                    row[result.head * value_dim..][..value_dim].copy_from_slice(result.values);
                });
            }
            // Few rows over many keys: ranges of keys are shared out, and who finishes a head's last range merges them.
            loop {
                let task = next.fetch_add(1, Ordering::Relaxed);
                if task >= n_tasks {
                    break;
                }
                let place = ranged.partition_point(|ranged| ranged.first_task <= task) - 1;
                let Ranged { slice, first_task, n_ranges, range_len, .. } = ranged[place];
                let (head, range) = ((task - first_task) / n_ranges, (task - first_task) % n_ranges);
                let mut queries = queries_of(slice, head, slices[slice].first, slices[slice].n);
                let start = queries.first_key() + range * range_len;
                let keys = start..queries.keys().min(start + range_len);
                queries.sinks = queries.sinks.filter(|_| range == 0);
                let kv = head_of(slice, head);
                let partials = &partials[place * heads + head];
                kernels.attend(&kv, &queries, keys, scratch, &mut |result| {
                    let Ok(mut partials) = partials.lock() else { return };
                    let row = range * queries.rows() + result.token * group + result.head;
                    partials.put(row, result.values, result.log_sum);
                });
                let Ok(mut partials) = partials.lock() else { continue };
                partials.finish_range(n_ranges, queries.rows(), value_dim);
            }
        });
        debug_assert!(cuts.last() == Some(&(n as u32)));
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
