//! Pages of 1 GiB first, the rest in pages of 2 MiB: which region gets how many of which.
//!
//! Every region is its whole GiB in 1 GiB pages, as far as the pool has them, then 2 MiB pages up to its planned end. So
//! packing changes no region's size, wastes nothing, and no page is part of two regions.

use std::ops::Range;

use super::page::{PageKind, RegionName};
use super::plan::{Plan, Region};
use crate::sys::page_size::HugeSize;

const GIB: u64 = 1 << 30;

/// 2 MiB pages of a 1 GiB page.
const SMALL_OF_GIANT: u64 = GIB / (2 << 20);

/// How the pages of a plan are mixed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packing {
    /// 1 GiB pages of each region of each model; empty where there are none at all.
    giant: Vec<[u64; RegionName::ALL.len()]>,
}

impl Packing {
    /// The packing of `plan` with at most `available` pages of 1 GiB; the largest regions come first.
    pub fn new(plan: &Plan, available: u64) -> Packing {
        let mut order: Vec<_> = plan.regions().collect();
        let bytes = |region: &Region| plan.mapped_bytes(region.model, region.name);
        order.sort_by_key(|region| std::cmp::Reverse(bytes(region)));
        let mut packing = Packing { giant: vec![Default::default(); plan.n_models()] };
        let mut left = available;
        for region in order {
            let pages = (bytes(&region) / GIB).min(left);
            packing.giant[region.model][region.name as usize] = pages;
            left -= pages;
        }
        packing
    }

    /// That of several models, in this order.
    pub fn join<'p>(parts: impl IntoIterator<Item = &'p Packing>) -> Packing {
        Packing { giant: parts.into_iter().flat_map(|part| part.giant.iter().copied()).collect() }
    }

    /// The part of one model.
    #[must_use]
    pub fn of(&self, model: usize) -> Packing {
        Packing { giant: self.giant.get(model).copied().into_iter().collect() }
    }

    /// Pages of 1 GiB.
    pub fn giant_pages(&self) -> u64 {
        self.giant.iter().flatten().sum()
    }

    /// Pages of 2 MiB that `plan` takes beside them.
    pub fn small_pages(&self, plan: &Plan) -> u64 {
        plan.total_pages() - self.giant_pages() * SMALL_OF_GIANT
    }

    /// Where each region lies in a stretch of addresses that begins at a multiple of 1 GiB; its stretches of equal pages;
    /// and how long the whole is.
    pub(super) fn lay_out(&self, plan: &Plan) -> Layout {
        assert_eq!(plan.page(), PageKind::Huge2M, "packing is over plans of 2 MiB pages");
        let as_len = |bytes: u64| usize::try_from(bytes).expect("the plan's total fits an address");
        let mut next = 0usize;
        let mut segments = Vec::new();
        let ranges = self.giant.iter().enumerate().map(|(model, giant)| {
            RegionName::ALL.map(|name| {
                let giant_bytes = as_len(giant[name as usize] * GIB);
                if giant_bytes > 0 {
                    next = next.next_multiple_of(as_len(GIB));
                }
                let start = next;
                next += as_len(plan.mapped_bytes(model, name));
                let middle = start + giant_bytes;
                segments.extend([(start..middle, HugeSize::G1), (middle..next, HugeSize::M2)]);
                start..start + as_len(plan.of(model).bytes(name))
            })
        });
        let ranges = ranges.collect();
        segments.retain(|(range, _)| !range.is_empty());
        Layout { ranges, segments, len: next }
    }
}

/// What [`Packing::lay_out`] finds.
pub(super) struct Layout {
    /// Each region of each model, without the padding to its page.
    pub ranges: Vec<[Range<usize>; RegionName::ALL.len()]>,
    pub segments: Vec<(Range<usize>, HugeSize)>,
    pub len: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(bytes: [u64; 5]) -> Plan {
        let mut plan = Plan::new(PageKind::Huge2M);
        for (name, bytes) in RegionName::ALL.into_iter().zip(bytes) {
            plan.add(name, bytes).unwrap();
        }
        plan
    }

    #[test]
    fn models_share_the_giant_pages_and_none_reaches_into_another() {
        let plan = Plan::join([&plan([GIB, 1, 3 * GIB, 0, 0]), &plan([2 * GIB + 5, 0, 0, 0, 4096])]).unwrap();
        for (available, giant) in [(4, [[0, 0, 3, 0, 0], [1, 0, 0, 0, 0]]), (9, [[1, 0, 3, 0, 0], [2, 0, 0, 0, 0]])] {
            let packing = Packing::new(&plan, available);
            assert_eq!(packing.giant, giant);
            assert_eq!([packing.of(0).giant, packing.of(1).giant].concat(), giant);
            let all = packing.small_pages(&plan);
            assert_eq!(all, [0, 1].map(|i| packing.of(i).small_pages(&plan.of(i))).iter().sum::<u64>());
            let layout = packing.lay_out(&plan);
            let ends = layout.ranges.iter().flatten().fold(0, |end, range| {
                assert!(range.start >= end, "{:?}", layout.ranges);
                range.end
            });
            assert!(ends <= layout.len && layout.ranges[0][0].start == 0);
        }
    }

    #[test]
    fn giant_pages_go_to_the_largest_regions_and_nothing_is_wasted() {
        let plan = plan([5 * GIB + 1, 3 << 20, 2 * GIB, GIB - 1, 0]);
        for (available, giant) in [(0, [0; 5]), (1, [1, 0, 0, 0, 0]), (6, [5, 0, 1, 0, 0]), (99, [5, 0, 2, 1, 0])] {
            let packing = Packing::new(&plan, available);
            assert_eq!(packing.giant, [giant], "{available}");
            assert_eq!(packing.giant_pages() * 512 + packing.small_pages(&plan), plan.total_pages());
            let layout = packing.lay_out(&plan);
            let mut end = 0;
            for (range, size) in &layout.segments {
                assert!(range.start >= end && range.start.is_multiple_of(size.bytes()), "{range:?}");
                assert!(range.len().is_multiple_of(size.bytes()));
                end = range.end;
            }
            assert_eq!(end, layout.len);
            let of =
                |wanted| layout.segments.iter().filter(move |(_, size)| *size == wanted).map(|(r, _)| r.len() as u64);
            assert_eq!(of(HugeSize::G1).sum::<u64>(), packing.giant_pages() * GIB);
            assert_eq!(of(HugeSize::M2).sum::<u64>(), packing.small_pages(&plan) * (2 << 20));
        }
    }
}
