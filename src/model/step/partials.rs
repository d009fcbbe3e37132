//! What the attention of one KV head over ranges of keys has come to, and how ranges become one.

use crate::bytes;
use crate::kernels::merge;

/// What the attention of one KV head over ranges of keys has come to.
pub(super) struct Partials<'a> {
    /// Ranges that are done.
    pub(super) done: usize,
    /// `[n_ranges][rows][value_dim values, log_sum]`
    pub(super) rows: &'a mut [f32],
}

impl Partials<'_> {
    /// The result of one row over one range.
    pub(super) fn put(&mut self, row: usize, values: &[f32], log_sum: f32) {
        let part = &mut self.rows[row * (values.len() + 1)..][..values.len() + 1];
        part[..values.len()].copy_from_slice(values);
        part[values.len()] = log_sum;
    }

    /// The merged results of `n` tokens and the heads of a group into the values that the records of the tokens begin with,
    /// from head `first_head` on.
    pub(super) fn put_merged(
        &self,
        records: &mut [u8],
        stride: usize,
        (n, group, value_dim): (usize, usize, usize),
        first_head: usize,
    ) {
        let rows = self.rows.chunks_exact(value_dim + 1).take(n * group);
        for (row, part) in rows.enumerate() {
            let at = row / group * stride + (first_head + row % group) * value_dim * 4;
            bytes::cast_mut(&mut records[at..][..value_dim * 4]).copy_from_slice(&part[..value_dim]);
        }
    }

    /// One more range is done; the last one merges them.
    pub(super) fn finish_range(&mut self, n_ranges: usize, n_rows: usize, value_dim: usize) {
        self.done += 1;
        if self.done == n_ranges {
            self.done = 0;
            merge(&mut self.rows[..n_ranges * n_rows * (value_dim + 1)], n_rows, value_dim);
        }
    }
}
