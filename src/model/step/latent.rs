//! Multi-head latent attention, absorbed (DeepSeek-V2, arXiv:2405.04434, section 2.1): a head's keys are `K c` of the latents
//! `c`, so that `q . K c = K^T q . c`, and its values `V c`, of which a weighted sum is `V` of the sum. Attention so runs over
//! the latents themselves, one row a position for all heads.
//!
//! The maps of heads are products of every head's tokens with its matrix: records lie head by head, `[n_heads][n]`.

use std::ops::Range;
use std::time::Instant;

use super::attend::{Attend, Tokens, share_out};
use super::buffers::{Buffers, LatentBuffers};
use super::experts::{Groups, multiply_groups};
use super::heads::position_of;
use super::lists::Shares;
use super::pass::ForwardPass;
use super::product::multiply;
use super::rows::{each_row, padded, share};
use crate::bytes;
use crate::kernels::{
    ActivationFormat, ActivationLayout, HeadValues, Kernels, KvHead, LATENT_KEYS_MIN, LATENT_ROWS_MAX, LatentQueries,
    Partition, RowResult, Window, latent_scratch,
};
use crate::model::cache::LayerPages;
use crate::model::config::{HEAD_DIM_MAX, LatentConfig, MixerConfig};
use crate::model::sequence::SequenceSlice;
use crate::model::weights::{LatentKeys, LatentWeights, Linear};

/// Rows of records that a worker writes at a time.
const RECORD_ROWS: usize = 16;

/// What the attention of one layer works with.
struct Operands<'a> {
    kernels: &'a Kernels,
    config: LatentConfig,
    slices: &'a [SequenceSlice<'a>],
    cache: LayerPages<&'a [u8]>,
    latent: HeadValues<'a>,
    rotated: HeadValues<'a>,
}

impl Attend for Operands<'_> {
    fn shares(&self) -> Shares {
        let LatentConfig { n_heads, kv_rank, .. } = self.config;
        let heads = self.config.head_blocks();
        Shares {
            heads,
            group: n_heads / heads,
            value_dim: kv_rank,
            window: Window::ALL,
            rows_max: LATENT_ROWS_MAX,
            keys_min: LATENT_KEYS_MIN,
            scratch_len: latent_scratch(self.config.row_dim(), kv_rank),
        }
    }

    fn attend(
        &self,
        Tokens { slice, first, n }: Tokens,
        block: usize,
        range: Option<(usize, usize)>,
        scratch: &mut [f32],
        put: &mut dyn FnMut(RowResult<'_>),
    ) {
        let (of_slice, layout) = (&self.slices[slice], &self.cache.layout);
        let group = self.config.n_heads / self.config.head_blocks();
        let queries = LatentQueries {
            latent: self.latent.from(first, block * group),
            rotated: self.rotated.from(first, block * group),
            group,
            n_tokens: n,
            position: of_slice.position + first - of_slice.first,
            scale: self.config.scale,
        };
        let kv = KvHead {
            kv_type: layout.kv_type,
            key_dim: layout.key_dim,
            value_dim: self.config.kv_rank,
            bytes: self.cache.bytes,
            page_bytes: layout.page_bytes(),
            offset: 0,
            pages: &of_slice.pages[self.cache.pool],
        };
        let (index, len) = range.unwrap_or((0, queries.keys()));
        let keys = index * len..queries.keys().min((index + 1) * len);
        self.kernels.attend_latent(&kv, &queries, keys, scratch, put);
    }
}

impl ForwardPass<'_, '_> {
    fn latent_config(&self, layer: usize) -> LatentConfig {
        match self.config.layers[layer].mixer {
            MixerConfig::Latent(latent) => latent,
            _ => unreachable!("this layer has latent attention"),
        }
    }

    /// Latent attention of the normed stream; what its heads come to goes to the activation records.
    pub fn latent_attention(&mut self, layer: usize, latent: &LatentWeights) {
        self.project_latent(latent);
        self.prepare_latent(layer, latent);
        self.absorb_keys(layer, latent);
        let begun = self.attention_time.is_some().then(Instant::now);
        self.attend_latent(layer);
        if let (Some(time), Some(begun)) = (&mut self.attention_time, begun) {
            **time += begun.elapsed();
        }
        self.make_values(layer, latent);
    }

    /// Queries, latents and the rotated part of keys.
    fn project_latent(&mut self, latent: &LatentWeights) {
        let (n, tools, kernels, team) = (self.tokens.len(), self.tools(), self.kernels, self.team);
        let Buffers { acts, q, workers, latent: LatentBuffers { q_a, rows, .. }, .. } = &mut *self.buffers;
        let Some((map, norm)) = &latent.q_a else {
            return multiply(tools, workers, (acts, n), [(&latent.q, &mut **q), (&latent.kv_a, &mut **rows)], false);
        };
        multiply(tools, workers, (acts, n), [(map, &mut **q_a), (&latent.kv_a, &mut **rows)], false);
        let (rank, norm, q_a) = (norm.len, norm.of(self.region), &**q_a);
        let (layout, format) = (ActivationLayout::new(rank), kernels.activation_format(latent.q.weight.ty, n));
        let records = each_row(team, acts.writable(layout, format), (n, layout.bytes(), layout.bytes()));
        share(team, n, &|worker| {
            while let Some(mut block) = records.next_for(worker) {
                let row = &q_a[block.row0 * padded(rank)..][..rank];
                kernels.norm(row, &norm, layout.values_mut(block.row(0)));
                kernels.quantise(layout, format, block.row(0));
            }
        });
        multiply(tools, workers, (acts, n), [(&latent.q, &mut **q)], false);
    }

    /// Rotates what is to be rotated, and stores normed latents in the cache.
    fn prepare_latent(&mut self, layer: usize, latent: &LatentWeights) {
        let (config, pairing) = (self.latent_config(layer), self.config.style.pairing);
        let (n, slices, kernels, team) = (self.tokens.len(), self.slices, self.kernels, self.team);
        let (row_dim, key_dim, width) = (config.row_dim(), config.key_dim(), config.q_width());
        let norm = latent.kv_norm.of(self.region);
        let Buffers { q, rotations, lists, latent: LatentBuffers { rows, .. }, .. } = &mut *self.buffers;
        let (rotation, rows) = (&rotations[0], &**rows);
        let queries = each_row(team, q, (n, width, padded(width)));
        let LayerPages { bytes, layout, pool } = self.cache.pages_mut(layer);
        let (picks, writes) = (&lists.picks[pool], &lists.writes[pool]);
        let pages = Partition::picked(bytes, layout.page_bytes(), picks, layout.page_bytes()).in_parts(team.size());
        share(team, n, &|worker| {
            let mut ready = [0f32; HEAD_DIM_MAX];
            let ready = &mut ready[..row_dim];
            while let Some(mut block) = pages.next_for(worker) {
                for (token, at) in writes[block.band].tokens(slices) {
                    let row = &rows[token * padded(row_dim)..][..row_dim];
                    kernels.norm(&row[..config.kv_rank], &norm, &mut ready[..config.kv_rank]);
                    ready[config.kv_rank..].copy_from_slice(&row[config.kv_rank..]);
                    rotation.turn((kernels, pairing), &mut ready[config.kv_rank..], token);
                    layout.store_row(kernels, ready, block.row(0), at);
                }
            }
            while let Some(mut block) = queries.next_for(worker) {
                let token = block.row0;
                for head in block.row(0).chunks_exact_mut(key_dim) {
                    rotation.turn((kernels, pairing), &mut head[config.plain_dim..], token);
                }
                if let Some(temperature) = &config.temperature {
                    let factor = temperature.factor(position_of(slices, token));
                    block.row(0).iter_mut().for_each(|x| *x *= factor);
                }
            }
        });
    }

    /// What of every query meets latents.
    fn absorb_keys(&mut self, layer: usize, latent: &LatentWeights) {
        let config = self.latent_config(layer);
        let LatentConfig { n_heads, plain_dim, kv_rank, .. } = config;
        let (n, kernels, region) = (self.tokens.len(), self.kernels, self.region);
        let (key_dim, stride) = (config.key_dim(), padded(config.q_width()));
        let q = std::mem::take(&mut self.buffers.q);
        match &latent.keys {
            LatentKeys::Absorbed(map) => self.multiply_heads(map, plain_dim, n_heads, |token, head, cols, out| {
                out.copy_from_slice(&q[token * stride + head * key_dim..][cols]);
            }),
            LatentKeys::Rows(keys) => {
                let rows = (kv_rank, padded(kv_rank));
                let keys: &[f32] = bytes::cast(keys.of(region));
                let by_head = &mut *self.buffers.latent.by_head;
                let heads = Partition::new(by_head, (n_heads * n, rows.0, rows.1), (n, kv_rank));
                self.team.run_dynamic(&|_| {
                    while let Some(mut block) = heads.next() {
                        let keys = &keys[block.band * plain_dim * kv_rank..][..plain_dim * kv_rank];
                        for token in 0..n {
                            let q = &q[token * stride + block.band * key_dim..][..plain_dim];
                            kernels.absorb(keys, q, block.row(token));
                        }
                    }
                });
            }
        }
        self.buffers.q = q;
    }

    /// Products of every head's tokens with its matrix of `map`, of `cols` values each that `values` writes, of a token and a
    /// head, some at a time.
    fn multiply_heads(
        &mut self,
        map: &Linear,
        cols: usize,
        n_heads: usize,
        values: impl Fn(usize, usize, Range<usize>, &mut [f32]) + Sync,
    ) {
        let (n, tools, kernels, team) = (self.tokens.len(), self.tools(), self.kernels, self.team);
        let Buffers { workers, latent: LatentBuffers { records, by_head, heads, cuts, .. }, .. } = &mut *self.buffers;
        let (layout, format) = (ActivationLayout::new(cols), kernels.activation_format(map.weight.ty, n));
        let rows =
            |bytes, cols, block| Partition::new(bytes, (n_heads * n, cols, layout.bytes()), (RECORD_ROWS, block));
        records
            .write((kernels, team), (layout, format), rows, |(_, row), cols, out| values(row % n, row / n, cols, out));
        for (head, (number, cut)) in heads.iter_mut().zip(&mut **cuts).enumerate().take(n_heads) {
            (*number, *cut) = (head as u32, (head * n) as u32);
        }
        cuts[n_heads] = (n_heads * n) as u32;
        let groups = Groups { expert_of: heads, cuts: &cuts[..=n_heads], token_of: None };
        multiply_groups(tools, workers, (records, n_heads * n), &groups, [map], by_head);
    }

    /// Attends over the latents of layer `layer`.
    fn attend_latent(&mut self, layer: usize) {
        let config = self.latent_config(layer);
        let (n, slices, kernels, team) = (self.tokens.len(), self.slices, self.kernels, self.team);
        let cache = self.cache.pages(layer);
        let Buffers { q, workers, partials, lists, latent: LatentBuffers { by_head, mixed, .. }, .. } =
            &mut *self.buffers;
        let strides = [padded(config.kv_rank), n * padded(config.kv_rank)];
        let latent = HeadValues { values: by_head, strides };
        let rotated =
            HeadValues { values: &q[config.plain_dim..], strides: [padded(config.q_width()), config.key_dim()] };
        let attention = Operands { kernels, config, slices, cache, latent, rotated };
        let width = config.n_heads * config.kv_rank;
        let mixed = bytes::floats_as_bytes(&mut mixed[..n * width]);
        share_out(&attention, (team, workers), slices, (lists, partials), (mixed, width * 4));
    }

    /// Values of the heads' sums of latents, into the activation records.
    fn make_values(&mut self, layer: usize, latent: &LatentWeights) {
        let LatentConfig { n_heads, kv_rank, value_dim, .. } = self.latent_config(layer);
        let (n, team) = (self.tokens.len(), self.team);
        let mixed = std::mem::take(&mut self.buffers.latent.mixed);
        self.multiply_heads(&latent.values, kv_rank, n_heads, |token, head, cols, out| {
            out.copy_from_slice(&mixed[(token * n_heads + head) * kv_rank..][cols]);
        });
        let Buffers { acts, latent: LatentBuffers { by_head, mixed: kept, .. }, .. } = &mut *self.buffers;
        *kept = mixed;
        let layout = ActivationLayout::new(n_heads * value_dim);
        let by_head = &**by_head;
        let records = acts.writable(layout, ActivationFormat::F32);
        let partition = each_row(team, records, (n, layout.bytes(), layout.bytes()));
        share(team, n, &|worker| {
            while let Some(mut block) = partition.next_for(worker) {
                let token = block.row0;
                let out = layout.values_mut(block.row(0));
                for (head, out) in out.chunks_exact_mut(value_dim).enumerate() {
                    out.copy_from_slice(&by_head[(head * n + token) * padded(value_dim)..][..value_dim]);
                }
            }
        });
    }
}
