//! Embeddings of tokens for single layers (Gemma 3n and 4): rows of a table in the file, and maps of the stream.

use std::f32::consts::FRAC_1_SQRT_2;

use super::buffers::Buffers;
use super::pass::ForwardPass;
use super::product::multiply;
use super::rows::{each_row, padded, share};
use crate::kernels::{Activation, ActivationLayout, Partition};
use crate::load::rows::RowError;
use crate::model::weights::{PerLayerEmbedding, PerLayerMaps};
use crate::quant::SUPER;

impl ForwardPass<'_, '_> {
    /// The embedding that every layer has of its own: `(norm(proj(x) / sqrt(n_embd)) + row * sqrt(width)) / sqrt(2)` with `x`
    /// the residual stream and `row` the token's of the table.
    ///
    /// # Errors
    /// A row that cannot be read.
    pub fn embed_per_layer(&mut self, own: &PerLayerEmbedding) -> Result<(), RowError> {
        let rows = self.tables.per_layer.as_ref().expect("the engine has the rows of a table in a file");
        if self.tokens.len() > 1 {
            self.tokens.iter().for_each(|&token| rows.prefetch(token as usize));
        }
        self.norm(&None, &own.proj.weight);
        let (n, tools, kernels) = (self.n_rows, self.tools(), self.kernels);
        let Buffers { acts, per_layer, workers, .. } = &mut *self.buffers;
        multiply(tools, workers, (acts, n), [(&own.proj, &mut **per_layer)], false);
        let (norm, factor) = (own.norm.of(self.region), (self.config.n_embd as f32).sqrt().recip());
        let (total, width) = (own.table.cols, own.norm.len);
        let partition = each_row(self.team, per_layer, (n, total, padded(total)));
        share(self.team, n, &|worker| {
            while let Some(mut block) = partition.next_for(worker) {
                for part in block.row(0).chunks_exact_mut(width) {
                    part.iter_mut().for_each(|x| *x *= factor);
                    kernels.norm_in_place(part, &norm);
                }
            }
        });
        // The records have been read, and hold some blocks of a row whatever its type.
        let (ty, buffer) = (own.table.ty, &mut *acts.bytes);
        let row_scale = (width as f32).sqrt();
        let at_once = buffer.len() / ty.block_bytes() * ty.block_len();
        let mut some = [0.0; SUPER];
        for (&token, out) in self.tokens.iter().zip(per_layer.chunks_exact_mut(padded(total))) {
            for (i, out) in out[..total].chunks_mut(at_once).enumerate() {
                let bytes = &mut buffer[..ty.row_bytes(out.len())];
                rows.read(token as usize, i * ty.row_bytes(at_once), bytes)?;
                for (out, bytes) in out.chunks_mut(SUPER).zip(bytes.chunks(ty.row_bytes(SUPER))) {
                    let row = &mut some[..out.len()];
                    ty.decode_row(bytes, row);
                    out.iter_mut().zip(row).for_each(|(x, row)| *x = (*x + *row * row_scale) * FRAC_1_SQRT_2);
                }
            }
        }
        Ok(())
    }

    /// As [`ForwardPass::keep_output_rows`], what the last layer has of its own.
    pub(super) fn keep_per_layer_rows(&mut self, tokens: &[usize]) {
        let total = self.config.n_layers() * self.config.n_embd_per_layer;
        for (row, &token) in tokens.iter().enumerate().filter(|_| total > 0) {
            self.buffers
                .per_layer
                .copy_within(token * padded(total)..token * padded(total) + total, row * padded(total));
        }
    }

    /// `norm(proj(gelu(gate(x)) * embedding))` with the embedding that layer `layer` has of its own, added to the residual
    /// stream `x`.
    pub fn add_per_layer(&mut self, layer: usize, maps: &PerLayerMaps) {
        self.norm(&None, &maps.gate.weight);
        let (n, tools, kernels) = (self.n_rows, self.tools(), self.kernels);
        let (width, total) = (maps.proj.weight.cols, self.config.n_layers() * self.config.n_embd_per_layer);
        let Buffers { acts, gate, per_layer, workers, .. } = &mut *self.buffers;
        multiply(tools, workers, (acts, n), [(&maps.gate, &mut **gate)], false);
        let (gate, own) = (&**gate, &per_layer[layer * width..]);
        let (layout, format) = (ActivationLayout::new(width), kernels.activation_format(maps.proj.weight.ty, n));
        let rows = |bytes, cols, block| Partition::new(bytes, (n, cols, layout.bytes()), (1, block));
        acts.write((kernels, self.team), (layout, format), rows, |(_, row), cols, out| {
            let own = &own[row * padded(total)..][cols.clone()];
            kernels.activate(Activation::Gelu, &gate[row * padded(width)..][cols], Some(own), out);
        });
        self.add_normed_product(&maps.proj, &maps.norm);
    }
}
