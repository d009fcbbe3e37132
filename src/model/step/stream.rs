//! The residual stream: from the embedding through norms and what is added to it, to logits.

use std::ops::Range;

use super::buffers::Buffers;
use super::pass::{ForwardPass, OutputRows};
use super::product::multiply;
use super::rows::{each_row, padded, share};
use crate::kernels::{ActivationLayout, Partition};
use crate::load::rows::RowError;
use crate::model::weights::{Form, Linear, Weight};
use crate::quant::PANEL_ROWS;

impl ForwardPass<'_, '_> {
    /// Rows of the embedding table, scaled, into the residual stream.
    ///
    /// # Errors
    /// A row of a table in a file that cannot be read.
    pub fn embed(&mut self, table: &Weight) -> Result<(), RowError> {
        if table.form == Form::File {
            return self.embed_from_file(table);
        }
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
        Ok(())
    }

    fn embed_from_file(&mut self, table: &Weight) -> Result<(), RowError> {
        let rows = self.rows.expect("the engine has the rows of a table in a file");
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
        self.buffers.acts.keep(tokens);
        self.n_rows = tokens.len().max(1);
    }

    /// RMSNorm of the residual stream, or the stream itself without a norm, into the activation records, which meet `next`
    /// first.
    pub fn norm(&mut self, norm: &Option<Weight>, next: &Weight) {
        self.norm_rows(norm.as_ref(), 0..self.n_rows, next);
    }

    fn norm_rows(&mut self, norm: Option<&Weight>, rows: Range<usize>, next: &Weight) {
        let (e, n, first) = (self.config.n_embd, rows.len(), rows.start);
        let format = self.kernels.activation_format(next.ty, n);
        let layout = ActivationLayout::new(e);
        let norm = norm.map(|norm| norm.values(self.region));
        let (kernels, eps) = (self.kernels, self.config.norm_eps);
        let Buffers { x, acts, .. } = &mut *self.buffers;
        let x = &**x;
        let partition = each_row(self.team, acts.writable(layout, format), (n, layout.bytes(), layout.bytes()));
        share(self.team, n, &|worker| {
            while let Some(mut block) = partition.next_for(worker) {
                let x = &x[(first + block.row0) * padded(e)..][..e];
                let out = layout.values_mut(block.row(0));
                match norm {
                    Some(norm) => kernels.rms_norm(x, norm, eps, out),
                    None => out.copy_from_slice(x),
                }
                kernels.quantise(layout, format, block.row(0));
            }
        });
    }

    /// The linear map of the activation records, added to the residual stream.
    pub fn add_product(&mut self, map: &Linear) {
        let (n, tools) = (self.n_rows, self.tools());
        let Buffers { x, acts, workers, .. } = &mut *self.buffers;
        multiply(tools, workers, (acts, n), [(map, &mut **x)], true);
    }

    /// The RMSNorm of the linear map of the activation records, added to the residual stream.
    pub fn add_normed_product(&mut self, map: &Linear, norm: &Option<Weight>) {
        let norm = norm.as_ref().expect("the architecture has norms of what is added");
        let (n, e, kernels, eps) = (self.n_rows, self.config.n_embd, self.kernels, self.config.norm_eps);
        let tools = self.tools();
        let Buffers { x, branch, acts, workers, .. } = &mut *self.buffers;
        multiply(tools, workers, (acts, n), [(map, &mut **branch)], false);
        let (branch, norm) = (&**branch, norm.values(self.region));
        let partition = each_row(self.team, x, (n, e, padded(e)));
        share(self.team, n, &|worker| {
            while let Some(mut block) = partition.next_for(worker) {
                let branch = &branch[block.row0 * padded(e)..][..e];
                kernels.add_rms_norm(branch, norm, eps, block.row(0));
            }
        });
    }

    /// Logits of some of the output rows: rows of `padded(n_vocab)` values of which `n_vocab` count.
    ///
    /// # Panics
    /// If more rows are asked for than the buffers were sized for, or than there are.
    pub fn logits(&mut self, (norm, output): (&Weight, &Linear), rows: Range<usize>) -> &mut [f32] {
        let (n, width) = (rows.len(), padded(output.weight.rows));
        assert!(n * width <= self.buffers.logits.len() && rows.end <= self.n_rows);
        self.norm_rows(Some(norm), rows, &output.weight);
        let tools = self.tools();
        let Buffers { acts, logits, workers, .. } = &mut *self.buffers;
        multiply(tools, workers, (acts, n), [(output, &mut **logits)], false);
        let logits = &mut self.buffers.logits[..n * width];
        if let Some(cap) = self.config.logit_cap {
            let partition = Partition::new(logits, (1, n * width, n * width), (1, 1024));
            self.team.run_dynamic(&|_| {
                while let Some(mut block) = partition.next() {
                    block.row(0).iter_mut().for_each(|x| *x = cap * (*x / cap).tanh());
                }
            });
        }
        &mut self.buffers.logits[..n * width]
    }

    /// Hidden states of some of the output rows, after the last norm: `n_embd` values each, in order.
    ///
    /// # Panics
    /// If more rows are asked for than there are.
    pub fn hidden_states(&mut self, norm: &Weight, rows: Range<usize>, each: impl FnMut(&[f32])) {
        let (n, layout) = (rows.len(), ActivationLayout::new(self.config.n_embd));
        assert!(rows.end <= self.n_rows);
        self.norm_rows(Some(norm), rows, norm);
        self.buffers.acts.bytes.chunks_exact(layout.bytes()).take(n).map(|record| layout.values(record)).for_each(each);
    }
}
