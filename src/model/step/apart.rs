//! Experts beside a dense part, each with norms of its own (Gemma 4).

use super::buffers::Buffers;
use super::pass::ForwardPass;
use super::rows::{each_row, padded, share};
use crate::model::weights::{ApartNorms, Linear, Norm};

impl ForwardPass<'_, '_> {
    /// The norm of the sum of what experts have come to and of the linear map of the activation records, which is what the
    /// dense part comes to, each normed, added to the residual stream.
    pub fn add_normed_sum(&mut self, map: &Linear, norms: &ApartNorms, post_norm: &Option<Norm>) {
        let (n, e, kernels) = (self.n_rows, self.config.n_embd, self.kernels);
        let [dense, experts] = [&norms.dense_post, &norms.experts_post].map(|norm| norm.of(self.region));
        self.hold_product(map);
        let Buffers { branch, apart, .. } = &mut *self.buffers;
        let apart = &**apart;
        let partition = each_row(self.team, branch, (n, e, padded(e)));
        share(self.team, n, &|worker| {
            while let Some(mut block) = partition.next_for(worker) {
                kernels.norm_in_place(block.row(0), &dense);
                kernels.add_norm(&apart[block.row0 * padded(e)..][..e], &experts, block.row(0));
            }
        });
        self.add_normed_held(post_norm);
    }
}
