//! Chapter 3: the memory of a plan, over the pages that could be had. Nothing is loaded yet.

use std::fmt;

use super::headers::Headers;
use super::plan::Planned;
use crate::board::{Fallback, Numa};
use crate::error::Result;
use crate::memory::{Arena, Grown, Host, MemoryError, Packing, PageKind, Plan, Shared};
use crate::model::Sizes;
use crate::settings::Settings;

/// What was mapped, which is not always what was planned.
#[derive(Clone, Debug)]
pub struct MappedPlan {
    /// The regions, over the page that they have.
    pub plan: Plan,
    /// Which of them lie in pages of 1 GiB.
    pub packing: Packing,
    /// Whether ordinary pages stand for huge ones that could not be had (`memory.fallback = "small-pages"`).
    pub is_fallback: bool,
}

impl MappedPlan {
    /// The part of one model.
    fn of(&self, model: usize) -> MappedPlan {
        let MappedPlan { plan, packing, is_fallback } = self;
        MappedPlan { plan: plan.of(model), packing: packing.of(model), is_fallback: *is_fallback }
    }
}

impl fmt::Display for MappedPlan {
    /// Pages and their size: `12 pages of 2 MiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (giant, small) = (self.packing.giant_pages(), self.packing.small_pages(&self.plan));
        if giant > 0 {
            write!(f, "{giant} pages of {} and ", PageKind::Huge1G)?;
        }
        write!(f, "{small} pages of {}", self.plan.page())
    }
}

/// A model whose memory is there, before anything is loaded.
pub struct Mapped<'s> {
    pub(super) headers: Headers<'s>,
    pub(super) sizes: Sizes,
    pub(super) is_serving: bool,
    pub(super) arena: Arena,
    pub(super) mapped: MappedPlan,
}

impl<'s> Planned<'s> {
    /// Maps the plan: grows the pool, or takes ordinary pages instead, where the board says so.
    ///
    /// # Errors
    /// Memory that cannot be had (5).
    pub fn map(self) -> Result<Mapped<'s>> {
        let (arena, mapped) = Policy::of(self.headers.settings, Host::default()).arena(&self.plan)?;
        Ok(self.mapped_in(arena, mapped))
    }

    fn mapped_in(self, arena: Arena, mapped: MappedPlan) -> Mapped<'s> {
        let Planned { headers, sizes, is_serving, .. } = self;
        Mapped { headers, sizes, is_serving, arena, mapped }
    }
}

/// Maps the one plan of several models in one piece, as [`Planned::map`] does that of one: all of it or nothing.
///
/// # Errors
/// As [`Planned::map`].
pub fn map_all(planned: Vec<Planned<'_>>) -> Result<Vec<Mapped<'_>>> {
    let Some(first) = planned.first() else { return Ok(Vec::new()) };
    let plan = Plan::join(planned.iter().map(|each| &each.plan))?;
    let (arena, mapped) = Policy::of(first.headers.settings, Host::default()).arena(&plan)?;
    let parts = planned.into_iter().zip(arena.apart()).enumerate();
    Ok(parts.map(|(model, (planned, arena))| planned.mapped_in(arena, mapped.of(model))).collect())
}

impl Mapped<'_> {
    /// What was mapped.
    pub fn mapped(&self) -> &MappedPlan {
        &self.mapped
    }

    /// Makes the memory stay until the process ends, and its weights unchangeable once they are loaded, by whatever goes
    /// wrong (`mseal`, where the kernel has it).
    #[must_use]
    pub fn until_exit(mut self) -> Self {
        self.arena.keep();
        self
    }
}

/// How memory is to be had, as the board says.
pub(super) struct Policy {
    host: Host,
    keep_free_bytes: u64,
    /// Whether the pool is grown by what is missing, and whether HVO is switched on before.
    reserve: bool,
    hvo: bool,
    fallback: Fallback,
    /// The NUMA nodes that pages are spread over; none on a box of one node, or where the board says so.
    nodes: Vec<u32>,
}

impl Policy {
    pub(super) fn of(settings: &Settings, host: Host) -> Policy {
        let memory = &settings.board.memory;
        Policy {
            keep_free_bytes: settings.keep_free_bytes(),
            reserve: memory.reserve,
            hvo: memory.hvo,
            fallback: memory.fallback,
            nodes: match memory.numa {
                Numa::Interleave => host.memory_nodes(),
                Numa::Local => Vec::new(),
            },
            host,
        }
    }

    /// The memory of this process.
    pub(super) fn arena(&self, plan: &Plan) -> Result<(Arena, MappedPlan)> {
        self.place(plan, |plan| {
            let arena = Arena::reserve(plan, self.keep_free_bytes)?;
            arena.interleave(&self.nodes)?;
            let packing = arena.packing().clone();
            Ok((arena, packing))
        })
    }

    /// Memory for other processes to map.
    pub(super) fn shared(&self, plan: &Plan) -> Result<(Shared, MappedPlan)> {
        self.place(plan, |plan| {
            let shared = Shared::reserve(plan, self.keep_free_bytes)?;
            shared.interleave(&self.nodes)?;
            Ok((shared, Packing::default()))
        })
    }

    /// What `reserve` sets aside for `plan`, or for the same regions in ordinary pages where there are no huge ones and
    /// the board allows it.
    fn place<T>(
        &self,
        plan: &Plan,
        reserve: impl Fn(&Plan) -> std::result::Result<(T, Packing), MemoryError>,
    ) -> Result<(T, MappedPlan)> {
        let had = self.grow(plan).and_then(|grown| {
            let had = reserve(plan)?;
            if let Some(grown) = grown {
                log::info!("{} pages of {} added to the pool until brim ends", grown.pages(), plan.page());
                grown.hand_over();
            }
            Ok(had)
        });
        let (plan, (memory, packing), is_fallback) = match had {
            Ok(had) => (plan.clone(), had, false),
            Err(short) if self.fallback == Fallback::SmallPages && is_for_want_of_pages(&short) => {
                let page = plan.page();
                log::warn!("ordinary pages instead of {page} ones (memory.fallback = \"small-pages\"): {short}");
                let plan = plan.with_page(PageKind::Base4K)?;
                let had = reserve(&plan)?;
                (plan, had, true)
            }
            Err(error) => return Err(error.into()),
        };
        Ok((memory, MappedPlan { plan, packing, is_fallback }))
    }

    /// Makes room in the pool, where that is wanted.
    fn grow(&self, plan: &Plan) -> std::result::Result<Option<Grown>, MemoryError> {
        if plan.page() == PageKind::Base4K {
            if self.reserve || self.hvo {
                log::warn!("memory.reserve and memory.hvo do nothing: huge pages are not asked for; add --hugepages");
            }
            return Ok(None);
        }
        if !self.reserve {
            return Ok(None);
        }
        let need = self.host.packing(plan).small_pages(plan);
        Grown::make(&self.host, plan.page(), need, self.hvo).map(Some)
    }
}

/// Whether huge pages are what is missing.
fn is_for_want_of_pages(error: &MemoryError) -> bool {
    use MemoryError::{NoSuchPages, NotReserved, PoolShort};
    matches!(error, PoolShort { .. } | NotReserved { .. } | NoSuchPages { .. })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::memory::RegionName;

    /// A box without huge pages, of one NUMA node that pages are nevertheless spread over; removed on drop.
    struct Bare(PathBuf);

    impl Bare {
        fn new(name: &str) -> Bare {
            let root = std::env::temp_dir().join(format!("brim-place-{name}-{}", std::process::id()));
            for dir in ["proc", "sys/kernel"] {
                std::fs::create_dir_all(root.join(dir)).unwrap();
            }
            std::fs::write(root.join("proc/meminfo"), "MemTotal: 9000000 kB\nMemAvailable: 9000000 kB\n").unwrap();
            Bare(root)
        }

        fn policy(&self, fallback: Fallback) -> Policy {
            let host = Host::at(&self.0);
            Policy { host, keep_free_bytes: 0, reserve: true, hvo: false, fallback, nodes: vec![0] }
        }
    }

    impl Drop for Bare {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn plan(page: PageKind) -> Plan {
        let mut plan = Plan::new(page);
        plan.add(RegionName::Weights, 3 << 20).unwrap();
        plan
    }

    /// Whether this process has a mapping at `address` that is spread over node 0; `None` where the kernel knows no NUMA.
    fn is_interleaved(address: usize) -> Option<bool> {
        let numa_maps = std::fs::read_to_string("/proc/self/numa_maps").ok()?;
        let line = format!("{address:x} interleave:0");
        Some(numa_maps.lines().any(|found| found.starts_with(&line)))
    }

    #[test]
    fn ordinary_pages_instead_of_huge_ones_are_told_and_spread_over_the_nodes() {
        let bare = Bare::new("told");
        let refused = bare.policy(Fallback::Refuse).arena(&plan(PageKind::Huge2M)).map(|_| ()).unwrap_err();
        assert!(refused.to_string().contains("no huge pages of 2 MiB"), "{refused}");
        for page in [PageKind::Base4K, PageKind::Huge2M] {
            let (mut arena, mapped) = match bare.policy(Fallback::SmallPages).arena(&plan(page)) {
                Err(e) if e.to_string().contains("NUMA") => return eprintln!("SKIPPED: {e}"),
                had => had.unwrap(),
            };
            assert_eq!((mapped.plan.page(), mapped.is_fallback), (PageKind::Base4K, page != PageKind::Base4K));
            assert_eq!(mapped.to_string(), "768 pages of 4 KiB");
            let address = arena.open().weights.bytes().as_ptr().addr();
            assert_ne!(is_interleaved(address), Some(false), "in place of pages of {page}");
        }
    }

    #[test]
    fn what_is_shared_falls_back_as_well() {
        let bare = Bare::new("shared");
        assert!(bare.policy(Fallback::Refuse).shared(&plan(PageKind::Huge1G)).is_err());
        let (mut shared, mapped) = match bare.policy(Fallback::SmallPages).shared(&plan(PageKind::Huge1G)) {
            Err(e) if e.to_string().contains("NUMA") => return eprintln!("SKIPPED: {e}"),
            had => had.unwrap(),
        };
        assert!(mapped.is_fallback && mapped.plan.total_bytes() == 3 << 20);
        assert_ne!(is_interleaved(shared.bytes_mut().as_ptr().addr()), Some(false));
    }
}
