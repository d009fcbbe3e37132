//! A long context in ranges of keys, which workers take one each, and how their results become one.

use super::queries::KEY_TILE;

/// Fewest keys of a range: about 20 us of one core's read bandwidth at 128 dimensions, ten times what handing out a
/// range costs.
pub const RANGE_KEYS_MIN: usize = 512;

/// Most ranges: with them even one KV head keeps 16 workers busy within 10 %.
const RANGES_MAX: usize = 32;

/// Most rows of results of one KV head that wait to be merged: bounds the scratch whatever the context.
pub const PARTIAL_ROWS_MAX: usize = 384;

const _: () = assert!(PARTIAL_ROWS_MAX / super::queries::QUERY_ROWS_MAX >= 2);

/// Into how many ranges of how many keys (a multiple of [`KEY_TILE`]) the attention of `n_rows` rows over `n_keys` keys
/// is cut, of `least` keys at least. Depends on nothing else, so that results are the same for any number of workers.
pub const fn key_ranges(n_keys: usize, n_rows: usize, least: usize) -> (usize, usize) {
    let fit = PARTIAL_ROWS_MAX / n_rows;
    let most = if fit < RANGES_MAX { fit } else { RANGES_MAX };
    if most < 2 {
        return (1, n_keys.next_multiple_of(KEY_TILE));
    }
    let share = n_keys.div_ceil(most);
    let len = if share < least { least } else { share }.next_multiple_of(KEY_TILE);
    (n_keys.div_ceil(len), len)
}

/// f32 values that hold the results of one KV head's ranges, of `least` keys at least, in a context of `ctx` positions, for
/// [`merge`].
pub const fn partials_len(ctx: usize, value_dim: usize, least: usize) -> usize {
    if ctx <= least { 0 } else { PARTIAL_ROWS_MAX * (value_dim + 1) }
}

/// Merges the results of key ranges, `[n_ranges][n_rows][value_dim values, log_sum]`, into those of the first range.
pub fn merge(parts: &mut [f32], n_rows: usize, value_dim: usize) {
    let width = value_dim + 1;
    let (merged, others) = parts.split_at_mut(n_rows * width);
    for (row, merged) in merged.chunks_exact_mut(width).enumerate() {
        let others = || others.chunks_exact(width).skip(row).step_by(n_rows);
        let (values, log_sum) = merged.split_at_mut(value_dim);
        let top = others().fold(log_sum[0], |top, part| top.max(part[value_dim]));
        let weight = (log_sum[0] - top).exp2();
        values.iter_mut().for_each(|x| *x *= weight);
        let mut total = weight;
        for part in others() {
            let weight = (part[value_dim] - top).exp2();
            values.iter_mut().zip(part).for_each(|(sum, x)| *sum += weight * x);
            total += weight;
        }
        values.iter_mut().for_each(|x| *x /= total);
        log_sum[0] = top + total.log2();
    }
}
