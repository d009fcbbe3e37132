//! What the box has: huge-page pools, their limits, HVO and ordinary memory, as `/proc` and `/sys` tell it.

use std::path::{Path, PathBuf};

use super::error::MemoryError;
use super::facts::{CgroupLimit, Hvo, PoolState};
use super::packing::Packing;
use super::page::PageKind;
use super::plan::Plan;
use crate::sys::cpu::parse_list;
use crate::sys::{cgroup, file};

/// Reads the box below a root directory; tests put a made-up `/proc` and `/sys` there.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
}

impl Default for Host {
    fn default() -> Self {
        Host { root: PathBuf::from("/") }
    }
}

impl Host {
    /// The box as seen below `root`.
    pub fn at(root: impl Into<PathBuf>) -> Host {
        Host { root: root.into() }
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// What is not mounted of what tells of memory in pages of this kind: `/proc` or `/sys`.
    pub fn not_mounted(&self, page: PageKind) -> Option<&'static str> {
        if self.meminfo("MemTotal").is_none() {
            return Some("/proc");
        }
        (page != PageKind::Base4K && !self.path("/sys/kernel").exists()).then_some("/sys")
    }

    /// Why there is no pool of `page`.
    pub(super) fn no_pool(&self, page: PageKind) -> MemoryError {
        self.not_mounted(page).map_or(MemoryError::NoSuchPages { page }, |what| MemoryError::NotMounted { what })
    }

    /// The pool of `page`, `None` if the kernel has no such pages (and for ordinary pages).
    pub fn pool(&self, page: PageKind) -> Option<PoolState> {
        let dir = self.path("/sys/kernel/mm/hugepages").join(pool_dir(page)?);
        let total = file::number(dir.join("nr_hugepages"))?;
        let read = |name: &str| file::number(dir.join(name)).unwrap_or(0);
        Some(PoolState {
            page,
            total,
            free: read("free_hugepages"),
            reserved: read("resv_hugepages"),
            surplus: read("surplus_hugepages"),
            overcommit: read("nr_overcommit_hugepages"),
        })
    }

    /// The NUMA nodes that have memory, where there are several; empty on a box of one.
    pub fn memory_nodes(&self) -> Vec<u32> {
        let list = file::text(self.path("/sys/devices/system/node/has_memory")).unwrap_or_default();
        let nodes: Vec<u32> =
            parse_list(&list).unwrap_or_default().into_iter().filter_map(|node| node.try_into().ok()).collect();
        if nodes.len() > 1 { nodes } else { Vec::new() }
    }

    /// How `plan` is packed on this box: not at all unless it asks for that.
    pub fn packing(&self, plan: &Plan) -> Packing {
        match plan.is_packed() {
            true => Packing::new(plan, self.pool(PageKind::Huge1G).map_or(0, |pool| pool.available())),
            false => Packing::default(),
        }
    }

    /// The share of each NUMA node in the pool of `page`: node, pages, free pages. Empty without NUMA.
    pub fn node_pools(&self, page: PageKind) -> Vec<(u32, u64, u64)> {
        let Some(dir) = pool_dir(page) else { return Vec::new() };
        let Ok(nodes) = std::fs::read_dir(self.path("/sys/devices/system/node")) else { return Vec::new() };
        let mut pools: Vec<_> = nodes
            .filter_map(|node| {
                let node = node.ok()?;
                let number = node.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
                let pool = node.path().join("hugepages").join(dir);
                Some((
                    number,
                    file::number(pool.join("nr_hugepages"))?,
                    file::number(pool.join("free_hugepages")).unwrap_or(0),
                ))
            })
            .collect();
        pools.sort_unstable();
        pools
    }

    /// Whose `nr_hugepages` to raise for `missing` more pages, and by how many: that of the pool on a box of one node, else
    /// those of the nodes, each by its share of the free memory.
    pub(super) fn room_for(&self, page: PageKind, missing: u64) -> Vec<(PathBuf, u64)> {
        let Some(dir) = pool_dir(page) else { return Vec::new() };
        let mut nodes: Vec<(u64, PathBuf)> = self
            .node_pools(page)
            .into_iter()
            .filter_map(|(node, ..)| {
                let node_dir = self.path("/sys/devices/system/node").join(format!("node{node}"));
                let text = file::text(node_dir.join("meminfo"))?;
                let free = text.lines().find(|line| line.contains("MemFree:"))?;
                let free_kib: u64 = free.split_ascii_whitespace().rev().nth(1)?.parse().ok()?;
                let pages = free_kib * 1024 / page.bytes();
                (pages > 0).then(|| (pages, node_dir.join("hugepages").join(dir).join("nr_hugepages")))
            })
            .collect();
        if nodes.len() < 2 {
            return vec![(self.path("/sys/kernel/mm/hugepages").join(dir).join("nr_hugepages"), missing)];
        }
        nodes.sort_by_key(|&(pages, _)| std::cmp::Reverse(pages));
        let free: u64 = nodes.iter().map(|(pages, _)| pages).sum();
        let mut left = missing;
        let mut shares: Vec<(PathBuf, u64)> = Vec::new();
        for (pages, file) in nodes {
            let share = (u128::from(missing) * u128::from(pages) / u128::from(free)) as u64;
            left -= share.min(left);
            shares.push((file, share));
        }
        // What rounding leaves over goes to the node with most room.
        shares[0].1 += left;
        shares.retain(|(_, pages)| *pages > 0);
        shares
    }

    /// Writes a number to a kernel file.
    pub(super) fn write(&self, path: &str, number: u64) -> Result<(), String> {
        write_number(&self.path(path), number)
    }

    /// The page that `vm.nr_hugepages` counts.
    pub fn default_huge_page_bytes(&self) -> Option<u64> {
        self.meminfo("Hugepagesize")
    }

    fn meminfo(&self, key: &str) -> Option<u64> {
        file::kib_field(&file::text(self.path("/proc/meminfo"))?, key)
    }

    /// MemAvailable: what new processes can have without swapping. Free huge pages are not part of it.
    pub fn memory_available_bytes(&self) -> u64 {
        self.meminfo("MemAvailable").unwrap_or(0)
    }

    /// MemTotal.
    pub fn memory_total_bytes(&self) -> u64 {
        self.meminfo("MemTotal").unwrap_or(0)
    }

    /// Page cache (Cached and Buffers, without shared memory).
    pub fn page_cache_bytes(&self) -> u64 {
        let field = |key| self.meminfo(key).unwrap_or(0);
        (field("Cached") + field("Buffers")).saturating_sub(field("Shmem"))
    }

    /// Whether HVO is there and on.
    pub fn hvo(&self) -> Hvo {
        let switch = file::number(self.path(HVO_SWITCH));
        Hvo { available: switch.is_some(), enabled: switch == Some(1) }
    }

    /// Bytes of `struct page` that the kernel has given back, by its own counters (`nr_memmap_pages` and
    /// `nr_memmap_boot_pages` in `/proc/vmstat`, Linux 6.12) against the 64 bytes that each 4 KiB of its memory blocks take
    /// without HVO. `None` where it does not count.
    pub fn memmap_given_back_bytes(&self) -> Option<u64> {
        let vmstat = file::text(self.path("/proc/vmstat"))?;
        let pages = |key: &str| -> Option<u64> {
            vmstat.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
        };
        let have = (pages("nr_memmap_pages")? + pages("nr_memmap_boot_pages")?) * 4096;
        let dir = self.path("/sys/devices/system/memory");
        let block_bytes = u64::from_str_radix(&file::text(dir.join("block_size_bytes"))?, 16).ok()?;
        let is_block = |name: &str| name.strip_prefix("memory").is_some_and(|number| number.parse::<u64>().is_ok());
        let entries = std::fs::read_dir(dir).ok()?;
        let blocks = entries.filter(|entry| entry.as_ref().is_ok_and(|e| e.file_name().to_str().is_some_and(is_block)));
        Some((blocks.count() as u64 * (block_bytes / 4096 * 64)).saturating_sub(have))
    }

    /// The transparent huge-page mode: `always`, `madvise` or `never`.
    pub fn transparent_huge_pages(&self) -> Option<String> {
        let text = file::text(self.path("/sys/kernel/mm/transparent_hugepage/enabled"))?;
        Some(text.split_once('[')?.1.split_once(']')?.0.to_owned())
    }

    /// The tightest memory limit of the cgroups above this process, v1 and v2. Page cache that can be dropped
    /// is not counted as used.
    pub fn cgroup_memory(&self) -> Option<CgroupLimit> {
        self.tightest("memory", "memory.limit_in_bytes", "memory.max", |dir, v2| {
            let used = file::number(dir.join(if v2 { "memory.current" } else { "memory.usage_in_bytes" }))?;
            let stat = file::text(dir.join("memory.stat")).unwrap_or_default();
            let key = if v2 { "inactive_file " } else { "total_inactive_file " };
            let cache = stat.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok()).unwrap_or(0);
            Some(used.saturating_sub(cache))
        })
    }

    /// The tightest hugetlb limit of the cgroups above this process for `page`: of faulted pages or of reservations.
    pub fn cgroup_hugetlb(&self, page: PageKind) -> Option<CgroupLimit> {
        let size = match page {
            PageKind::Base4K => return None,
            PageKind::Huge2M => "2MB",
            PageKind::Huge1G => "1GB",
        };
        ["", "rsvd."]
            .into_iter()
            .filter_map(|kind| {
                let [v1, v2] = ["limit_in_bytes", "max"].map(|last| format!("hugetlb.{size}.{kind}{last}"));
                self.tightest("hugetlb", &v1, &v2, |dir, v2| {
                    let last = if v2 { "current" } else { "usage_in_bytes" };
                    file::number(dir.join(format!("hugetlb.{size}.{kind}{last}")))
                })
            })
            .min_by_key(CgroupLimit::available_bytes)
    }

    /// Walks from this process's group to the root of each hierarchy that may hold the controller.
    fn tightest(
        &self,
        controller: &str,
        limit_v1: &str,
        limit_v2: &str,
        used: impl Fn(&Path, bool) -> Option<u64>,
    ) -> Option<CgroupLimit> {
        /// v1 says "no limit" with the largest page-aligned number; no box has 2^60 bytes.
        const NO_LIMIT_BYTES: u64 = 1 << 60;
        let found = cgroup::above(&self.root, controller).into_iter().filter_map(|(dir, v2)| {
            let file = dir.join(if v2 { limit_v2 } else { limit_v1 });
            let limit_bytes = file::number(&file).filter(|&bytes| bytes < NO_LIMIT_BYTES)?;
            Some(CgroupLimit { file, limit_bytes, used_bytes: used(&dir, v2).unwrap_or(0) })
        });
        found.min_by_key(CgroupLimit::available_bytes)
    }

    /// What HVO gives back for the pages of `plan`.
    pub fn hvo_saving_bytes(&self, plan: &Plan) -> u64 {
        let packing = self.packing(plan);
        let giant = Hvo::saving_bytes(PageKind::Huge1G, packing.giant_pages());
        giant + Hvo::saving_bytes(plan.page(), packing.small_pages(plan))
    }
}

fn pool_dir(page: PageKind) -> Option<&'static str> {
    match page {
        PageKind::Base4K => None,
        PageKind::Huge2M => Some("hugepages-2048kB"),
        PageKind::Huge1G => Some("hugepages-1048576kB"),
    }
}

/// Where HVO is switched.
pub(super) const HVO_SWITCH: &str = "/proc/sys/vm/hugetlb_optimize_vmemmap";

pub(super) fn write_number(file: &PathBuf, number: u64) -> Result<(), String> {
    std::fs::write(file, number.to_string())
        .map_err(|e| format!("{}: {e}; growing the pool needs root", file.display()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A made-up root directory, removed on drop.
    pub struct Fake(PathBuf);

    impl Fake {
        pub fn new(name: &str, files: &[(&str, &str)]) -> Fake {
            let root = std::env::temp_dir().join(format!("brim-host-{name}-{}", std::process::id()));
            for (path, text) in files {
                let path = root.join(path.trim_start_matches('/'));
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, format!("{text}\n")).unwrap();
            }
            Fake(root)
        }

        pub fn host(&self) -> Host {
            Host::at(&self.0)
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn pools_and_nodes_are_read() {
        let node = "/sys/devices/system/node/node1/hugepages/hugepages-2048kB";
        let pool = "/sys/kernel/mm/hugepages/hugepages-2048kB";
        let fake = Fake::new(
            "pools",
            &[
                (&format!("{pool}/nr_hugepages"), "100"),
                (&format!("{pool}/free_hugepages"), "60"),
                (&format!("{pool}/resv_hugepages"), "5"),
                (&format!("{pool}/surplus_hugepages"), "1"),
                (&format!("{pool}/nr_overcommit_hugepages"), "4"),
                (&format!("{node}/nr_hugepages"), "50"),
                (&format!("{node}/free_hugepages"), "49"),
                ("/sys/devices/system/node/possible", "0-1"),
                ("/proc/meminfo", "MemTotal: 1000 kB\nMemAvailable: 500 kB\nHugepagesize: 2048 kB"),
                ("/proc/sys/vm/hugetlb_optimize_vmemmap", "0"),
                ("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never"),
            ],
        );
        let host = fake.host();
        let pool = host.pool(PageKind::Huge2M).unwrap();
        assert_eq!((pool.total, pool.available()), (100, 58));
        assert_eq!(pool.remedy_command(60), "sysctl -w vm.nr_hugepages=101");
        assert_eq!(host.pool(PageKind::Huge1G), None);
        assert_eq!(host.node_pools(PageKind::Huge2M), [(1, 50, 49)]);
        assert_eq!(host.memory_available_bytes(), 500 << 10);
        assert_eq!(host.memory_total_bytes(), 1000 << 10);
        assert_eq!(host.default_huge_page_bytes(), Some(2 << 20));
        assert_eq!(host.hvo(), Hvo { available: true, enabled: false });
        assert_eq!(host.transparent_huge_pages().as_deref(), Some("madvise"));
        assert_eq!(host.cgroup_memory(), None);
    }

    #[test]
    fn cgroup_v2_limits_of_ancestors_count() {
        let fake = Fake::new(
            "v2",
            &[
                ("/proc/self/cgroup", "0::/a/b"),
                ("/sys/fs/cgroup/a/b/memory.max", "max"),
                ("/sys/fs/cgroup/a/memory.max", "1000"),
                ("/sys/fs/cgroup/a/memory.current", "600"),
                ("/sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 100\nfile 3"),
                ("/sys/fs/cgroup/a/b/hugetlb.2MB.max", "9000"),
                ("/sys/fs/cgroup/a/b/hugetlb.2MB.rsvd.max", "8000"),
                ("/sys/fs/cgroup/a/b/hugetlb.2MB.rsvd.current", "7000"),
            ],
        );
        assert_eq!(fake.host().cgroup_memory().unwrap().available_bytes(), 500);
        let hugetlb = fake.host().cgroup_hugetlb(PageKind::Huge2M).unwrap();
        assert_eq!(hugetlb.available_bytes(), 1000);
        assert!(hugetlb.file.ends_with("a/b/hugetlb.2MB.rsvd.max"));
        assert_eq!(fake.host().cgroup_hugetlb(PageKind::Huge1G), None);
    }

    #[test]
    fn cgroup_v1_without_its_own_path_falls_back_to_the_mount() {
        let fake = Fake::new(
            "v1",
            &[
                ("/proc/self/cgroup", "5:hugetlb:/x\n4:memory:/docker/abc\n0::/"),
                ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "4096"),
                ("/sys/fs/cgroup/memory/memory.usage_in_bytes", "96"),
                ("/sys/fs/cgroup/hugetlb/x/hugetlb.1GB.limit_in_bytes", "9223372036854771712"),
            ],
        );
        assert_eq!(fake.host().cgroup_memory().unwrap().available_bytes(), 4000);
        assert_eq!(fake.host().cgroup_hugetlb(PageKind::Huge1G), None);
    }

    #[test]
    fn what_was_given_back_is_the_kernels_own_count() {
        let memory = "/sys/devices/system/memory";
        let files = |boot: &'static str| {
            [
                ("/proc/vmstat".to_owned(), boot.to_owned()),
                (format!("{memory}/block_size_bytes"), "8000000".to_owned()),
                (format!("{memory}/memory0/state"), "online".to_owned()),
                (format!("{memory}/memory7/state"), "online".to_owned()),
                (format!("{memory}/memory_notes"), "none".to_owned()),
            ]
        };
        let found = |name: &str, boot| {
            let files = files(boot);
            let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
            Fake::new(name, &files).host().memmap_given_back_bytes()
        };
        // Two blocks of 128 MiB: 2 x 2 MiB of struct pages, 1024 pages.
        assert_eq!(found("memmap-all", "nr_x 7\nnr_memmap_pages 24\nnr_memmap_boot_pages 1000"), Some(0));
        assert_eq!(found("memmap-less", "nr_memmap_pages 0\nnr_memmap_boot_pages 1010"), Some(14 * 4096));
        assert_eq!(found("memmap-old", "nr_free_pages 9"), None);
    }

    #[test]
    fn only_a_box_of_several_nodes_has_nodes() {
        let nodes = |name: &str, list: &str| {
            Fake::new(name, &[("/sys/devices/system/node/has_memory", list)]).host().memory_nodes()
        };
        assert!(nodes("nodes-one", "0").is_empty());
        assert_eq!(nodes("nodes-three", "0-1,4"), [0, 1, 4]);
        assert!(Host::at("/nonexistent").memory_nodes().is_empty());
    }

    #[test]
    fn this_box_answers() {
        assert!(Host::default().memory_total_bytes() >= Host::default().memory_available_bytes());
        Host::default().cgroup_memory();
    }
}
