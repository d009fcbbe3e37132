//! What can go wrong with memory, with the numbers and the way out.

use std::fmt;

use super::facts::{Broken, PoolState};
use super::page::{PageKind, RegionName};
use crate::error::{Error, Exit};
use crate::sys::OsError;
use crate::units::Human;

/// Memory that was not to be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemoryError {
    /// The huge-page pool has too few pages.
    PoolShort {
        /// Pages needed.
        need: u64,
        /// The pool as it was.
        pool: PoolState,
    },
    /// The pool could not be made larger.
    NotReserved {
        /// Pages needed.
        need: u64,
        /// The pool as it was.
        pool: PoolState,
        /// What stood in the way.
        cause: String,
    },
    /// The pool is not made larger, because what is given back with HVO on would be lost.
    Lost {
        /// Pages needed.
        need: u64,
        /// The pool as it was.
        pool: PoolState,
        /// How that is known.
        why: Broken,
    },
    /// What the kernel says of memory cannot be read.
    NotMounted {
        /// `/proc` or `/sys`.
        what: &'static str,
    },
    /// The kernel has no pages of this size.
    NoSuchPages {
        /// The size.
        page: PageKind,
    },
    /// A cgroup limit of this process is too small.
    CgroupShort {
        /// What is limited: `memory`, `hugetlb.2MB` or `hugetlb.1GB`.
        what: &'static str,
        /// Bytes needed.
        need_bytes: u64,
        /// Bytes left under the limit.
        available_bytes: u64,
        /// File that holds the limit.
        file: String,
    },
    /// The box has too little ordinary memory.
    BoxShort {
        /// Bytes of ordinary pages needed; 0 where all lies in the pool.
        need_bytes: u64,
        /// MemAvailable.
        available_bytes: u64,
        /// What the board wants left over.
        keep_free_bytes: u64,
    },
    /// Reserved huge pages could not be faulted in.
    NotPopulated(NotPopulated),
    /// A mapping failed for another reason than a short pool.
    Map {
        /// Bytes asked for.
        bytes: u64,
        /// The kernel's answer.
        cause: OsError,
    },
    /// Pages could not be spread over the NUMA nodes.
    Numa(OsError),
    /// Weights could not be made read-only.
    Seal(OsError),
    /// A region beyond what addresses can express.
    TooLarge {
        /// The region.
        region: RegionName,
        /// Bytes that were to be added.
        bytes: u64,
    },
}

/// Huge pages that were reserved, and then could not be had. It can come up while tokens are generated, so it is plain
/// numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotPopulated {
    /// Pages needed.
    pub need: u64,
    /// Their size.
    pub page: PageKind,
    /// The kernel's answer.
    pub cause: OsError,
}

impl fmt::Display for NotPopulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NotPopulated { need, page, cause } = self;
        write!(
            f,
            "{need} huge pages of {page} were reserved but could not be faulted in ({cause}); look at the cgroup hugetlb \
             limits and the NUMA policy of this process (`brim doctor`)"
        )
    }
}

impl From<NotPopulated> for MemoryError {
    fn from(error: NotPopulated) -> Self {
        MemoryError::NotPopulated(error)
    }
}

impl From<NotPopulated> for Error {
    fn from(error: NotPopulated) -> Self {
        MemoryError::from(error).into()
    }
}

impl fmt::Display for MemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MemoryError::PoolShort { need, pool } => {
                let missing = need.saturating_sub(pool.available());
                write!(
                    f,
                    "the huge-page pool is short by {missing} pages of {}: need {need}, free {} of {} total, {} reserved \
                     by other processes; {}",
                    pool.page,
                    pool.free,
                    pool.total,
                    pool.reserved,
                    pool.remedy(*need),
                )
            }
            MemoryError::NotReserved { need, pool, cause } => write!(
                f,
                "the huge-page pool could not be grown (memory.reserve): need {need} pages of {}, {} are available; {cause}; \
                 {}",
                pool.page,
                pool.available(),
                pool.remedy(*need),
            ),
            MemoryError::Lost { need, pool, why } => {
                let at_boot = pool.remedy(*need).at_boot_with_hvo();
                write!(
                    f,
                    "the huge-page pool is not grown (memory.reserve) with HVO on: {why}; reserve the pool at boot, from where it is \
                     never given back: add `{at_boot}` to the kernel command line and set memory.reserve = false; or do without \
                     HVO: memory.hvo = false and `sysctl -w vm.hugetlb_optimize_vmemmap=0`"
                )
            }
            MemoryError::NotMounted { what } => {
                let kind = if *what == "/proc" { "proc" } else { "sysfs" };
                write!(
                    f,
                    "{what} is not mounted, and nothing else says what memory there is: run `mount -t {kind} {kind} {what}`"
                )
            }
            MemoryError::NoSuchPages { page } => write!(
                f,
                "this kernel offers no huge pages of {page} (/sys/kernel/mm/hugepages has none of that size); choose \
                 another --page-size or boot a kernel and CPU that have them"
            ),
            MemoryError::CgroupShort { what, need_bytes, available_bytes, file } => write!(
                f,
                "the cgroup limit of {what} is too small: need {}, {} left; raise it in {file}",
                Human(*need_bytes),
                Human(*available_bytes),
            ),
            MemoryError::BoxShort { need_bytes: 0, available_bytes, keep_free_bytes } => write!(
                f,
                "not enough memory beside the huge-page pool: {} must stay free (memory.keep_free_mib), available {}; stop \
                 other processes, shrink the huge-page pool by the pages nobody uses, or reserve it with HVO on (`brim \
                 doctor` says what that gives back)",
                Human(*keep_free_bytes),
                Human(*available_bytes),
            ),
            MemoryError::BoxShort { need_bytes, available_bytes, keep_free_bytes } => {
                write!(f, "not enough memory: need {}, available {}", Human(*need_bytes), Human(*available_bytes))?;
                if *keep_free_bytes > 0 {
                    write!(f, " of which {} must stay free (memory.keep_free_mib)", Human(*keep_free_bytes))?;
                }
                f.write_str(
                    "; stop other processes, lower --ctx, have fewer slots or checkpoints, or choose a smaller model",
                )
            }
            MemoryError::NotPopulated(error) => error.fmt(f),
            MemoryError::Map { bytes, cause } => {
                write!(f, "cannot map {}: {cause}; look at `ulimit -v` and vm.overcommit_memory", Human(*bytes))
            }
            MemoryError::Numa(cause) => {
                write!(f, "cannot spread the pages over the NUMA nodes: {cause}; set memory.numa = \"local\"")
            }
            MemoryError::Seal(cause) => write!(f, "cannot make the weights read-only: {cause}"),
            MemoryError::TooLarge { region, bytes } => {
                write!(f, "region {region} with {bytes} more bytes is larger than the address space")
            }
        }
    }
}

impl std::error::Error for MemoryError {}

impl From<MemoryError> for Error {
    fn from(error: MemoryError) -> Self {
        Error::new(Exit::Memory, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_pool_names_the_way_out() {
        let mut pool =
            PoolState { page: PageKind::Huge2M, total: 100, free: 40, reserved: 10, surplus: 0, overcommit: 0 };
        let text = MemoryError::PoolShort { need: 32, pool }.to_string();
        for part in [
            "short by 2 pages of 2 MiB",
            "need 32, free 40 of 100 total, 10 reserved",
            "`sysctl -w vm.nr_hugepages=102`",
            "`vm.nr_hugepages=102` into /etc/sysctl.d/90-hugepages.conf",
            "`hugepagesz=2M hugepages=102`",
        ] {
            assert!(text.contains(part), "{part:?} missing in {text:?}");
        }
        pool.page = PageKind::Huge1G;
        let text = MemoryError::PoolShort { need: 32, pool }.to_string();
        assert!(text.contains("`hugepagesz=1G hugepages=102`"), "{text}");
        assert!(text.contains("echo 102 > /sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages"), "{text}");
        assert!(!text.contains("sysctl"), "{text}");
    }

    #[test]
    fn every_refusal_is_exit_5() {
        let error = Error::from(MemoryError::NoSuchPages { page: PageKind::Huge1G });
        assert_eq!(error.exit(), Exit::Memory);
    }
}
