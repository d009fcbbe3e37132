//! Which part of a pass is where: pages that are written, and how attention is shared out.

use crate::kernels::{Window, key_ranges};
use crate::model::cache::{CachePlan, PAGE_TOKENS, POOLS_MAX};
use crate::model::config::Config;
use crate::model::sequence::{SequenceSlice, Sizes};

/// What a pass is made of, made anew for each without allocating.
pub(super) struct Lists {
    /// Of each pool the pages that the pass writes to, in rising order, and what is written there.
    pub picks: heapless::Vec<Vec<u32>, POOLS_MAX>,
    pub writes: heapless::Vec<Vec<Write>, POOLS_MAX>,
    /// Where the bands of tokens of attention end, the first begins at 0; and the sequence of each.
    pub cuts: Vec<u32>,
    pub bands: Vec<Band>,
    /// Sequences whose keys are shared out in ranges.
    pub ranged: Vec<Ranged>,
}

/// A page of a sequence, some positions of which a pass writes.
#[derive(Clone, Copy)]
pub(super) struct Write {
    pub page: u32,
    /// Which slice of the pass.
    pub slice: u32,
    /// Which page of its sequence.
    pub index: u32,
}

impl Write {
    /// The tokens whose positions it has, and where in the page each goes.
    pub(super) fn tokens(self, slices: &[SequenceSlice<'_>]) -> impl Iterator<Item = (usize, usize)> {
        let (slice, start) = (&slices[self.slice as usize], self.index as usize * PAGE_TOKENS);
        let (first, position) = (slice.first, slice.position);
        let positions = position.max(start)..(position + slice.n).min(start + PAGE_TOKENS);
        positions.map(move |at| (first + at - position, at - start))
    }
}

/// How the attention of a layer is shared out.
#[derive(Clone, Copy)]
pub(super) struct Shares {
    /// What is worked on by itself: KV heads, or blocks of query heads.
    pub heads: usize,
    /// Query heads of each.
    pub group: usize,
    /// Values of a query head's result.
    pub value_dim: usize,
    /// Positions that a token sees.
    pub window: Window,
    /// Most query rows of one call.
    pub rows_max: usize,
    /// Fewest keys of a range.
    pub keys_min: usize,
    /// f32 values of scratch of one call.
    pub scratch_len: usize,
}

/// Tokens of one slice that are worked on together, head by head.
#[derive(Clone, Copy)]
pub(super) struct Band {
    pub slice: usize,
    /// They are not: the sequence's keys are shared out.
    pub is_ranged: bool,
}

/// A slice whose sequence's keys are shared out.
#[derive(Clone, Copy)]
pub(super) struct Ranged {
    pub slice: usize,
    /// The number of its first task; it has as many as heads times ranges.
    pub first_task: usize,
    pub n_ranges: usize,
    pub range_len: usize,
}

impl Lists {
    pub(super) fn new(config: &Config, sizes: &Sizes) -> Lists {
        // A sequence begins and ends within a page.
        let n_writes = sizes.n_batch.div_ceil(PAGE_TOKENS) + 2 * sizes.sequences;
        let pools = CachePlan::new(config, sizes).pools.len();
        Lists {
            picks: (0..pools).map(|_| Vec::with_capacity(n_writes)).collect(),
            writes: (0..pools).map(|_| Vec::with_capacity(n_writes)).collect(),
            cuts: Vec::with_capacity(sizes.n_batch + 1),
            bands: Vec::with_capacity(sizes.n_batch),
            ranged: Vec::with_capacity(sizes.sequences),
        }
    }

    /// Which pages the slices write to.
    pub(super) fn list_writes(&mut self, slices: &[SequenceSlice<'_>]) {
        for (pool, (picks, writes)) in self.picks.iter_mut().zip(&mut self.writes).enumerate() {
            picks.clear();
            writes.clear();
            for (number, slice) in (0..).zip(slices) {
                for index in slice.page_range() {
                    writes.push(Write { page: slice.pages[pool][index], slice: number, index: index as u32 });
                }
            }
            writes.sort_unstable_by_key(|write| write.page);
            picks.extend(writes.iter().map(|write| write.page));
        }
    }

    /// How the attention of a layer is shared out. What becomes of a slice depends on nothing but itself and the team.
    pub(super) fn list_bands(
        &mut self,
        slices: &[SequenceSlice<'_>],
        &Shares { heads, group, window, rows_max, keys_min, .. }: &Shares,
        workers: usize,
    ) {
        self.cuts.clear();
        self.bands.clear();
        self.ranged.clear();
        self.cuts.push(0);
        let mut n_tasks = 0;
        for (number, &SequenceSlice { first, n, position, .. }) in slices.iter().enumerate() {
            let (n_rows, first_key) = (n * group, window.first(position) / PAGE_TOKENS * PAGE_TOKENS);
            let (n_ranges, range_len) = key_ranges(position + n - first_key, n_rows, keys_min);
            if n_rows <= rows_max && n_ranges > 1 {
                self.ranged.push(Ranged { slice: number, first_task: n_tasks, n_ranges, range_len });
                n_tasks += heads * n_ranges;
                self.cuts.push((first + n) as u32);
                self.bands.push(Band { slice: number, is_ranged: true });
                continue;
            }
            // As many rows at once as a call takes; half of them where that leaves too few blocks to share out evenly.
            let (fewest, most) = (n.div_ceil(rows_max / group), n.div_ceil((rows_max / 2 / group).max(1)));
            let band = n.div_ceil((4 * workers).div_ceil(heads).clamp(fewest, most));
            for start in (0..n).step_by(band) {
                self.cuts.push((first + n.min(start + band)) as u32);
                self.bands.push(Band { slice: number, is_ranged: false });
            }
        }
    }
}
