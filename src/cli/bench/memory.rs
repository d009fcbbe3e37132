//! `bench memory`: read bandwidth by page kind and threads.

use serde_json::{Value, json};

use super::super::{args::Bench, note, out, settings::Settings};
use super::{ReadRounds, Spread};
use crate::boot;
use crate::engine::pool::Pool;
use crate::error::Result;
use crate::memory::{Arena, PageKind, Plan, RegionName};
use crate::sys::file::page_account;
use crate::units::MIB;

/// Far beyond any cache.
const BYTES: u64 = 512 * MIB;

/// One kind of memory, and what was read from it, by threads.
struct Kind {
    arena: Arena,
    name: String,
    rounds: Vec<ReadRounds>,
}

pub(super) fn measure(args: &Bench, settings: &Settings) -> Result<Value> {
    let kernels = boot::select_kernels(settings)?;
    let threads = thread_counts(settings.threads);
    let mut kinds = Vec::new();
    for (page, transparent) in [(PageKind::Base4K, false), (PageKind::Base4K, true), (settings.huge_page, false)] {
        let mut plan = Plan::new(page);
        plan.add(RegionName::Scratch, BYTES)?;
        let mut arena = match Arena::map(&plan, settings.keep_free_bytes) {
            Ok(arena) => arena,
            Err(e) if page != PageKind::Base4K && !settings.hugepages => {
                note(&format!("huge pages not measured: {e}"));
                continue;
            }
            Err(e) => return Err(e.into()),
        };
        if page == PageKind::Base4K && !transparent {
            arena.advise_small();
        }
        let data = arena.split().scratch;
        data.fill(1);
        // The kernel may not give what was asked for; what it gave is what is measured.
        let is_transparent = page_account(data.as_ptr().addr()).is_some_and(|a| a.transparent_bytes >= BYTES / 2);
        if is_transparent != transparent {
            note(&format!(
                "transparent huge pages not measured: the kernel gives {}",
                if transparent { "none" } else { "no others" }
            ));
            continue;
        }
        let name = if transparent { "transparent 2M".to_owned() } else { page.name().to_owned() };
        kinds.push(Kind { arena, name, rounds: threads.iter().map(|_| ReadRounds::new(kernels)).collect() });
    }
    let pool = Pool::start(&settings.cores)?;
    for _ in 0..args.repeat {
        for kind in &mut kinds {
            let data = kind.arena.split().scratch;
            for (rounds, &threads) in kind.rounds.iter_mut().zip(&threads) {
                rounds.measure(&pool, threads, data);
            }
        }
    }
    let mut rows = Vec::new();
    for kind in &kinds {
        for (rounds, &threads) in kind.rounds.iter().zip(&threads) {
            let (by, best) = rounds.best();
            if !args.json {
                let name = &kind.name;
                out(&format!("read {name:>14} pages, {threads:2} threads: {best} GB/s, {by}"));
            }
            let ways = rounds.0.iter().map(|(by, figures)| (by.to_string(), Spread::of(figures).json()));
            let ways: serde_json::Map<String, Value> = ways.collect();
            rows.push(json!({
                "page_bytes": kind.arena.page().bytes(), "transparent": kind.name.starts_with("transparent"),
                "threads": threads, "read_gbs": best.median, "min": best.min, "max": best.max, "way": by.to_string(),
                "ways": ways,
            }));
        }
    }
    Ok(json!({"bytes": BYTES, "tier": kernels.tier().name(), "repetitions": args.repeat, "read": rows}))
}

/// Every count up to 4, then powers of two, and all.
fn thread_counts(most: usize) -> Vec<usize> {
    (1..=most).filter(|&n| n <= 4 || n.is_power_of_two() || n == most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_threads() {
        assert_eq!(thread_counts(1), [1]);
        assert_eq!(thread_counts(12), [1, 2, 3, 4, 8, 12]);
    }
}
