//! The memory behind a plan: one mapping, cut into the plan's regions.
//!
//! One mapping, not one per region or model: the kernel reserves the huge pages of a mapping all at once or not at
//! all, so of two processes racing for the last pages one gets everything and the other ENOMEM. Once it is there,
//! [`Arena::apart`] gives each model of the plan an arena of its own.
//!
//! [`Arena::open`] hands out all regions for writing (loading), the weights as [`Unsealed`]: [`Unsealed::seal`] makes them
//! read-only, for the CPU too, while the others stay in use.
//!
//! # Safety
//! Regions are disjoint ranges of one owned mapping (asserted when it is made), each start aligned to a page.
//! References to several of them at once are made from addresses, never by splitting a reference to the whole. Sealed
//! pages stay read-only: whoever opens or splits the arena again gets a `&mut` to weights whose first write is a SIGSEGV,
//! not a change that a shared reference could see.
#![allow(unsafe_code)]

use std::ops::{Deref, DerefMut, Range};
use std::os::fd::OwnedFd;
use std::ptr::NonNull;

use super::error::{MemoryError, NotPopulated};
use super::host::Host;
use super::packing::Packing;
use super::page::{PageKind, RegionName};
use super::plan::Plan;
use crate::sys::OsError;
use crate::sys::fill::Fill;
use crate::sys::map::{Mapping, can_populate, populate};
use crate::sys::memfd::{self, Sealed};
use crate::sys::support::Support;

/// Mapped, writable memory for every region of a plan.
#[derive(Debug)]
pub struct Arena {
    mapping: Mapping,
    /// One for each model, in their order; disjoint.
    models: Vec<Cuts>,
    pages: Pages,
    packing: Packing,
    kept: bool,
}

/// Where the regions of one model lie.
#[derive(Debug)]
struct Cuts {
    /// Each without the padding to its page; disjoint and in the order of `RegionName::ALL`.
    ranges: [Range<usize>; RegionName::ALL.len()],
    /// How long each is with the padding to its page.
    padded: [usize; RegionName::ALL.len()],
}

/// The pages an arena is made of, and whether they are there yet.
#[derive(Clone, Copy, Debug)]
pub struct Pages {
    kind: PageKind,
    total: u64,
    present: bool,
    /// Whether all of them are 2 MiB pages, small enough for their contents to be put together elsewhere.
    fillable: bool,
}

impl Pages {
    /// Pages of one kind.
    fn new(plan: &Plan, present: bool) -> Pages {
        let fillable = !present && !plan.is_packed() && plan.page() == PageKind::Huge2M;
        Pages { kind: plan.page(), total: plan.total_pages(), present, fillable }
    }

    /// What fills the pages of `region`, a part of the arena, that are not there yet; `None` where pages are not filled.
    pub fn filling(self, region: &mut [u8]) -> Option<UffdFill> {
        let fill = self.fillable.then(|| Fill::of(region, self.kind.bytes() as usize)).flatten();
        fill.map(|fill| UffdFill { fill, pages: self })
    }

    fn not_there(self, cause: OsError) -> NotPopulated {
        NotPopulated { need: self.total, page: self.kind, cause }
    }

    /// Brings the pages below `bytes`, a part of the arena, before they are written: several threads may do so, each for
    /// its own part. Nothing to do where all pages were there from the start, or are ordinary ones.
    ///
    /// # Errors
    /// [`NotPopulated`].
    pub fn populate(self, bytes: &mut [u8]) -> Result<(), NotPopulated> {
        if self.present {
            return Ok(());
        }
        // A page is at most 1 GiB.
        populate(bytes, self.kind.bytes() as usize).map_err(|cause| self.not_there(cause))
    }
}

/// Pages of a region that come with their contents, instead of being cleared first: see [`crate::sys::fill`].
#[derive(Debug)]
pub struct UffdFill {
    fill: Fill,
    pages: Pages,
}

impl UffdFill {
    /// As [`Fill::begin`].
    pub fn begin(&self) -> bool {
        self.fill.begin()
    }

    /// Bytes of a page.
    pub fn page_bytes(&self) -> usize {
        self.pages.kind.bytes() as usize
    }

    /// As [`Fill::fill`].
    ///
    /// # Errors
    /// [`NotPopulated`].
    pub fn fill(&self, places: &mut [&mut [u8]], page: &[u8]) -> Result<(), NotPopulated> {
        self.fill.fill(places, page).map_err(|cause| self.pages.not_there(cause))
    }

    /// Brings the pages below `bytes`, as [`Pages::populate`].
    ///
    /// # Errors
    /// [`NotPopulated`].
    pub fn populate(&self, bytes: &mut [u8]) -> Result<(), NotPopulated> {
        self.fill.populate(bytes).map_err(|cause| self.pages.not_there(cause))
    }
}

/// A region whose pages are set aside for it and come when they are needed: a start does not wait for them to be cleared.
/// Each is brought before it is touched, so what could be a SIGBUS is an error here too.
#[derive(Debug)]
pub struct Growing<'a> {
    bytes: &'a mut [u8],
    pages: Pages,
    /// Whether each page of the region is there.
    here: Vec<bool>,
}

impl<'a> Growing<'a> {
    /// A region of an arena of these pages.
    pub fn new(bytes: &'a mut [u8], pages: Pages) -> Growing<'a> {
        // A page is at most 1 GiB.
        let here = vec![pages.present; bytes.len().div_ceil(pages.kind.bytes() as usize)];
        Growing { bytes, pages, here }
    }

    /// Brings the pages below a part of the region that are not there yet. Neither allocates nor asks the kernel for
    /// anything where all are.
    ///
    /// # Errors
    /// [`NotPopulated`].
    ///
    /// # Panics
    /// If the part leaves the region.
    pub fn bring(&mut self, part: Range<usize>) -> Result<(), NotPopulated> {
        assert!(part.end <= self.bytes.len(), "{part:?} leaves a region of {} bytes", self.bytes.len());
        let page = self.pages.kind.bytes() as usize;
        let mut next = part.start / page;
        let last = if part.is_empty() { next } else { part.end.div_ceil(page) };
        while let Some(missing) = self.here[next..last].iter().position(|here| !here) {
            let first = next + missing;
            next = self.here[first..last].iter().position(|&here| here).map_or(last, |n| first + n);
            let end = self.bytes.len().min(next * page);
            self.pages.populate(&mut self.bytes[first * page..end])?;
            self.here[first..next].fill(true);
        }
        Ok(())
    }
}

/// Memory that is all there.
impl<'a> From<&'a mut [u8]> for Growing<'a> {
    fn from(bytes: &'a mut [u8]) -> Self {
        Growing::new(bytes, Pages { kind: PageKind::Base4K, total: 0, present: true, fillable: false })
    }
}

impl Deref for Growing<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

impl DerefMut for Growing<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.bytes
    }
}

/// All regions of an [`Arena`], each exactly as long as planned, zeroed at first and page-aligned.
#[derive(Debug)]
#[allow(missing_docs, reason = "documented at RegionName")]
pub struct Regions<'a> {
    pub weights: &'a mut [u8],
    pub vocab: &'a mut [u8],
    pub kv: &'a mut [u8],
    pub states: &'a mut [u8],
    pub scratch: &'a mut [u8],
}

/// All regions of an [`Arena`] while a model is being loaded.
#[derive(Debug)]
#[allow(missing_docs, reason = "documented at RegionName")]
pub struct OpenRegions<'a> {
    pub weights: Unsealed<'a>,
    pub vocab: &'a mut [u8],
    pub kv: &'a mut [u8],
    pub states: &'a mut [u8],
    pub scratch: &'a mut [u8],
}

/// The weights region before it is sealed.
#[derive(Debug)]
pub struct Unsealed<'a> {
    bytes: &'a mut [u8],
    /// Up to the next region: whole pages.
    padded_bytes: usize,
    for_good: bool,
}

impl<'a> Unsealed<'a> {
    /// Its bytes, for loading.
    pub fn bytes(&mut self) -> &mut [u8] {
        self.bytes
    }

    /// Makes the pages read-only: from here on a stray write is a SIGSEGV, not a wrong answer.
    ///
    /// # Errors
    /// [`MemoryError::Seal`].
    pub fn seal(self) -> Result<&'a [u8], MemoryError> {
        // SAFETY: only `Arena::open` makes this type: the pages up to the next region hold these bytes and padding,
        // live as long as 'a, and the exclusive borrow that could write to them ends here.
        unsafe { Mapping::protect_pages(NonNull::from(&mut *self.bytes).cast(), self.padded_bytes) }
            .map_err(MemoryError::Seal)?;
        if self.for_good {
            // SAFETY: as above, and the mapping knows that it stays.
            let sealed = unsafe { Mapping::seal_pages(NonNull::from(&mut *self.bytes).cast(), self.padded_bytes) };
            if let Support::Refused(e) = sealed.map_err(MemoryError::Seal)? {
                log::warn!(
                    "the weights are read-only but not sealed: {e}: a sandbox forbids it; allow it there (systemd: SystemCallFilter=mseal)"
                );
            }
        }
        Ok(self.bytes)
    }
}

impl Arena {
    /// Maps every page of `plan` on this box, after checking that it fits; nothing stays mapped on failure.
    /// Of ordinary memory `keep_free_bytes` must be left over.
    ///
    /// # Errors
    /// A [`MemoryError`] with need, found and the way out.
    pub fn map(plan: &Plan, keep_free_bytes: u64) -> Result<Arena, MemoryError> {
        Arena::map_on(&Host::default(), plan, keep_free_bytes)
    }

    /// As [`Arena::map`], but huge pages are only promised: [`Pages::populate`] must bring each before it is written. So
    /// several threads can clear pages, each right before it fills them. Before Linux 5.14 this is [`Arena::map`].
    ///
    /// # Errors
    /// As [`Arena::map`].
    pub fn reserve(plan: &Plan, keep_free_bytes: u64) -> Result<Arena, MemoryError> {
        Arena::make(&Host::default(), plan, keep_free_bytes, !can_populate())
    }

    /// As [`Arena::map`], with the state of the box read from `host`.
    ///
    /// # Errors
    /// As [`Arena::map`].
    pub fn map_on(host: &Host, plan: &Plan, keep_free_bytes: u64) -> Result<Arena, MemoryError> {
        Arena::make(host, plan, keep_free_bytes, true)
    }

    fn make(host: &Host, plan: &Plan, keep_free_bytes: u64, present: bool) -> Result<Arena, MemoryError> {
        check(host, plan, keep_free_bytes)?;
        let total_bytes = plan.total_bytes();
        let too_large = MemoryError::TooLarge { region: RegionName::Weights, bytes: total_bytes };
        let len = usize::try_from(total_bytes).map_err(|_| too_large)?;
        if plan.is_packed() && !present {
            return Arena::make_packed(host, plan);
        }
        let mapping = match plan.page().huge() {
            None => {
                let mapping = Mapping::ordinary(len).map_err(|cause| MemoryError::Map { bytes: total_bytes, cause })?;
                // Advice only: where it is not taken, the pages are small, which is what was asked for.
                mapping.advise_huge();
                mapping
            }
            Some(size) => match present {
                true => Mapping::huge(len, size),
                false => Mapping::huge_reserved(len, size),
            }
            .map_err(|cause| not_mapped(host, plan, cause))?,
        };
        let present = present || plan.page() == PageKind::Base4K;
        let pages = Pages::new(plan, present);
        let models = cuts(plan, lay_out(plan, mapping.len()));
        Ok(Arena { models, mapping, pages, packing: Packing::default(), kept: false })
    }

    /// As many 1 GiB pages as the pool has for it, the rest in 2 MiB pages.
    fn make_packed(host: &Host, plan: &Plan) -> Result<Arena, MemoryError> {
        let packing = host.packing(plan);
        let layout = packing.lay_out(plan);
        let mapping =
            Mapping::huge_packed(layout.len, &layout.segments).map_err(|cause| not_mapped(host, plan, cause))?;
        let pages = Pages::new(plan, false);
        Ok(Arena { mapping, models: cuts(plan, layout.ranges), pages, packing, kept: false })
    }

    /// An arena for each model of the plan, in its order: each owns its part of the mapping.
    pub fn apart(self) -> Vec<Arena> {
        let Arena { mut mapping, models, pages, packing, kept } = self;
        let cut_off = models.into_iter().enumerate().rev().map(|(model, Cuts { ranges, padded })| {
            let start = ranges[0].start;
            let ranges = ranges.map(|range| range.start - start..range.end - start);
            let (mapping, packing) = (mapping.split_off(start), packing.of(model));
            Arena { mapping, models: vec![Cuts { ranges, padded }], pages, packing, kept }
        });
        let mut parts: Vec<_> = cut_off.collect();
        parts.reverse();
        parts
    }

    /// The page the arena is made of.
    pub fn page(&self) -> PageKind {
        self.pages.kind
    }

    /// Which of its regions lie in pages of 1 GiB.
    pub fn packing(&self) -> &Packing {
        &self.packing
    }

    /// Spreads the pages that are still to come over these NUMA nodes; nothing to do for none. Where a sandbox forbids that, it
    /// is said, and the pages lie where they come.
    ///
    /// # Errors
    /// [`MemoryError::Numa`].
    pub fn interleave(&self, nodes: &[u32]) -> Result<(), MemoryError> {
        interleave(&self.mapping, nodes)
    }

    /// Its pages, to be populated after [`Arena::reserve`].
    pub fn pages(&self) -> Pages {
        self.pages
    }

    /// Takes back the advice to use transparent huge pages, for measuring without them; before the first touch.
    pub fn advise_small(&self) {
        // Only advice, as in `map_on`: a kernel without transparent huge pages refuses it and has small pages anyway.
        self.mapping.advise_small();
    }

    /// Bytes mapped, padding included: the plan's total.
    pub fn mapped_bytes(&self) -> u64 {
        self.mapping.len() as u64
    }

    /// All regions at once, for writing.
    ///
    /// # Panics
    /// If it is that of several models, which are to be taken [apart](Arena::apart).
    pub fn split(&mut self) -> Regions<'_> {
        // SAFETY: the result borrows the arena exclusively, and every part is used once.
        let [weights, vocab, kv, states, scratch] = self.parts().map(|part| unsafe { exclusive(part) });
        Regions { weights, vocab, kv, states, scratch }
    }

    /// All regions at once, with weights that can be sealed on their own while the others stay in use.
    ///
    /// # Panics
    /// As [`Arena::split`].
    pub fn open(&mut self) -> OpenRegions<'_> {
        let for_good = self.kept;
        let padded_bytes = self.models[0].padded[RegionName::Weights as usize];
        let Regions { weights, vocab, kv, states, scratch } = self.split();
        OpenRegions { weights: Unsealed { bytes: weights, padded_bytes, for_good }, vocab, kv, states, scratch }
    }

    /// Makes the arena stay mapped until the process ends, and its weights, once sealed, unchangeable until then, by
    /// whatever goes wrong (`mseal`, where the kernel has it).
    pub fn keep(&mut self) {
        self.mapping.keep();
        self.kept = true;
    }

    /// Each region once, as address and length. Taking the arena exclusively is what makes it sound to write there.
    fn parts(&mut self) -> [(NonNull<u8>, usize); RegionName::ALL.len()] {
        assert_eq!(self.models.len(), 1, "an arena of several models is taken apart first");
        self.models[0].ranges.each_ref().map(|range| self.mapping.part(range.clone()))
    }
}

/// Why huge pages were not to be had.
fn not_mapped(host: &Host, plan: &Plan, cause: OsError) -> MemoryError {
    let need = plan.total_pages();
    match host.pool(plan.page()) {
        None => host.no_pool(plan.page()),
        // A pool that has grown back since has lost a race all the same: its state says who has the pages.
        Some(pool) if cause.call == "mmap" && cause.is_out_of_memory() => MemoryError::PoolShort { need, pool },
        Some(_) if cause.call == "mmap" => MemoryError::Map { bytes: plan.total_bytes(), cause },
        Some(_) => NotPopulated { need, page: plan.page(), cause }.into(),
    }
}

/// The weights of a plan in memory with a descriptor, for other processes to map once it is sealed.
#[derive(Debug)]
pub struct Shared {
    fd: OwnedFd,
    mapping: Mapping,
    pages: Pages,
}

impl Shared {
    /// Sets the pages of `plan` aside, after checking that it fits; [`Pages::populate`] must bring each before it is written.
    ///
    /// # Errors
    /// As [`Arena::map`].
    pub fn reserve(plan: &Plan, keep_free_bytes: u64) -> Result<Shared, MemoryError> {
        let host = Host::default();
        check(&host, plan, keep_free_bytes)?;
        let map_failed = |cause| match plan.page() {
            PageKind::Base4K => MemoryError::Map { bytes: plan.total_bytes(), cause },
            _ => not_mapped(&host, plan, cause),
        };
        let fd = memfd::create("brim-weights", plan.total_bytes(), plan.page().huge()).map_err(map_failed)?;
        let too_large = |_| MemoryError::TooLarge { region: RegionName::Weights, bytes: plan.total_bytes() };
        let len = usize::try_from(plan.total_bytes()).map_err(too_large)?;
        let present = plan.page() == PageKind::Base4K || !can_populate();
        let mapping = match plan.page() != PageKind::Base4K && present {
            true => Mapping::shared_present(&fd, len),
            false => Mapping::shared(&fd, len),
        };
        let pages = Pages::new(plan, present);
        Ok(Shared { fd, mapping: mapping.map_err(map_failed)?, pages })
    }

    /// As [`Arena::interleave`].
    ///
    /// # Errors
    /// As [`Arena::interleave`].
    pub fn interleave(&self, nodes: &[u32]) -> Result<(), MemoryError> {
        interleave(&self.mapping, nodes)
    }

    /// Its pages.
    pub fn pages(&self) -> Pages {
        self.pages
    }

    /// Its bytes, for loading.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.mapping.bytes_mut()
    }

    /// Seals the memory against every change.
    ///
    /// # Errors
    /// [`MemoryError::Seal`].
    pub fn seal(self) -> Result<Sealed, MemoryError> {
        let Shared { fd, mapping, .. } = self;
        // Nothing can be sealed while it is mapped for writing.
        drop(mapping);
        Sealed::seal(fd).map_err(MemoryError::Seal)
    }
}

fn interleave(mapping: &Mapping, nodes: &[u32]) -> Result<(), MemoryError> {
    if nodes.is_empty() {
        return Ok(());
    }
    match mapping.interleave(nodes) {
        Err(e) if e.is_unavailable() => {
            log::warn!("the pages are not spread over the NUMA nodes: {e}: a sandbox forbids it; allow mbind there");
            Ok(())
        }
        tried => tried.map_err(MemoryError::Numa),
    }
}

/// # Safety
/// `part` came from [`Arena::parts`] of an arena that is borrowed exclusively for `'a`; each part is used once.
unsafe fn exclusive<'a>((start, len): (NonNull<u8>, usize)) -> &'a mut [u8] {
    // SAFETY: the part lies in the mapping, whose bytes the kernel zeroed; parts are disjoint, and the caller
    // promises that this one is reached through nothing else for 'a.
    unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), len) }
}

/// Whether `plan` fits this box right now. [`Arena::map`] asks it; `plan` prints it.
///
/// # Errors
/// The [`MemoryError`] that mapping would end in, as far as it can be known without mapping.
pub fn check(host: &Host, plan: &Plan, keep_free_bytes: u64) -> Result<(), MemoryError> {
    let need_bytes = plan.total_bytes();
    let page = plan.page();
    if let Some(what) = host.not_mounted(page) {
        return Err(MemoryError::NotMounted { what });
    }
    let available_bytes = host.memory_available_bytes();
    if page != PageKind::Base4K {
        let pool = host.pool(page).ok_or_else(|| host.no_pool(page))?;
        let need = host.packing(plan).small_pages(plan);
        if need > pool.available() {
            return Err(MemoryError::PoolShort { need, pool });
        }
        check_cgroup(host, plan)?;
        // The pool is not part of what is available, so only the reserve itself has to be there.
        return match keep_free_bytes > available_bytes {
            true => Err(MemoryError::BoxShort { need_bytes: 0, available_bytes, keep_free_bytes }),
            false => Ok(()),
        };
    }
    if need_bytes.saturating_add(keep_free_bytes) > available_bytes {
        return Err(MemoryError::BoxShort { need_bytes, available_bytes, keep_free_bytes });
    }
    check_cgroup(host, plan)
}

/// Whether the cgroups above this process leave room for `plan`.
fn check_cgroup(host: &Host, plan: &Plan) -> Result<(), MemoryError> {
    let giant_bytes = host.packing(plan).giant_pages() * PageKind::Huge1G.bytes();
    let rest_bytes = plan.total_bytes() - giant_bytes;
    for (page, need_bytes) in [(plan.page(), rest_bytes), (PageKind::Huge1G, giant_bytes)] {
        let (what, limit) = match page {
            PageKind::Base4K => ("memory", host.cgroup_memory()),
            PageKind::Huge2M => ("hugetlb.2MB", host.cgroup_hugetlb(page)),
            PageKind::Huge1G => ("hugetlb.1GB", host.cgroup_hugetlb(page)),
        };
        if let Some(limit) = limit.filter(|limit| limit.available_bytes() < need_bytes) {
            let available_bytes = limit.available_bytes();
            let file = limit.file.display().to_string();
            return Err(MemoryError::CgroupShort { what, need_bytes, available_bytes, file });
        }
    }
    Ok(())
}

/// As [`check`]; with `may_grow` a pool that is short may be made larger out of ordinary memory.
///
/// # Errors
/// As [`check`].
pub fn check_growing(host: &Host, plan: &Plan, keep_free_bytes: u64, may_grow: bool) -> Result<(), MemoryError> {
    match check(host, plan, keep_free_bytes) {
        Err(short @ MemoryError::PoolShort { need, pool }) if may_grow => {
            let missing_bytes = need.saturating_sub(pool.available()).saturating_mul(pool.page.bytes());
            let available_bytes = host.memory_available_bytes().saturating_sub(keep_free_bytes);
            if missing_bytes <= available_bytes { check_cgroup(host, plan) } else { Err(short) }
        }
        verdict => verdict,
    }
}

/// Cuts `len` mapped bytes into the regions of `plan`.
fn lay_out(plan: &Plan, len: usize) -> Vec<[Range<usize>; RegionName::ALL.len()]> {
    let as_len = |bytes: u64| usize::try_from(bytes).expect("the plan's total fits an address");
    let mut next = 0;
    let models = (0..plan.n_models()).map(|model| {
        let of_model = plan.of(model);
        RegionName::ALL.map(|name| {
            let start = next;
            next += as_len(plan.mapped_bytes(model, name));
            start..start + as_len(of_model.bytes(name))
        })
    });
    let models: Vec<_> = models.collect();
    assert_eq!(next, len, "the regions fill the mapping");
    let starts = models.iter().flatten().skip(1).map(|range| range.start).chain([len]);
    assert!(models.iter().flatten().zip(starts).all(|(range, next)| range.end <= next), "the regions are disjoint");
    models
}

fn cuts(plan: &Plan, ranges: Vec<[Range<usize>; RegionName::ALL.len()]>) -> Vec<Cuts> {
    let padded = |model| RegionName::ALL.map(|name| plan.mapped_bytes(model, name) as usize);
    ranges.into_iter().enumerate().map(|(model, ranges)| Cuts { ranges, padded: padded(model) }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::host::tests::Fake;
    use super::*;

    fn plan(bytes: [u64; 5]) -> Plan {
        let mut plan = Plan::new(PageKind::Base4K);
        for (name, bytes) in RegionName::ALL.into_iter().zip(bytes) {
            plan.add(name, bytes).unwrap();
        }
        plan
    }

    #[test]
    fn regions_are_exact_aligned_and_disjoint() {
        let plan = plan([10_000, 0, 4096, 5, 1]);
        let mut arena = Arena::map(&plan, 0).unwrap();
        assert_eq!(arena.mapped_bytes(), plan.total_bytes());
        let regions = arena.split();
        let all = [regions.weights, regions.vocab, regions.kv, regions.states, regions.scratch];
        assert_eq!(all.each_ref().map(|r| r.len()), [10_000, 0, 4096, 5, 1]);
        assert!(all.iter().all(|r| r.as_ptr().addr().is_multiple_of(4096)));
        assert!(all.iter().all(|r| r.iter().all(|&byte| byte == 0)));
        for (fill, region) in (1..).zip(all) {
            region.fill(fill);
        }
        let regions = arena.open();
        let weights = regions.weights.seal().unwrap();
        assert!(weights.len() == 10_000 && weights.iter().all(|&byte| byte == 1));
        assert!(regions.kv.iter().all(|&byte| byte == 3));
        assert_eq!((regions.states[4], regions.vocab.len()), (4, 0));
        regions.kv[0] = 9;
    }

    #[test]
    fn several_models_lie_in_one_mapping_and_each_goes_for_itself() {
        let plans = [plan([10_000, 0, 4096, 5, 1]), plan([0, 7, 0, 0, 9000]), plan([1, 1, 1, 1, 1])];
        let joint = Plan::join(&plans).unwrap();
        let arena = Arena::map(&joint, 0).unwrap();
        let (start, bytes) = (arena.mapping.start().addr().get(), arena.mapped_bytes());
        assert_eq!(bytes, joint.total_bytes());
        let mut parts = arena.apart();
        let mut end = start;
        for (part, plan) in parts.iter().zip(&plans) {
            assert_eq!((part.mapping.start().addr().get(), part.mapped_bytes()), (end, plan.total_bytes()));
            end += part.mapping.len();
        }
        assert_eq!((end - start) as u64, bytes);
        let mut last = parts.pop().unwrap();
        // Each is given back alone, and none of the others changes.
        last.split().weights.fill(3);
        parts[1].split().scratch.fill(2);
        drop(parts.remove(0));
        assert!(parts[0].split().scratch.iter().all(|&byte| byte == 2));
        assert_eq!(last.open().weights.seal().unwrap(), [3]);
    }

    #[test]
    fn an_empty_plan_maps() {
        let mut arena = Arena::map(&plan([0; 5]), 0).unwrap();
        assert!(arena.open().weights.seal().unwrap().is_empty());
    }

    #[test]
    fn a_box_too_small_is_known_before_mapping() {
        let big = plan([1 << 50, 0, 0, 0, 0]);
        assert!(matches!(Arena::map(&big, 0), Err(MemoryError::BoxShort { need_bytes, .. }) if need_bytes == 1 << 50));
        let small = plan([4096, 0, 0, 0, 0]);
        let refused = Arena::map(&small, 1 << 50).unwrap_err().to_string();
        assert!(refused.contains("memory.keep_free_mib"), "{refused}");
    }

    #[test]
    fn a_short_pool_is_known_before_mapping() {
        let huge = plan([1 << 50, 0, 0, 0, 0]).with_page(PageKind::Huge2M).unwrap();
        match Arena::map(&huge, 0) {
            Err(MemoryError::PoolShort { need, .. }) => assert_eq!(need, 1 << 29),
            Err(MemoryError::NoSuchPages { .. }) => println!("skipped: this kernel has no 2 MiB pages"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_not_mounted_is_named() {
        let small = plan([1, 0, 0, 0, 0]);
        let huge = plan([1, 0, 0, 0, 0]).with_page(PageKind::Huge2M).unwrap();
        let said = |host: &Host, plan: &Plan| Arena::map_on(host, plan, 0).unwrap_err().to_string();
        for plan in [&small, &huge] {
            assert!(said(&Host::at("/nonexistent"), plan).contains("/proc is not mounted"));
        }
        let meminfo = ("/proc/meminfo", "MemTotal: 9000000 kB\nMemAvailable: 9000000 kB");
        let without = Fake::new("no-sys", &[meminfo]);
        assert!(said(&without.host(), &huge).contains("`mount -t sysfs sysfs /sys`"));
        assert!(Arena::map_on(&without.host(), &small, 0).is_ok());
        let with = Fake::new("with-sys", &[meminfo, ("/sys/kernel/mm/transparent_hugepage/enabled", "never")]);
        assert!(matches!(Arena::map_on(&with.host(), &huge, 0), Err(MemoryError::NoSuchPages { .. })));
    }
}
