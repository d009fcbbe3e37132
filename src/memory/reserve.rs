//! Growing the pool of huge pages by exactly what a plan is short of, and giving that back.
//!
//! Once the plan is mapped, the pool's size is set back to what it was. The kernel then counts the added pages as surplus:
//! they stay with the mapping that has them, and go back to ordinary memory when it ends, however it ends; even after
//! SIGKILL nothing is left behind (kernel: Documentation/admin-guide/mm/hugetlbpage.rst, surplus pages).

use std::fs::File;
use std::path::PathBuf;

use super::error::MemoryError;
use super::facts::GiveBack;
use super::give_back::HvoOn;
use super::host::{Host, write_number};
use super::page::PageKind;
use crate::sys::file;

/// How often the kernel is asked for what is missing, memory being compacted in between.
const TRIES: u32 = 4;

/// A pool that was made larger; made smaller again when this is dropped.
#[derive(Debug)]
pub struct Grown {
    /// What was added, by the file that holds the number: that of the pool, or those of nodes.
    added: Vec<(PathBuf, u64)>,
    /// HVO, where it was asked for.
    hvo: Option<HvoOn>,
    /// Other brims wait meanwhile.
    _lock: Option<File>,
}

impl Grown {
    /// Whether [`Grown::make`] would be refused because the kernel is known to lose pages that are given back with HVO on.
    ///
    /// # Errors
    /// [`MemoryError::Lost`].
    pub fn check(host: &Host, page: PageKind, need: u64, hvo: bool) -> Result<(), MemoryError> {
        match (host.pool(page), host.give_back()) {
            (Some(pool), GiveBack::Breaks(why)) if need > pool.available() && has_hvo(host, hvo) => {
                Err(MemoryError::Lost { need, pool, why })
            }
            _ => Ok(()),
        }
    }

    /// Makes room for `need` pages; with `hvo` switches HVO on before. With HVO on it first sees to it that the kernel gets
    /// pages back whole: [`GiveBack`].
    ///
    /// # Errors
    /// [`MemoryError::NotReserved`] with what the kernel could find, [`MemoryError::Lost`] where what is given back would be
    /// lost; everything is as before then.
    pub fn make(host: &Host, page: PageKind, need: u64, hvo: bool) -> Result<Grown, MemoryError> {
        let pool = host.pool(page).ok_or_else(|| host.no_pool(page))?;
        let mut grown = Grown { added: Vec::new(), hvo: None, _lock: None };
        if need <= pool.available() {
            return Ok(grown);
        }
        let failed = |cause: String| MemoryError::NotReserved { need, pool, cause };
        grown._lock = host.lock_pools(true).map_err(failed)?;
        let mut gives_back = match has_hvo(host, hvo) {
            true => host.give_back(),
            false => GiveBack::Works,
        };
        for round in 0..TRIES {
            if let GiveBack::Breaks(why) = gives_back {
                return Err(MemoryError::Lost { need, pool, why });
            }
            let missing = need.saturating_sub(host.pool(page).map_or(0, |pool| pool.available()));
            if missing == 0 {
                return Ok(grown);
            }
            if hvo && grown.hvo.is_none() {
                grown.hvo = Some(HvoOn::switch(host).map_err(failed)?);
            }
            if round > 0 {
                // Advice: where it is not taken, the next try finds what the last one did.
                let _ = host.write("/proc/sys/vm/compact_memory", 1);
            }
            if gives_back == GiveBack::Untried {
                gives_back = host.try_one(page).map_err(failed)?;
            }
            if gives_back == GiveBack::Works {
                for (file, pages) in host.room_for(page, missing) {
                    grown.add(file, pages).map_err(failed)?;
                }
            }
        }
        let found = host.pool(page).map_or(0, |pool| pool.available());
        match found >= need {
            true => Ok(grown),
            false => Err(failed(format!("the kernel found {found} of them; memory is too fragmented or too full"))),
        }
    }

    fn add(&mut self, file: PathBuf, pages: u64) -> Result<(), String> {
        let read = |file: &PathBuf| file::number(file).ok_or(format!("{} cannot be read", file.display()));
        let before = read(&file)?;
        write_number(&file, before + pages)?;
        let added = read(&file)?.saturating_sub(before);
        self.added.push((file, added));
        Ok(())
    }

    /// Pages that were added.
    pub fn pages(&self) -> u64 {
        self.added.iter().map(|(_, pages)| pages).sum()
    }

    /// Gives the added pages to the mapping that has taken them: from here on they go when it does.
    pub fn hand_over(self) {
        drop(self);
    }

    fn give_back(&mut self) -> Result<(), String> {
        while let Some((file, pages)) = self.added.last() {
            let now = file::number(file).ok_or(format!("{} cannot be read", file.display()))?;
            write_number(file, now.saturating_sub(*pages))?;
            self.added.pop();
        }
        Ok(())
    }
}

/// Whether pages that are added to a pool now have HVO, or will once brim has switched it on.
fn has_hvo(host: &Host, switch_on: bool) -> bool {
    let hvo = host.hvo();
    hvo.enabled || (switch_on && hvo.available)
}

impl Drop for Grown {
    fn drop(&mut self) {
        if let Err(why) = self.give_back() {
            log::warn!("the huge-page pool stays {} pages larger than it was: {why}", self.pages());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::host::tests::Fake;
    use super::*;

    fn fake(name: &str, writable: bool) -> Fake {
        let pool = "/sys/kernel/mm/hugepages/hugepages-2048kB";
        let total = if writable { "nr_hugepages" } else { "nr_hugepages/x" };
        Fake::new(
            name,
            &[
                (&format!("{pool}/{total}"), "10"),
                (&format!("{pool}/free_hugepages"), "4"),
                ("/proc/sys/vm/hugetlb_optimize_vmemmap", "0"),
                ("/proc/sys/vm/compact_memory", "0"),
                ("/proc/meminfo", "MemTotal: 9000000 kB"),
            ],
        )
    }

    #[test]
    fn enough_is_left_alone_and_a_kernel_without_pages_is_refused() {
        let fake = fake("reserve-enough", true);
        let host = fake.host();
        let grown = Grown::make(&host, PageKind::Huge2M, 4, true).unwrap();
        assert_eq!(grown.pages(), 0);
        assert!(!host.hvo().enabled, "what is not needed is not switched on");
        assert!(matches!(Grown::make(&host, PageKind::Huge1G, 1, false), Err(MemoryError::NoSuchPages { .. })));
    }

    #[test]
    fn what_cannot_be_had_leaves_everything_as_it_was() {
        // In this made-up box the number can be written, but no page ever becomes free.
        let fake = fake("reserve-short", true);
        let host = fake.host();
        let refused = Grown::make(&host, PageKind::Huge2M, 7, true).unwrap_err();
        assert!(refused.to_string().contains("the kernel found 4 of them"), "{refused}");
        assert_eq!(host.pool(PageKind::Huge2M).unwrap().total, 10);
        assert!(!host.hvo().enabled);
    }

    #[test]
    fn pages_are_asked_of_the_nodes_that_have_room() {
        let pool = "/sys/kernel/mm/hugepages/hugepages-2048kB";
        let node = |n: u32, file: &str| format!("/sys/devices/system/node/node{n}/{file}");
        let nr = "hugepages/hugepages-2048kB/nr_hugepages";
        let fake = Fake::new(
            "reserve-nodes",
            &[
                (&format!("{pool}/nr_hugepages"), "0"),
                (&node(0, nr), "0"),
                (&node(1, nr), "0"),
                (&node(2, nr), "0"),
                (&node(0, "meminfo"), "Node 0 MemTotal: 99999 kB\nNode 0 MemFree: 30720 kB"),
                (&node(1, "meminfo"), "Node 1 MemFree: 10240 kB"),
                (&node(2, "meminfo"), "Node 2 MemFree: 0 kB"),
            ],
        );
        let host = fake.host();
        let pages = |missing| -> Vec<u64> {
            host.room_for(PageKind::Huge2M, missing).into_iter().map(|(_, pages)| pages).collect()
        };
        assert_eq!(pages(8), [6, 2]);
        assert_eq!(pages(20), [15, 5]);
        // More than all have free: the rest is asked of the first, for the kernel may reclaim.
        assert_eq!(pages(40).iter().sum::<u64>(), 40);
    }
}
