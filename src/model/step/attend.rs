//! Attention of a pass over the cache: blocks of tokens and heads, or ranges of keys.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::{Buffers, Lists, PAGE_TOKENS, Pass, Span, Weight, padded};
use crate::bytes;
use crate::kernels::{ActLayout, ActType, Grid, KvHead, QUERY_ROWS_MAX, Queries, attend_scratch, key_ranges, merge};

/// What the attention of one KV head over ranges of keys has come to.
pub(super) struct Partials<'a> {
    /// Ranges that are done.
    pub(super) done: usize,
    /// `[n_ranges][rows][head_dim values, mass]`
    pub(super) rows: &'a mut [f32],
}

impl Pass<'_, '_> {
    /// Attends over the cache of layer `layer`; the result goes to the activation records. Every head may have a sink. After the
    /// last layer's only the tokens that are wanted go on.
    pub fn attend(&mut self, layer: usize, sinks: Option<&Weight>) {
        let begun = self.attention_time.is_some().then(Instant::now);
        self.attend_over(layer, sinks);
        if let (Some(time), Some(begun)) = (&mut self.attention_time, begun) {
            **time += begun.elapsed();
        }
        if layer + 1 == self.config.n_layers {
            self.keep_wanted();
        }
    }

    fn attend_over(&mut self, layer: usize, sinks: Option<&Weight>) {
        let (n, d, heads, group) =
            (self.tokens.len(), self.config.head_dim, self.config.n_kv_heads, self.config.group());
        let (spans, kernels) = (self.spans, self.kernels);
        let (window, scale) = (self.config.window_of(layer), self.config.attention_scale);
        let sinks = sinks.map(|sinks| sinks.values(self.region));
        let cache = self.kv.layer(layer);
        let Buffers { acts, q, workers, partials, lists, .. } = &mut *self.buffers;
        let acts = acts.hold(ActType::F32);
        let (q, q_width) = (&**q, padded(heads * group * d));
        let head_bytes = 2 * PAGE_TOKENS * cache.kv_type.row_bytes(d);
        let head_of = |span: usize, head: usize| KvHead {
            kv_type: cache.kv_type,
            head_dim: d,
            bytes: cache.bytes,
            page_bytes: cache.page_bytes,
            offset: head * head_bytes,
            pages: spans[span].pages[cache.reach as usize],
        };
        // Of the tokens of a span from `first` of the pass on.
        let queries_of = |span: usize, head: usize, first: usize, n_tokens: usize| Queries {
            values: &q[first * q_width + head * group * d..],
            stride: q_width,
            group,
            n_tokens,
            position: spans[span].position + first - spans[span].first,
            window,
            scale,
            sinks: sinks.map(|sinks| &sinks[head * group..][..group]),
        };
        lists.list_bands(spans, (heads, group, window), self.team.size());
        let Lists { cuts, bands, ranged, .. } = &*lists;
        let n_tasks = ranged.last().map_or(0, |last| last.first_task + heads * last.n_ranges);
        let layout = ActLayout::new(heads * group * d);
        let columns = group * d * 4;
        let width = d + 1;
        let next = AtomicUsize::new(0);
        // Later tokens see more keys, and tokens of prompts come last.
        let grid = Grid::grouped(acts, (heads * columns, layout.bytes()), (cuts, 1), columns).last_first();
        self.team.drain(&|worker| {
            let Ok(mut scratch) = workers[worker].lock() else { return };
            let scratch: &mut [f32] = bytes::cast_mut(&mut scratch.kernels[..attend_scratch(d) * 4]);
            while let Some(mut block) = grid.next() {
                let (Band { span, is_ranged }, head) = (bands[block.band], block.col0 / columns);
                if is_ranged {
                    continue;
                }
                let queries = queries_of(span, head, block.row0, block.rows);
                let keys = queries.first_key()..queries.keys();
                kernels.attend(&head_of(span, head), &queries, keys, scratch, &mut |result| {
                    let row: &mut [f32] = bytes::cast_mut(block.row(result.token));
                    row[result.head * d..][..d].copy_from_slice(result.values);
                });
            }
            // Few rows over many keys: ranges of keys are shared out, and who finishes a head's last range merges them.
            loop {
                let task = next.fetch_add(1, Ordering::Relaxed);
                if task >= n_tasks {
                    break;
                }
                let place = ranged.partition_point(|ranged| ranged.first_task <= task) - 1;
                let Ranged { span, first_task, n_ranges, range_len, .. } = ranged[place];
                let (head, range) = ((task - first_task) / n_ranges, (task - first_task) % n_ranges);
                let mut queries = queries_of(span, head, spans[span].first, spans[span].n);
                let n_rows = queries.rows();
                let start = queries.first_key() + range * range_len;
                let keys = start..queries.keys().min(start + range_len);
                queries.sinks = queries.sinks.filter(|_| range == 0);
                let partials = &partials[place * heads + head];
                kernels.attend(&head_of(span, head), &queries, keys, scratch, &mut |result| {
                    let Ok(mut partials) = partials.lock() else { return };
                    let row = range * n_rows + result.token * group + result.head;
                    let part = &mut partials.rows[row * width..][..width];
                    part[..d].copy_from_slice(result.values);
                    part[d] = result.mass;
                });
                let Ok(mut partials) = partials.lock() else { continue };
                partials.done += 1;
                if partials.done == n_ranges {
                    partials.done = 0;
                    merge(&mut partials.rows[..n_ranges * n_rows * width], n_rows, d);
                }
            }
        });
        debug_assert!(cuts.last() == Some(&(n as u32)));
        for (place, Ranged { span, .. }) in ranged.iter().enumerate() {
            let Span { first, n, .. } = spans[*span];
            for (head, partials) in partials[place * heads..][..heads].iter_mut().enumerate() {
                let Ok(partials) = partials.get_mut() else { return };
                for (row, part) in partials.rows.chunks_exact(width).take(n * group).enumerate() {
                    let record = &mut acts[(first + row / group) * layout.bytes()..][..layout.bytes()];
                    layout.values_mut(record)[(head * group + row % group) * d..][..d].copy_from_slice(&part[..d]);
                }
            }
        }
    }
}

/// Tokens of one span that are worked on together, head by head.
#[derive(Clone, Copy)]
pub(super) struct Band {
    span: usize,
    /// They are not: the span's keys are shared out.
    is_ranged: bool,
}

/// A span whose keys are shared out.
#[derive(Clone, Copy)]
pub(super) struct Ranged {
    span: usize,
    /// The number of its first task; it has as many as heads times ranges.
    first_task: usize,
    n_ranges: usize,
    range_len: usize,
}

impl Lists {
    /// How the attention of a layer is shared out. What becomes of a span depends on nothing but itself and the team.
    fn list_bands(&mut self, spans: &[Span<'_>], (heads, group, window): (usize, usize, usize), workers: usize) {
        self.cuts.clear();
        self.bands.clear();
        self.ranged.clear();
        self.cuts.push(0);
        let mut n_tasks = 0;
        for (number, &Span { first, n, position, .. }) in spans.iter().enumerate() {
            let (n_rows, first_key) = (n * group, (position + 1).saturating_sub(window) / PAGE_TOKENS * PAGE_TOKENS);
            let (n_ranges, range_len) = key_ranges(position + n - first_key, n_rows);
            if n_rows <= QUERY_ROWS_MAX && n_ranges > 1 {
                self.ranged.push(Ranged { span: number, first_task: n_tasks, n_ranges, range_len });
                n_tasks += heads * n_ranges;
                self.cuts.push((first + n) as u32);
                self.bands.push(Band { span: number, is_ranged: true });
                continue;
            }
            // As many rows at once as a call takes; half of them where that leaves too few blocks to share out evenly.
            let (fewest, most) = (n.div_ceil(QUERY_ROWS_MAX / group), n.div_ceil((QUERY_ROWS_MAX / 2 / group).max(1)));
            let band = n.div_ceil((4 * workers).div_ceil(heads).clamp(fewest, most));
            for start in (0..n).step_by(band) {
                self.cuts.push((first + n.min(start + band)) as u32);
                self.bands.push(Band { span: number, is_ranged: false });
            }
        }
    }
}
