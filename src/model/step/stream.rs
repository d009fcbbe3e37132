//! The residual stream: from the embedding through norms and what is added to it, to logits.

use std::ops::Range;

use super::buffers::Buffers;
use super::pass::{ForwardPass, OutputRows};
use super::product::multiply;
use super::rows::{each_row, padded, share};
use crate::kernels::{ActivationFormat, ActivationLayout, Partition};
use crate::load::rows::RowError;
use crate::model::weights::{Form, Linear, Norm, Weight, Weights};
use crate::quant::PANEL_ROWS;

impl ForwardPass<'_, '_> {
    /// Rows of the embedding table, scaled, into the residual stream.
    ///
    /// # Errors
    /// A row of a table in a file that cannot be read.
    pub fn embed(&mut self, weights: &Weights) -> Result<(), RowError> {
        match weights.embedding.form {
            Form::File => self.embed_from_file(&weights.embedding)?,
            _ => self.embed_from_memory(&weights.embedding),
        }
        if let Some(positions) = &weights.positions {
            self.add_positions(positions);
        }
        if let Some(kind) = &weights.token_kind {
            self.add_to_each(kind);
        }
        if let Some(norm) = &weights.embedding_norm {
            self.norm_stream(norm);
        }
        Ok(())
    }

    fn embed_from_memory(&mut self, table: &Weight) {
        let (n, e) = (self.tokens.len(), self.config.n_embd);
        let (tokens, data, ty) = (self.tokens, table.of(self.region), table.ty);
        let scale = self.config.embedding_scale;
        let partition = each_row(self.team, self.buffers.x, (n, e, padded(e)));
        share(self.team, n, &|worker| {
            while let Some(mut block) = partition.next_for(worker) {
                let token = tokens[block.row0] as usize;
                let out = block.row(0);
                match table.form {
                    Form::Panels => {
                        let panel_bytes = ty.panel_bytes(e);
                        let panel = &data[token / PANEL_ROWS * panel_bytes..][..panel_bytes];
                        ty.decode_panel_row(panel, token % PANEL_ROWS, out);
                    }
                    _ => ty.decode_row(&data[token * ty.row_bytes(e)..][..ty.row_bytes(e)], out),
                }
                if scale != 1.0 {
                    out.iter_mut().for_each(|x| *x *= scale);
                }
            }
        });
    }

    /// Adds what the model has learned of each token's position; the context is no longer than that.
    fn add_positions(&mut self, table: &Weight) {
        let (e, ty, rows) = (self.config.n_embd, table.ty, table.of(self.region));
        // A row of the branch, which layers have not begun to use.
        let row = &mut self.buffers.branch[..e];
        for slice in self.slices {
            for (i, x) in self.buffers.x[slice.first * padded(e)..].chunks_mut(padded(e)).take(slice.n).enumerate() {
                ty.decode_row(&rows[(slice.position + i) * ty.row_bytes(e)..][..ty.row_bytes(e)], row);
                x.iter_mut().zip(&*row).for_each(|(x, position)| *x += position);
            }
        }
    }

    /// Adds a vector to the stream of every token.
    fn add_to_each(&mut self, vector: &Weight) {
        let (n, e, vector) = (self.tokens.len(), self.config.n_embd, vector.values(self.region));
        for x in self.buffers.x.chunks_mut(padded(e)).take(n) {
            x.iter_mut().zip(vector).for_each(|(x, y)| *x += y);
        }
    }

    /// The norm of the residual stream, where it is.
    pub fn norm_stream(&mut self, norm: &Norm) {
        let (n, e, kernels) = (self.n_rows, self.config.n_embd, self.kernels);
        let norm = norm.of(self.region);
        let partition = each_row(self.team, self.buffers.x, (n, e, padded(e)));
        share(self.team, n, &|worker| {
            while let Some(mut block) = partition.next_for(worker) {
                kernels.norm_in_place(block.row(0), &norm);
            }
        });
    }

    fn embed_from_file(&mut self, table: &Weight) -> Result<(), RowError> {
        let rows = self.tables.embedding.as_ref().expect("the engine has the rows of a table in a file");
        let (e, ty, scale) = (self.config.n_embd, table.ty, self.config.embedding_scale);
        if self.tokens.len() > 1 {
            self.tokens.iter().for_each(|&token| rows.prefetch(token as usize));
        }
        // The records of activations are not in use yet, and hold some blocks of a row whatever its type.
        let buffer = &mut *self.buffers.acts.bytes;
        let blocks = buffer.len() / ty.block_bytes();
        for (&token, out) in self.tokens.iter().zip(self.buffers.x.chunks_exact_mut(padded(e))) {
            let pieces = out[..e].chunks_mut(blocks * ty.block_len());
            for (i, out) in pieces.enumerate() {
                let bytes = &mut buffer[..ty.row_bytes(out.len())];
                rows.read(token as usize, i * blocks * ty.block_bytes(), bytes)?;
                ty.decode_row(bytes, out);
            }
            if scale != 1.0 {
                out[..e].iter_mut().for_each(|x| *x *= scale);
            }
        }
        Ok(())
    }

    /// After the mixer of the last layer only output rows go on: what the mixer came to and the residual stream. The other
    /// tokens are in the cache, where they are needed. A pass has one row at least.
    pub fn keep_output_rows(&mut self, layer: usize) {
        let OutputRows::Tokens(tokens) = self.output_rows else { return };
        if layer + 1 < self.config.n_layers() {
            return;
        }
        let e = self.config.n_embd;
        for (row, &token) in tokens.iter().enumerate() {
            self.buffers.x.copy_within(token * padded(e)..token * padded(e) + e, row * padded(e));
        }
        self.keep_per_layer_rows(tokens);
        self.buffers.acts.keep(tokens);
        self.n_rows = tokens.len().max(1);
    }

    /// The norm of the residual stream, or the stream itself without one, into the activation records, which meet `next`
    /// first.
    pub fn norm(&mut self, norm: &Option<Norm>, next: &Weight) {
        let format = self.kernels.activation_format(next.ty, self.n_rows);
        self.norm_rows(norm.as_ref(), 0..self.n_rows, format, 1.0);
    }

    /// What the router of experts that are apart reads, into the activation records: the norm over the root of the width, the
    /// stream at length 1 but for the norm's weights.
    pub fn norm_for_router(&mut self, norm: &Norm, router: &Linear) {
        let format = self.kernels.activation_format(router.weight.ty, self.n_rows);
        self.norm_rows(Some(norm), 0..self.n_rows, format, (self.config.n_embd as f32).sqrt().recip());
    }

    fn norm_rows(&mut self, norm: Option<&Norm>, rows: Range<usize>, format: ActivationFormat, scale: f32) {
        let (e, n, first) = (self.config.n_embd, rows.len(), rows.start);
        let layout = ActivationLayout::new(e);
        let norm = norm.map(|norm| norm.of(self.region));
        let kernels = self.kernels;
        let Buffers { x, acts, .. } = &mut *self.buffers;
        let x = &**x;
        let partition = each_row(self.team, acts.writable(layout, format), (n, layout.bytes(), layout.bytes()));
        share(self.team, n, &|worker| {
            while let Some(mut block) = partition.next_for(worker) {
                let x = &x[(first + block.row0) * padded(e)..][..e];
                let out = layout.values_mut(block.row(0));
                match &norm {
                    Some(norm) => kernels.norm(x, norm, out),
                    None => out.copy_from_slice(x),
                }
                if scale != 1.0 {
                    out.iter_mut().for_each(|x| *x *= scale);
                }
                kernels.quantise(layout, format, block.row(0));
            }
        });
    }

    /// The norm of the activation records where they are, which hold f32 values: what a mixer has left, or activations.
    pub fn norm_records(&mut self, norm: &Option<Norm>) {
        let norm = norm.as_ref().expect("the architecture has norms of what its last matrices read").of(self.region);
        let (n, kernels, acts) = (self.n_rows, self.kernels, &mut self.buffers.acts);
        let layout = acts.layout();
        let records = acts.writable(layout, ActivationFormat::F32);
        let partition = each_row(self.team, records, (n, layout.bytes(), layout.bytes()));
        share(self.team, n, &|worker| {
            while let Some(mut block) = partition.next_for(worker) {
                kernels.norm_in_place(layout.values_mut(block.row(0)), &norm);
            }
        });
    }

    /// The linear map of the activation records, scaled as everything that layers add, added to the residual stream.
    pub fn add_product(&mut self, map: &Linear) {
        if self.config.residual_scale != 1.0 {
            self.hold_product(map);
            return self.add_held();
        }
        let (n, tools) = (self.n_rows, self.tools());
        let Buffers { x, acts, workers, .. } = &mut *self.buffers;
        multiply(tools, workers, (acts, n), [(map, &mut **x)], true);
    }

    /// The linear map of the activation records, held aside until [`ForwardPass::add_held`]: the residual stream stays as it
    /// was before.
    pub fn hold_product(&mut self, map: &Linear) {
        let (n, tools) = (self.n_rows, self.tools());
        let Buffers { branch, acts, workers, .. } = &mut *self.buffers;
        multiply(tools, workers, (acts, n), [(map, &mut **branch)], false);
    }

    /// Adds what is held aside to the residual stream, scaled as everything that layers add.
    pub fn add_held(&mut self) {
        let scale = self.config.residual_scale;
        self.add_each_held(|held, x| x.iter_mut().zip(held).for_each(|(x, held)| *x += scale * held));
    }

    /// The norm of the linear map of the activation records, added to the residual stream.
    pub fn add_normed_product(&mut self, map: &Linear, norm: &Option<Norm>) {
        self.hold_product(map);
        self.add_normed_held(norm);
    }

    /// The norm of what is held aside, added to the residual stream.
    pub fn add_normed_held(&mut self, norm: &Option<Norm>) {
        let norm = norm.as_ref().expect("the architecture has norms of what is added").of(self.region);
        let kernels = self.kernels;
        self.add_each_held(|held, x| kernels.add_norm(held, &norm, x));
    }

    fn add_each_held(&mut self, add: impl Fn(&[f32], &mut [f32]) + Sync) {
        let (n, e) = (self.n_rows, self.config.n_embd);
        let Buffers { x, branch, .. } = &mut *self.buffers;
        let branch = &**branch;
        let partition = each_row(self.team, x, (n, e, padded(e)));
        share(self.team, n, &|worker| {
            while let Some(mut block) = partition.next_for(worker) {
                add(&branch[block.row0 * padded(e)..][..e], block.row(0));
            }
        });
    }

    /// Multiplies the residual stream by a scale, if there is one.
    pub fn scale_stream(&mut self, scale: &Option<Weight>) {
        let Some(scale) = scale else { return };
        let (n, e, scale) = (self.n_rows, self.config.n_embd, scale.values(self.region)[0]);
        let partition = each_row(self.team, self.buffers.x, (n, e, padded(e)));
        share(self.team, n, &|worker| {
            while let Some(mut block) = partition.next_for(worker) {
                block.row(0).iter_mut().for_each(|x| *x *= scale);
            }
        });
    }

    /// Logits of some of the output rows: rows of `padded(n_vocab)` values of which `n_vocab` count.
    ///
    /// # Panics
    /// If more rows are asked for than the buffers were sized for, or than there are.
    pub fn logits(&mut self, (norm, output): (&Norm, &Linear), rows: Range<usize>) -> &mut [f32] {
        let (n, width) = (rows.len(), padded(output.weight.rows));
        assert!(n * width <= self.buffers.logits.len() && rows.end <= self.n_rows);
        let format = self.kernels.activation_format(output.weight.ty, n);
        self.norm_rows(Some(norm), rows, format, 1.0);
        let tools = self.tools();
        let Buffers { acts, logits, workers, .. } = &mut *self.buffers;
        multiply(tools, workers, (acts, n), [(output, &mut **logits)], false);
        let logits = &mut self.buffers.logits[..n * width];
        let (scale, cap) = (self.config.logit_scale, self.config.logit_cap);
        if scale != 1.0 || cap.is_some() {
            let partition = Partition::new(logits, (1, n * width, n * width), (1, 1024));
            self.team.run_dynamic(&|_| {
                while let Some(mut block) = partition.next() {
                    block.row(0).iter_mut().for_each(|x| {
                        *x *= scale;
                        if let Some(cap) = cap {
                            *x = cap * (*x / cap).tanh();
                        }
                    });
                }
            });
        }
        let logits = &mut self.buffers.logits[..n * width];
        for row in logits.chunks_exact_mut(width) {
            for &token in &self.config.suppressed {
                // Ids beyond the vocabulary mean nothing.
                if let Some(logit) = row[..output.weight.rows].get_mut(token as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        logits
    }

    /// Hidden states of some of the output rows, after the last norm: `n_embd` values each, in order. Where the last layer
    /// ends with a norm there is no other.
    ///
    /// # Panics
    /// If more rows are asked for than there are.
    pub fn hidden_states(&mut self, norm: &Norm, rows: Range<usize>, each: impl FnMut(&[f32])) {
        let (n, layout) = (rows.len(), ActivationLayout::new(self.config.n_embd));
        assert!(rows.end <= self.n_rows);
        let norm = (!self.config.ends_normed).then_some(norm);
        self.norm_rows(norm, rows, ActivationFormat::F32, 1.0);
        self.buffers.acts.bytes.chunks_exact(layout.bytes()).take(n).map(|record| layout.values(record)).for_each(each);
    }
}
