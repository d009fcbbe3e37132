//! What a box says of its memory, and what follows from that. [`super::Host`] asks it.

use std::fmt;
use std::path::PathBuf;

use super::page::PageKind;
use crate::sys::support::Version;

/// One pool of huge pages, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolState {
    /// Size of its pages.
    pub page: PageKind,
    /// Pages in the pool, surplus included.
    pub total: u64,
    /// Pages nobody has faulted in.
    pub free: u64,
    /// Free pages that are promised to a mapping already.
    pub reserved: u64,
    /// Pages beyond the persistent pool that are in use now.
    pub surplus: u64,
    /// Most pages the kernel may add beyond the persistent pool.
    pub overcommit: u64,
}

impl PoolState {
    /// Pages a new mapping can have: free and unpromised, and what may still be added as surplus.
    pub fn available(&self) -> u64 {
        self.free.saturating_sub(self.reserved) + self.overcommit.saturating_sub(self.surplus)
    }

    /// How to make room for `need` pages.
    pub(crate) fn remedy(&self, need: u64) -> PoolRemedy {
        // The setting is the persistent pool: surplus pages are not part of it.
        let persistent = self.total.saturating_sub(self.surplus);
        PoolRemedy { page: self.page, pages: persistent + need.saturating_sub(self.available()) }
    }

    /// The command that makes room for `need` pages now.
    pub fn remedy_command(&self, need: u64) -> String {
        self.remedy(need).command()
    }

    /// All ways to make room for `need` pages, as one sentence.
    pub fn remedy_text(&self, need: u64) -> String {
        self.remedy(need).to_string()
    }
}

/// How to give `pool` so many pages: now, and at every boot.
pub(crate) struct PoolRemedy {
    pub(crate) page: PageKind,
    pub(crate) pages: u64,
}

impl PoolRemedy {
    /// The command that grows the pool now.
    pub(crate) fn command(&self) -> String {
        match self.page {
            PageKind::Huge1G => {
                format!("echo {} > /sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", self.pages)
            }
            _ => format!("sysctl -w vm.nr_hugepages={}", self.pages),
        }
    }

    /// The words for the kernel command line.
    pub(crate) fn kernel_command_line(&self) -> String {
        format!("hugepagesz={} hugepages={}", self.page.name(), self.pages)
    }

    /// The same, with HVO on from the start.
    pub(crate) fn at_boot_with_hvo(&self) -> String {
        format!("{} hugetlb_free_vmemmap=on", self.kernel_command_line())
    }
}

impl fmt::Display for PoolRemedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "run `{}`; to keep it across boots ", self.command())?;
        if self.page == PageKind::Huge2M {
            write!(f, "put `vm.nr_hugepages={}` into /etc/sysctl.d/90-hugepages.conf or ", self.pages)?;
        }
        write!(f, "add `{}` to the kernel command line", self.kernel_command_line())
    }
}

/// HugeTLB Vmemmap Optimization: the kernel gives back the `struct page`s that a huge page does not need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hvo {
    /// The kernel was built with it.
    pub available: bool,
    /// It is switched on; it counts for pages reserved from then on.
    pub enabled: bool,
}

impl Hvo {
    /// Bytes HVO gives back for `pages` pages. Each 4 KiB of memory has a 64-byte `struct page`: 8 pages of
    /// them for 2 MiB and 4096 for 1 GiB, of which one stays (kernel: Documentation/mm/vmemmap_dedup.rst).
    pub fn saving_bytes(page: PageKind, pages: u64) -> u64 {
        let vmemmap_pages = page.bytes() / 4096 * 64 / 4096;
        pages.saturating_mul(vmemmap_pages.saturating_sub(1) * 4096)
    }
}

/// A limit of one cgroup above this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupLimit {
    /// The file that holds the limit.
    pub file: PathBuf,
    /// The limit.
    pub limit_bytes: u64,
    /// What the group uses now and cannot drop.
    pub used_bytes: u64,
}

impl CgroupLimit {
    /// Bytes left under the limit.
    pub fn available_bytes(&self) -> u64 {
        self.limit_bytes.saturating_sub(self.used_bytes)
    }
}

/// Whether pages that were reserved with HVO on can be given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GiveBack {
    /// One was, since this boot, and nothing was lost.
    Works,
    /// They are lost, or must be feared to be.
    Breaks(Broken),
    /// Not tried since this boot.
    Untried,
}

/// Why no page must be given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The kernel is known to lose it.
    Known(Version),
    /// The kernel has reported a bad page since it was booted.
    BadPage,
    /// One was given back as a trial, and lost.
    Lost,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::Known((major, minor, patch)) => write!(
                f,
                "Linux {major}.{minor}.{patch} is known to lose huge pages that were reserved with HVO on when they are given \
                 back (\"Bad page state\"), until the next boot"
            ),
            Broken::BadPage => f.write_str(
                "the kernel has reported a bad page since it was booted (bit 5 of /proc/sys/kernel/tainted), so huge pages that \
                 were reserved with HVO on may be lost when they are given back",
            ),
            Broken::Lost => f.write_str(
                "this kernel lost one huge page that was reserved with HVO on and given back as a trial (\"Bad page state\"), \
                 until the next boot; it would lose them all",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hvo_saves_what_the_kernel_documents() {
        assert_eq!(Hvo::saving_bytes(PageKind::Huge2M, 1), 28 << 10);
        assert_eq!(Hvo::saving_bytes(PageKind::Huge1G, 1), (16 << 20) - 4096);
        assert_eq!(Hvo::saving_bytes(PageKind::Base4K, 1000), 0);
        // 128 GiB of 2 MiB pages: 1.75 GiB.
        assert_eq!(Hvo::saving_bytes(PageKind::Huge2M, 65536), 7 << 28);
    }
}
