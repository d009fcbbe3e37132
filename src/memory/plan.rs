//! What a model needs, region by region, before anything is mapped.
//!
//! Regions are added up in bytes and rounded to whole pages once each, so the sum of the rows is the pages
//! taken, to the page. The plan knows neither models nor files: whoever needs memory states a region.

use super::error::MemoryError;
use super::facts::PoolState;
use super::page::{PageKind, RegionName};
use crate::sys::page_size::BASE_PAGE_BYTES;
use crate::units::round_up;

/// One row of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// What it is for.
    pub name: RegionName,
    /// Bytes asked for, not yet rounded to pages.
    pub bytes: u64,
}

/// Named regions over one kind of page. Every region exists; most start at zero bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    page: PageKind,
    /// Whether pages of 1 GiB come first.
    packed: bool,
    regions: [Region; RegionName::ALL.len()],
}

impl Plan {
    /// A plan without a byte in it.
    pub fn new(page: PageKind) -> Plan {
        Plan { page, packed: false, regions: RegionName::ALL.map(|name| Region { name, bytes: 0 }) }
    }

    /// A plan over 2 MiB pages, of which as many as the box has 1 GiB pages for are put together in those.
    pub fn packed() -> Plan {
        Plan { packed: true, ..Plan::new(PageKind::Huge2M) }
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
        Plan { page, packed: false, regions: self.regions }.checked()
    }

    /// Adds bytes to a region; rounding to pages comes later and once, so parts may be stated one by one.
    ///
    /// # Errors
    /// [`MemoryError::TooLarge`] where a sum leaves 64 bits (or the address space); the plan is unchanged then.
    pub fn add(&mut self, name: RegionName, bytes: u64) -> Result<(), MemoryError> {
        let mut grown = self.clone();
        let region = &mut grown.regions[name as usize];
        region.bytes = region.bytes.checked_add(bytes).ok_or(MemoryError::TooLarge { region: name, bytes })?;
        *self = grown.checked().map_err(|_| MemoryError::TooLarge { region: name, bytes })?;
        Ok(())
    }

    /// All sums are made with care here, once, so that the getters below can be plain.
    fn checked(self) -> Result<Plan, MemoryError> {
        let mut total: u64 = 0;
        for region in &self.regions {
            let rounded = round_up(region.bytes, self.page.bytes());
            total = rounded
                .and_then(|bytes| total.checked_add(bytes))
                .filter(|&bytes| isize::try_from(bytes).is_ok())
                .ok_or(MemoryError::TooLarge { region: region.name, bytes: region.bytes })?;
        }
        Ok(self)
    }

    /// The rows that have bytes, in the order of the arena.
    pub fn regions(&self) -> impl Iterator<Item = Region> + '_ {
        self.regions.iter().copied().filter(|region| region.bytes > 0)
    }

    /// Bytes asked for in one region.
    pub fn bytes(&self, name: RegionName) -> u64 {
        self.regions[name as usize].bytes
    }

    /// Whole pages of one region.
    pub fn pages(&self, name: RegionName) -> u64 {
        self.bytes(name).div_ceil(self.page.bytes())
    }

    /// Bytes of one region once rounded to pages.
    pub fn mapped_bytes(&self, name: RegionName) -> u64 {
        self.pages(name) * self.page.bytes()
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
