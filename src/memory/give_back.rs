//! Whether this kernel gets huge pages back whole once HVO has freed most of their `struct page`s.
//!
//! Some kernels restore them wrongly: each page that is given back is then a "Bad page state", and lost until the next boot. A
//! pool that is reserved at boot and stays has no part in that. So a pool is grown with HVO on only where giving back is known
//! to work. What is asked, from what costs nothing to what may cost a page:
//!
//! 1. The version: on a kernel that is known for it nothing is tried.
//! 2. The kernel's own memory (`tainted`): once it has reported a bad page, nothing is tried until the next boot. So at most
//!    one page is ever lost to a trial, however often brim is started again.
//! 3. What a trial of this boot came to, if it was good.
//! 4. A trial: one page is added to the pool with HVO on, and given back. The kernel frees it before the write that shrinks the
//!    pool returns, and reports it in the same breath, so `tainted` tells. MemFree does not: other processes change it by more
//!    than a page meanwhile.

use std::fs::File;
use std::path::PathBuf;

use super::facts::{Broken, GiveBack};
use super::host::{HVO_SWITCH, Host, write_number};
use super::page::PageKind;
use crate::sys::file;
use crate::sys::support::Version;

/// Kernels that lose pages: series, and the first and the last release of it that were seen to.
const KNOWN: [((u32, u32), u32, u32); 1] = [((6, 12), 115, 118)];

/// In `/proc/sys/kernel/tainted`: the kernel has reported a bad page (kernel: Documentation/admin-guide/tainted-kernels.rst).
const TAINT_BAD_PAGE: u64 = 1 << 5;

/// Where a good trial is noted, by the id of the boot.
const NOTE: &str = "/run/brim-hvo-give-back";

impl Host {
    /// The kernel's version.
    pub fn kernel_version(&self) -> Option<Version> {
        crate::sys::support::parse_release(&file::text(self.path("/proc/sys/kernel/osrelease"))?)
    }

    /// What is known of giving pages back, without trying.
    pub fn give_back(&self) -> GiveBack {
        let version = self.kernel_version();
        let known = version.filter(|&(major, minor, patch)| {
            KNOWN.iter().any(|&(series, first, last)| series == (major, minor) && (first..=last).contains(&patch))
        });
        match known {
            Some(version) => GiveBack::Breaks(Broken::Known(version)),
            None if self.has_bad_page() => GiveBack::Breaks(Broken::BadPage),
            None if self.boot_id().is_some_and(|id| file::text(self.path(NOTE)) == Some(id)) => GiveBack::Works,
            None => GiveBack::Untried,
        }
    }

    /// Tries it, where it is not known: as root, and where HVO is to be had. The switch and the pool are as before afterwards.
    ///
    /// # Errors
    /// Why nothing could be tried.
    pub fn try_give_back(&self) -> Result<GiveBack, String> {
        let known = self.give_back();
        if known != GiveBack::Untried {
            return Ok(known);
        }
        if !self.hvo().available {
            return Err("this kernel has no HVO".to_owned());
        }
        let _lock = self.lock_pools(false)?;
        let _on = HvoOn::switch(self)?;
        match self.try_one(PageKind::Huge2M)? {
            GiveBack::Untried => Err("the kernel has no huge page of 2 MiB to spare".to_owned()),
            tried => Ok(tried),
        }
    }

    /// Adds one page to the pool and takes it away again, HVO being on. [`GiveBack::Untried`] where none was to be had, or where
    /// somebody else took it meanwhile.
    pub(super) fn try_one(&self, page: PageKind) -> Result<GiveBack, String> {
        // The code is the same for 1 GiB; a page of 2 MiB is easier to be had, and less of a loss.
        let page = if self.pool(PageKind::Huge2M).is_some() { PageKind::Huge2M } else { page };
        let surplus = || self.pool(page).map_or(0, |pool| pool.surplus);
        let Some((pool, _)) = self.room_for(page, 1).pop() else { return Ok(GiveBack::Untried) };
        let read = || file::number(&pool).ok_or_else(|| format!("{} cannot be read", pool.display()));
        let (before, surplus_before) = (read()?, surplus());
        write_number(&pool, before + 1)?;
        let added = read()? > before;
        write_number(&pool, before)?;
        if self.has_bad_page() {
            return Ok(GiveBack::Breaks(Broken::Lost));
        }
        if !added || surplus() > surplus_before {
            return Ok(GiveBack::Untried);
        }
        if let Some(id) = self.boot_id() {
            // Where it cannot be noted it is tried again.
            let _ = std::fs::write(self.path(NOTE), id);
        }
        Ok(GiveBack::Works)
    }

    fn has_bad_page(&self) -> bool {
        file::number(self.path("/proc/sys/kernel/tainted")).is_some_and(|taint| taint & TAINT_BAD_PAGE != 0)
    }

    fn boot_id(&self) -> Option<String> {
        file::text(self.path("/proc/sys/kernel/random/boot_id"))
    }

    /// Keeps other brims from changing pools and the HVO switch until what is returned is dropped. Who may not write there can
    /// change nothing either.
    pub(super) fn lock_pools(&self, wait: bool) -> Result<Option<File>, String> {
        const LOCK: &str = "/proc/sys/vm/nr_hugepages";
        let busy = || format!("another process changes the pools of huge pages and has {LOCK} locked");
        match file::lock(self.path(LOCK), false) {
            Err(_) if wait => {
                log::info!("{}; waiting", busy());
                file::lock(self.path(LOCK), true).map_err(|_| format!("{}; interrupted", busy()))
            }
            tried => tried.map_err(|_| busy()),
        }
    }
}

/// HVO switched on. Dropping it switches it off again if it was off.
#[derive(Debug)]
pub(super) struct HvoOn {
    switch: Option<PathBuf>,
}

impl HvoOn {
    pub(super) fn switch(host: &Host) -> Result<HvoOn, String> {
        let hvo = host.hvo();
        let was_off = hvo.available && !hvo.enabled;
        let switch = was_off.then(|| host.path(HVO_SWITCH));
        switch.iter().try_for_each(|switch| write_number(switch, 1))?;
        Ok(HvoOn { switch })
    }
}

impl Drop for HvoOn {
    fn drop(&mut self) {
        if let Some(Err(why)) = self.switch.take().map(|switch| write_number(&switch, 0)) {
            log::warn!("HVO stays switched on: {why}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::error::MemoryError;
    use super::super::host::tests::Fake;
    use super::super::reserve::Grown;
    use super::*;

    const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
    const FREE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";

    /// A box with a pool of 10 pages of which 4 are free, HVO off.
    fn fake(name: &str, release: &str, taint: &str) -> Fake {
        Fake::new(
            &format!("give-back-{name}"),
            &[
                (POOL, "10"),
                (FREE, "4"),
                (HVO_SWITCH, "0"),
                ("/proc/sys/vm/compact_memory", "0"),
                ("/proc/sys/kernel/osrelease", release),
                ("/proc/sys/kernel/tainted", taint),
                ("/proc/sys/kernel/random/boot_id", "this-boot"),
                ("/run/x", ""),
            ],
        )
    }

    /// Lets the kernel of `fake` report a bad page from the second time on that it is asked.
    fn breaks_in_trial(fake: &Fake) -> std::thread::JoinHandle<()> {
        let host = fake.host();
        let (tainted, bad) = (host.path("/proc/sys/kernel/tainted"), host.path("/proc/sys/kernel/tainted.bad"));
        std::fs::remove_file(&tainted).unwrap();
        std::fs::write(&bad, "32\n").unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&tainted).status().unwrap().success());
        std::thread::spawn(move || {
            // Opens once somebody reads, and is replaced before that reader has its answer.
            let mut asked = File::options().write(true).open(&tainted).unwrap();
            std::fs::rename(&bad, &tainted).unwrap();
            std::io::Write::write_all(&mut asked, b"0\n").unwrap();
        })
    }

    fn is_as_before(host: &Host) {
        assert_eq!((file::number(host.path(POOL)), host.hvo().enabled), (Some(10), false));
    }

    #[test]
    fn kernels_that_are_known_for_it_are_refused_and_not_tried() {
        for (release, is_known) in [
            ("6.12.114+deb13-amd64", false),
            ("6.12.115+deb13-amd64", true),
            ("6.12.118+deb13-amd64", true),
            ("6.12.119", false),
            ("6.1.115", false),
            ("7.12.115", false),
        ] {
            let fake = fake(release, release, "0");
            let host = fake.host();
            let known = matches!(host.give_back(), GiveBack::Breaks(Broken::Known(_)));
            assert_eq!(known, is_known, "{release}");
            assert_eq!(matches!(host.try_give_back().unwrap(), GiveBack::Breaks(_)), is_known, "{release}");
            assert_eq!(host.path(NOTE).exists(), !is_known, "{release}");
            is_as_before(&host);
        }
    }

    #[test]
    fn a_pool_is_not_grown_with_hvo_where_pages_would_be_lost() {
        for (name, release, taint) in [("known", "6.12.116", "0"), ("tainted", "6.18.1", "4128")] {
            let fake = fake(name, release, taint);
            let host = fake.host();
            let refused = Grown::make(&host, PageKind::Huge2M, 7, true).unwrap_err();
            assert!(matches!(refused, MemoryError::Lost { need: 7, .. }), "{refused}");
            for part in
                ["hugepagesz=2M hugepages=13 hugetlb_free_vmemmap=on", "memory.reserve = false", "memory.hvo = false"]
            {
                assert!(refused.to_string().contains(part), "{part:?} is missing in {refused}");
            }
            assert_eq!(Grown::check(&host, PageKind::Huge2M, 7, true), Err(refused));
            is_as_before(&host);
            // What is there already is never given back.
            assert_eq!(Grown::make(&host, PageKind::Huge2M, 4, true).unwrap().pages(), 0);
            // Without HVO nothing is lost.
            let short = Grown::make(&host, PageKind::Huge2M, 7, false).unwrap_err();
            assert!(matches!(short, MemoryError::NotReserved { .. }), "{short}");
            assert_eq!(Grown::check(&host, PageKind::Huge2M, 7, false), Ok(()));
            // But for HVO that somebody else has switched on.
            host.write(HVO_SWITCH, 1).unwrap();
            let refused = Grown::make(&host, PageKind::Huge2M, 7, false).unwrap_err();
            assert!(matches!(refused, MemoryError::Lost { .. }), "{refused}");
        }
    }

    #[test]
    fn a_page_lost_in_the_trial_is_the_last_one() {
        let fake = fake("trial", "6.18.1", "0");
        let host = fake.host();
        let kernel = breaks_in_trial(&fake);
        let refused = Grown::make(&host, PageKind::Huge2M, 7, true).unwrap_err();
        kernel.join().unwrap();
        assert!(matches!(refused, MemoryError::Lost { why: Broken::Lost, .. }), "{refused}");
        is_as_before(&host);
        assert!(!host.path(NOTE).exists());
        // From here on it is known without another trial.
        assert_eq!(host.try_give_back(), Ok(GiveBack::Breaks(Broken::BadPage)));
    }

    #[test]
    fn a_good_trial_holds_until_the_next_boot() {
        let fake = fake("note", "6.18.1", "0");
        let host = fake.host();
        assert_eq!(host.give_back(), GiveBack::Untried);
        assert_eq!(host.try_give_back(), Ok(GiveBack::Works));
        is_as_before(&host);
        assert_eq!(host.give_back(), GiveBack::Works);
        std::fs::write(host.path("/proc/sys/kernel/random/boot_id"), "next-boot").unwrap();
        assert_eq!(host.give_back(), GiveBack::Untried);
        // A bad page afterwards counts more.
        assert_eq!(host.try_give_back(), Ok(GiveBack::Works));
        std::fs::write(host.path("/proc/sys/kernel/tainted"), "32").unwrap();
        assert_eq!(host.give_back(), GiveBack::Breaks(Broken::BadPage));
    }

    #[test]
    fn what_cannot_be_tried_says_why() {
        let none = Host::at("/nonexistent");
        assert_eq!(none.try_give_back().unwrap_err(), "this kernel has no HVO");
        let fake = fake("busy", "6.18.1", "0");
        let host = fake.host();
        std::fs::remove_file(host.path(POOL)).unwrap();
        assert!(host.try_give_back().unwrap_err().contains("cannot be read"));
        assert!(!host.hvo().enabled);
    }
}
