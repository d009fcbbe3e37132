//! Q, K and V: projection, norms, rotation, and the way into the cache.

use super::{Buffers, Config, HEAD_DIM_MAX, PAGE_TOKENS, Pass, Sizes, Span, Weight, each_row, multiply, padded, share};
use crate::bytes;
use crate::kernels::Grid;
use crate::model::rope::Rope;
use crate::quant::PANEL_ROWS;

/// Which values of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// `(2i, 2i + 1)`
    Neighbours,
    /// `(i, i + rope_dim / 2)`
    Halves,
}

/// What an architecture does to its heads between projection and attention.
pub struct HeadSteps<'w> {
    /// Biases of Q, K and V.
    pub biases: Option<&'w [Weight; 3]>,
    /// RMSNorm weights for every head of Q and of K.
    pub norms: Option<&'w [Weight; 2]>,
    /// The rotation of Q and K.
    pub pairing: Pairing,
}

/// Cosines and sines for the tokens of a pass.
pub(super) struct Rotation<'a> {
    magnitude: f64,
    /// `[rope_dim / 2]`.
    frequencies: &'a mut [f64],
    /// `[n_batch, rope_dim / 2]`, as `sin`.
    cos: &'a mut [f32],
    sin: &'a mut [f32],
}

impl<'a> Rotation<'a> {
    fn each(config: &Config) -> impl Iterator<Item = &Rope> {
        std::iter::once(&config.rope).chain(config.window.as_ref().map(|window| &window.rope))
    }

    fn table_bytes(rope: &Rope, sizes: &Sizes) -> usize {
        sizes.n_batch * rope.dim / 2 * 4
    }

    /// Bytes of those that the model has.
    pub(super) fn bytes(config: &Config, sizes: &Sizes) -> usize {
        Self::each(config).map(|rope| rope.dim / 2 * 8 + 2 * Self::table_bytes(rope, sizes)).sum()
    }

    /// Carves them out of [`Rotation::bytes`]; the factors are those of layers without a window.
    pub(super) fn carve(
        bytes: &'a mut [u8],
        config: &Config,
        sizes: &Sizes,
        factors: Option<&[f32]>,
    ) -> Vec<Rotation<'a>> {
        // All tables of f64 come first, so that they are aligned.
        let tables = Self::each(config).map(|rope| rope.dim / 2 * 8).sum();
        let (mut tables, mut rest) = bytes.split_at_mut(tables);
        let rotations = Self::each(config).enumerate().map(|(i, rope)| {
            let (frequencies, tail) = std::mem::take(&mut tables).split_at_mut(rope.dim / 2 * 8);
            tables = tail;
            let (cos, tail) = std::mem::take(&mut rest).split_at_mut(Self::table_bytes(rope, sizes));
            let (sin, tail) = tail.split_at_mut(Self::table_bytes(rope, sizes));
            rest = tail;
            let frequencies: &mut [f64] = bytes::cast_mut(frequencies);
            rope.frequencies(factors.filter(|_| i == 0), frequencies);
            let magnitude = f64::from(rope.magnitude);
            Rotation { magnitude, frequencies, cos: bytes::cast_mut(cos), sin: bytes::cast_mut(sin) }
        });
        rotations.collect()
    }

    /// Of the positions of one sequence's tokens.
    fn turn_to(&mut self, span: &Span<'_>) {
        let half = self.frequencies.len();
        let rows = self.cos.chunks_exact_mut(half).zip(self.sin.chunks_exact_mut(half));
        for (t, (cos, sin)) in rows.skip(span.first).take(span.n).enumerate() {
            let position = (span.position + t) as f64;
            for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(self.frequencies.iter()) {
                let (s, c) = (position * frequency).sin_cos();
                (*cos, *sin) = ((c * self.magnitude) as f32, (s * self.magnitude) as f32);
            }
        }
    }
}

impl Pass<'_, '_> {
    /// Finds every token's place: cosines and sines of its position, and its page.
    pub fn locate(&mut self) {
        assert!(self.spans.iter().map(|span| span.n).sum::<usize>() == self.tokens.len());
        for rotation in &mut self.buffers.rotations {
            self.spans.iter().for_each(|span| rotation.turn_to(span));
        }
        self.buffers.lists.list_writes(self.spans);
    }

    /// Q, K and V of the normed stream.
    pub fn project_qkv(&mut self, q: &Weight, k: &Weight, v: &Weight) {
        let (n, tools) = (self.tokens.len(), self.tools());
        let Buffers { acts, q: q_out, k: k_out, v: v_out, workers, .. } = &mut *self.buffers;
        let products = [(q, &mut **q_out), (k, &mut **k_out), (v, &mut **v_out)];
        multiply(tools, workers, (acts, n), products, false);
    }

    /// RMSNorm of Q and K over all heads of a token together.
    pub fn norm_qk(&mut self, norms: &[Weight; 2]) {
        let (n, eps, kernels, team) = (self.tokens.len(), self.config.norm_eps, self.kernels, self.team);
        let Buffers { q, k, .. } = &mut *self.buffers;
        let [(q_norm, q), (k_norm, k)] = [(&norms[0], &mut **q), (&norms[1], &mut **k)]
            .map(|(norm, x)| (norm.values(self.region), each_row(team, x, (n, norm.cols, padded(norm.cols)))));
        share(team, n, &|worker| {
            while let Some(mut block) = q.next_of(worker) {
                kernels.rms_norm_in_place(block.row(0), q_norm, eps);
            }
            while let Some(mut block) = k.next_of(worker) {
                kernels.rms_norm_in_place(block.row(0), k_norm, eps);
            }
        });
    }

    /// Makes the heads ready for attention: adds biases, norms Q and K, rotates them by their token's position, and stores
    /// K and V in the cache of layer `layer`.
    pub fn prepare_heads(&mut self, layer: usize, steps: &HeadSteps<'_>) {
        let (n, d, half) = (self.tokens.len(), self.config.head_dim, self.config.rope.dim / 2);
        let (n_heads, n_kv_heads, group) = (self.config.n_heads, self.config.n_kv_heads, self.config.group());
        let (spans, kernels) = (self.spans, self.kernels);
        let (eps, region) = (self.config.norm_eps, self.region);
        let bias = |i: usize| steps.biases.map(|biases| biases[i].values(region));
        let [q_bias, k_bias, v_bias] = [bias(0), bias(1), bias(2)];
        let norm = |i: usize| steps.norms.map(|norms| norms[i].values(region));
        let [q_norm, k_norm] = [norm(0), norm(1)];
        let add_bias = |head: &mut [f32], bias: Option<&[f32]>, first: usize| {
            for (x, b) in head.iter_mut().zip(bias.into_iter().flat_map(|b| &b[first..])) {
                *x += b;
            }
        };
        let cache = self.kv.layer_mut(layer);
        let Buffers { q, k, v, rotations, lists, .. } = &mut *self.buffers;
        let Rotation { cos, sin, .. } = &rotations[cache.reach as usize];
        let (k, v) = (&**k, &**v);
        let turn = |head: &mut [f32], token: usize| {
            let (cos, sin) = (&cos[token * half..][..half], &sin[token * half..][..half]);
            match steps.pairing {
                Pairing::Neighbours => kernels.rope_pairs(&mut head[..2 * half], cos, sin),
                Pairing::Halves => kernels.rope_halves(&mut head[..2 * half], cos, sin),
            }
        };
        let turned =
            Grid::new(q, (n, n_heads * d, padded(n_heads * d)), (PANEL_ROWS, group * d)).in_parts(self.team.size());
        let width = padded(n_kv_heads * d);
        let kv_type = cache.kv_type;
        let (row_bytes, panel_bytes) = (kv_type.row_bytes(d), kv_type.panel_bytes(d));
        let half_bytes = PAGE_TOKENS * row_bytes;
        // K or V of one head and page at a time: tokens of one panel share cache lines.
        let (picks, writes) = (&lists.picks[cache.reach as usize], &lists.writes[cache.reach as usize]);
        let cached = Grid::picked(cache.bytes, cache.page_bytes, picks, half_bytes).in_parts(self.team.size());
        share(self.team, n, &|worker| {
            let (mut raw, mut ready) = ([0f32; HEAD_DIM_MAX], [0f32; HEAD_DIM_MAX]);
            let (raw, ready) = (&mut raw[..d], &mut ready[..d]);
            while let Some(mut block) = cached.next_of(worker) {
                let half = block.col0 / half_bytes;
                let (head, is_value) = (half / 2, half % 2 == 1);
                let write = writes[block.band];
                let (span, start) = (&spans[write.span as usize], write.index as usize * PAGE_TOKENS);
                let positions = span.position.max(start)..(span.position + span.n).min(start + PAGE_TOKENS);
                for at in positions {
                    let token = span.first + at - span.position;
                    let from = token * width + head * d;
                    let at = at - start;
                    let (mut x, bias) = if is_value { (&v[from..][..d], v_bias) } else { (&k[from..][..d], k_bias) };
                    if bias.is_some() {
                        raw.copy_from_slice(x);
                        add_bias(raw, bias, head * d);
                        x = raw;
                    }
                    if is_value {
                        kernels.store_value(kv_type, x, &mut block.row(0)[at * row_bytes..][..row_bytes]);
                    } else {
                        match k_norm {
                            Some(norm) => kernels.rms_norm(x, norm, eps, ready),
                            None => ready.copy_from_slice(x),
                        }
                        turn(ready, token);
                        let panel = &mut block.row(0)[at / PANEL_ROWS * panel_bytes..][..panel_bytes];
                        kernels.store_key(kv_type, ready, panel, at % PANEL_ROWS);
                    }
                }
            }
            while let Some(mut block) = turned.next_of(worker) {
                for t in 0..block.rows {
                    let (token, col0) = (block.row0 + t, block.col0);
                    for (h, head) in block.row(t).chunks_exact_mut(d).enumerate() {
                        add_bias(head, q_bias, col0 + h * d);
                        if let Some(norm) = q_norm {
                            kernels.rms_norm_in_place(head, norm, eps);
                        }
                        turn(head, token);
                    }
                }
            }
        });
    }
}
