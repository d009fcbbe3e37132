//! What models need, region by region, before anything is mapped.
//!
//! Regions are added up in bytes and rounded to whole pages once each, so the sum of the rows is the pages
//! taken, to the page. Models that live in one process have one plan, in which each has regions of its own. The plan knows
//! neither weights nor files: whoever needs memory states a region.

use super::error::MemoryError;
use super::facts::PoolState;
use super::page::{PageKind, RegionName};
use crate::sys::page_size::BASE_PAGE_BYTES;
use crate::units::round_up;

/// One row of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Which model's, from 0.
    pub model: usize,
    /// What it is for.
    pub name: RegionName,
    /// Bytes asked for, not yet rounded to pages.
    pub bytes: u64,
}

/// Bytes of each region of one model.
type Bytes = [u64; RegionName::ALL.len()];

/// Named regions over one kind of page. Every region exists; most start at zero bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    page: PageKind,
    /// Whether pages of 1 GiB come first.
    packed: bool,
    /// At least one.
    models: Vec<Bytes>,
}

impl Plan {
    /// A plan for one model, without a byte in it.
    pub fn new(page: PageKind) -> Plan {
        Plan { page, packed: false, models: vec![Bytes::default()] }
    }

    /// A plan over 2 MiB pages, of which as many as the box has 1 GiB pages for are put together in those.
    pub fn packed() -> Plan {
        Plan { packed: true, ..Plan::new(PageKind::Huge2M) }
    }

    /// The one plan of models whose plans are over the same pages, in this order.
    ///
    /// # Errors
    /// [`MemoryError::TooLarge`] where the sum leaves 64 bits (or the address space).
    ///
    /// # Panics
    /// If there is no plan, or one is over other pages.
    pub fn join<'p>(plans: impl IntoIterator<Item = &'p Plan>) -> Result<Plan, MemoryError> {
        let mut plans = plans.into_iter();
        let mut all = plans.next().expect("a plan of no model").clone();
        for plan in plans {
            assert_eq!((plan.page, plan.packed), (all.page, all.packed), "one plan is over one kind of page");
            all.models.extend_from_slice(&plan.models);
        }
        all.checked()
    }

    /// How many models it is for.
    pub fn n_models(&self) -> usize {
        self.models.len()
    }

    /// The part of one model.
    ///
    /// # Panics
    /// If there is no such model.
    #[must_use]
    pub fn of(&self, model: usize) -> Plan {
        Plan { models: vec![self.models[model]], ..*self }
    }

    /// Whether pages of 1 GiB come first.
    pub fn is_packed(&self) -> bool {
        self.packed
    }

    /// The page it is rounded to.
    pub fn page(&self) -> PageKind {
        self.page
    }

    /// The same regions over another kind of page.
    ///
    /// # Errors
    /// [`MemoryError::TooLarge`] where the rounded total is beyond 64 bits.
    pub fn with_page(&self, page: PageKind) -> Result<Plan, MemoryError> {
        Plan { page, packed: false, models: self.models.clone() }.checked()
    }

    /// Adds bytes to a region of the first model; rounding to pages comes later and once, so parts may be stated one by one.
    ///
    /// # Errors
    /// [`MemoryError::TooLarge`] where a sum leaves 64 bits (or the address space); the plan is unchanged then.
    pub fn add(&mut self, name: RegionName, bytes: u64) -> Result<(), MemoryError> {
        let mut grown = self.clone();
        let region = &mut grown.models[0][name as usize];
        *region = region.checked_add(bytes).ok_or(MemoryError::TooLarge { region: name, bytes })?;
        *self = grown.checked().map_err(|_| MemoryError::TooLarge { region: name, bytes })?;
        Ok(())
    }

    /// All sums are made with care here, once, so that the getters below can be plain.
    fn checked(self) -> Result<Plan, MemoryError> {
        let mut total: u64 = 0;
        for Region { name, bytes, .. } in self.regions() {
            let rounded = round_up(bytes, self.page.bytes());
            total = rounded
                .and_then(|bytes| total.checked_add(bytes))
                .filter(|&bytes| isize::try_from(bytes).is_ok())
                .ok_or(MemoryError::TooLarge { region: name, bytes })?;
        }
        Ok(self)
    }

    /// The rows that have bytes, in the order of the arena: model by model.
    pub fn regions(&self) -> impl Iterator<Item = Region> + '_ {
        let all =
            self.models.iter().enumerate().flat_map(|(model, bytes)| {
                RegionName::ALL.map(|name| Region { model, name, bytes: bytes[name as usize] })
            });
        all.filter(|region| region.bytes > 0)
    }

    /// Bytes asked for in one region, of all models.
    pub fn bytes(&self, name: RegionName) -> u64 {
        self.models.iter().map(|bytes| bytes[name as usize]).sum()
    }

    /// Whole pages of one region, of all models.
    pub fn pages(&self, name: RegionName) -> u64 {
        self.models.iter().map(|bytes| self.pages_of(bytes[name as usize])).sum()
    }

    /// Whole pages of so many bytes.
    pub fn pages_of(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.page.bytes())
    }

    /// Bytes of one region of one model once rounded to pages.
    ///
    /// # Panics
    /// If there is no such model.
    pub fn mapped_bytes(&self, model: usize, name: RegionName) -> u64 {
        self.pages_of(self.models[model][name as usize]) * self.page.bytes()
    }

    /// Pages of all regions.
    pub fn total_pages(&self) -> u64 {
        RegionName::ALL.iter().map(|&name| self.pages(name)).sum()
    }

    /// Bytes of all regions once rounded to pages.
    pub fn total_bytes(&self) -> u64 {
        self.total_pages() * self.page.bytes()
    }

    /// Pages missing in `pool`; 0 if the plan fits.
    pub fn shortfall(&self, pool: &PoolState) -> u64 {
        self.total_pages().saturating_sub(pool.available())
    }

    /// Bytes of page tables that huge pages save: one 8-byte entry for each 4 KiB.
    pub fn page_table_saving_bytes(&self) -> u64 {
        match self.page {
            PageKind::Base4K => 0,
            _ => self.total_bytes() / BASE_PAGE_BYTES as u64 * 8 - self.total_pages() * 8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_once_per_region() {
        let mut plan = Plan::new(PageKind::Huge2M);
        for _ in 0..3 {
            plan.add(RegionName::Weights, 1 << 20).unwrap();
        }
        plan.add(RegionName::Kv, 1).unwrap();
        plan.add(RegionName::Scratch, 2 << 20).unwrap();
        assert_eq!(plan.pages(RegionName::Weights), 2);
        assert_eq!(plan.pages(RegionName::Vocab), 0);
        assert_eq!(plan.total_pages(), 4);
        assert_eq!(plan.total_bytes(), 8 << 20);
        assert_eq!(plan.bytes(RegionName::Kv), 1);
        assert_eq!(plan.regions().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["weights", "kv", "scratch"]);
        assert_eq!(plan.with_page(PageKind::Huge1G).unwrap().total_pages(), 3);
        assert_eq!(plan.with_page(PageKind::Base4K).unwrap().total_pages(), 768 + 1 + 512);
    }

    #[test]
    fn of_several_models_each_rounds_its_own_regions() {
        let mut one = Plan::new(PageKind::Huge2M);
        one.add(RegionName::Weights, 1 << 20).unwrap();
        one.add(RegionName::Kv, 3 << 20).unwrap();
        let mut other = Plan::new(PageKind::Huge2M);
        other.add(RegionName::Weights, 1).unwrap();
        let all = Plan::join([&one, &other]).unwrap();
        assert_eq!((all.n_models(), all.total_pages()), (2, 3 + 1));
        assert_eq!((all.pages(RegionName::Weights), all.bytes(RegionName::Weights)), (2, (1 << 20) + 1));
        assert_eq!((all.mapped_bytes(0, RegionName::Kv), all.mapped_bytes(1, RegionName::Kv)), (4 << 20, 0));
        let rows: Vec<_> = all.regions().map(|region| (region.model, region.name.as_str())).collect();
        assert_eq!(rows, [(0, "weights"), (0, "kv"), (1, "weights")]);
        assert_eq!([all.of(0), all.of(1)], [one, other.clone()]);
        other.add(RegionName::Kv, isize::MAX as u64 - (8 << 20)).unwrap();
        assert!(Plan::join([&all, &other]).is_err());
    }

    #[test]
    fn sums_never_wrap() {
        let mut plan = Plan::new(PageKind::Huge1G);
        for bytes in [u64::MAX, i64::MAX as u64] {
            let refused = plan.add(RegionName::Kv, bytes).unwrap_err();
            assert!(matches!(refused, MemoryError::TooLarge { region: RegionName::Kv, .. }), "{refused}");
        }
        let half = (i64::MAX as u64) / 2;
        plan.add(RegionName::Kv, half).unwrap();
        let before = plan.clone();
        assert!(plan.add(RegionName::Weights, half).is_err());
        assert_eq!(plan, before);
    }

    #[test]
    fn the_pool_counts_what_can_really_be_had() {
        let mut plan = Plan::new(PageKind::Huge2M);
        plan.add(RegionName::Weights, 10 * (2 << 20)).unwrap();
        let mut pool =
            PoolState { page: PageKind::Huge2M, total: 20, free: 12, reserved: 3, surplus: 0, overcommit: 0 };
        assert_eq!(plan.shortfall(&pool), 1);
        pool.overcommit = 1;
        assert_eq!(plan.shortfall(&pool), 0);
        pool.surplus = 1;
        assert_eq!(plan.shortfall(&pool), 1);
    }
}
