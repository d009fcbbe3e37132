//! Rows of a buffer, and who works on them.

use crate::kernels::{Partition, Team, row_stride};

/// Tokens up to which work on single rows is not worth waking the team.
const ALONE_TOKENS_MAX: usize = 2;

/// Values from row to row of a buffer of `n` values a row.
pub(super) fn padded(n: usize) -> usize {
    row_stride(n)
}

/// Runs `job`, which draws its work, on the team, or right here when there is too little to share.
pub(super) fn share(team: &dyn Team, n_tokens: usize, job: &(dyn Fn(usize) + Sync)) {
    if n_tokens <= ALONE_TOKENS_MAX { job(0) } else { team.run_dynamic(job) }
}

/// The rows `(n, columns, stride)` of `data`, one at a time and each worker its own stretch of them: what it made of a row in
/// one operation is in its caches for the next.
pub(super) fn each_row<'a, T>(
    team: &dyn Team,
    data: &'a mut [T],
    (n, cols, stride): (usize, usize, usize),
) -> Partition<'a, T> {
    Partition::new(data, (n, cols, stride), (1, cols)).in_parts(team.size())
}
