//! Attention of a pass over the cache: blocks of tokens and heads, or ranges of keys.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::{Buffers, Pass, Weight, padded};
use crate::bytes;
use crate::kernels::{ActLayout, Grid, KvHead, QUERY_ROWS_MAX, Queries, attend_scratch, key_ranges, merge};

/// What the attention of one KV head over ranges of keys has come to.
pub(super) struct Partials<'a> {
    /// Ranges that are done.
    pub(super) done: usize,
    /// `[n_ranges][rows][head_dim values, mass]`
    pub(super) rows: &'a mut [f32],
}

impl Pass<'_, '_> {
    /// Attends over the cache of layer `layer`; the result goes to the activation records. Every head may have a sink.
    pub fn attend(&mut self, layer: usize, sinks: Option<&Weight>) {
        let begun = self.attention_time.is_some().then(Instant::now);
        self.attend_over(layer, sinks);
        if let (Some(time), Some(begun)) = (&mut self.attention_time, begun) {
            **time += begun.elapsed();
        }
    }

    fn attend_over(&mut self, layer: usize, sinks: Option<&Weight>) {
        let (n, d, heads, group) =
            (self.tokens.len(), self.config.head_dim, self.config.n_kv_heads, self.config.group());
        let (position, kernels) = (self.position, self.kernels);
        let (window, scale) = (self.config.window_of(layer), self.config.attention_scale);
        let sinks = sinks.map(|sinks| sinks.values(self.region));
        let cache = self.kv.layer(layer, self.config);
        let (kv_type, cache_bytes) = (cache.kv_type, cache.slots * cache.kv_type.row_bytes(d));
        let Buffers { acts, q, workers, partials, .. } = &mut *self.buffers;
        let (q, q_width) = (&**q, padded(heads * group * d));
        let job = |worker: usize, task: &mut dyn FnMut(&mut [f32])| {
            let Ok(mut scratch) = workers[worker].lock() else { return };
            task(bytes::cast_mut(&mut scratch.kernels[..attend_scratch(d) * 4]));
        };
        let head_of = |head: usize| {
            let (keys, values) = cache.bytes[2 * head * cache_bytes..][..2 * cache_bytes].split_at(cache_bytes);
            KvHead { kv_type, keys, values, head_dim: d }
        };
        let queries_of = |head: usize, first: usize, n_tokens: usize| Queries {
            values: &q[first * q_width + head * group * d..],
            stride: q_width,
            group,
            n_tokens,
            position: position + first,
            window,
            scale,
            sinks: sinks.map(|sinks| &sinks[head * group..][..group]),
        };
        let layout = ActLayout::new(heads * group * d);
        let n_rows = n * group;
        let first_key = queries_of(0, 0, n).first_key();
        let (n_ranges, range_len) = key_ranges(position + n - first_key, n_rows);
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
                    let mut queries = queries_of(head, 0, n);
                    let start = first_key + range * range_len;
                    let keys = start..queries.keys().min(start + range_len);
                    queries.sinks = queries.sinks.filter(|_| range == 0);
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
}
