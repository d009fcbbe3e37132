//! A huge-page pool for the length of one test.
#![allow(dead_code)]

use std::fs::File;
use std::path::Path;

use brim::memory::{Host, PageKind, PoolState};

const POOL_DIR: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// A pool of 2 MiB pages with room for a test; on drop it has its old size again.
///
/// The pool belongs to the whole box, so only one test holds it at a time: the lock is a file that all
/// test processes share.
pub struct Pool {
    persistent_before: u64,
    _lock: File,
}

impl Pool {
    /// Grows the pool until `pages` pages can be had. Where that is impossible the test is skipped, visibly;
    /// with `REQUIRE_HUGEPAGES=1` it fails instead.
    pub fn with_room(pages: u64) -> Option<Pool> {
        or_skip(pages, Pool::hold().and_then(|pool| pool.make_room(pages).map(|()| pool)))
    }

    /// The same with not one page more, for tests of what a short pool does: a box that already has a larger pool gets
    /// its pages back on drop.
    pub fn with_exactly(pages: u64) -> Option<Pool> {
        or_skip(pages, Pool::hold().and_then(|pool| pool.set_room(pages).map(|()| pool)))
    }

    fn hold() -> Result<Pool, String> {
        let lock = File::create(std::env::temp_dir().join("brim-test-hugepages.lock")).map_err(|e| e.to_string())?;
        lock.lock().map_err(|e| e.to_string())?;
        let before = Host::default().pool(PageKind::Huge2M).ok_or("this kernel has none of 2 MiB")?;
        if before.overcommit > 0 {
            return Err("vm.nr_overcommit_hugepages is not 0, so free pages cannot be counted".to_owned());
        }
        Ok(Pool { persistent_before: before.total - before.surplus, _lock: lock })
    }

    /// At least so many free pages, for the rest of the test.
    pub fn make_room(&self, pages: u64) -> Result<(), String> {
        if self.state().available() >= pages { Ok(()) } else { self.set_room(pages) }
    }

    /// So many free pages and no more.
    pub fn set_room(&self, pages: u64) -> Result<(), String> {
        let now = self.state();
        resize((now.total - now.surplus + pages).saturating_sub(now.available()))?;
        match self.state().available() {
            found if found == pages => Ok(()),
            found => Err(format!("the kernel leaves {found} pages")),
        }
    }

    /// The pool now.
    pub fn state(&self) -> PoolState {
        Host::default().pool(PageKind::Huge2M).expect("the pool was there when the test began")
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Err(why) = resize(self.persistent_before) {
            eprintln!("the huge-page pool keeps the size of this test: {why}");
        }
    }
}

fn or_skip(pages: u64, pool: Result<Pool, String>) -> Option<Pool> {
    pool.map_err(|why| {
        let required = std::env::var("REQUIRE_HUGEPAGES").is_ok_and(|value| value == "1");
        assert!(!required, "REQUIRE_HUGEPAGES=1, but there is no pool of {pages} huge pages: {why}");
        eprintln!("SKIPPED: no pool of {pages} huge pages: {why}");
    })
    .ok()
}

fn resize(pages: u64) -> Result<(), String> {
    let file = Path::new(POOL_DIR).join("nr_hugepages");
    std::fs::write(&file, pages.to_string()).map_err(|e| format!("{}: {e}", file.display()))
}
