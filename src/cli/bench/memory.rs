//! `bench memory`: read bandwidth by page kind and threads, and how far cores are from each other.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::{Value, json};

use super::super::args::Bench;
use super::super::common::note;
use super::ceilings::ReadRounds;
use super::figures::{Spread, say, thread};
use crate::error::{Error, Result};
use crate::memory::{Arena, PageKind, Plan, RegionName};
use crate::settings::Settings;
use crate::sys::{cpu, file::page_account};
use crate::units::MIB;
use crate::workers::Workers;

/// Far beyond any cache.
const BYTES: u64 = 512 * MIB;

/// How often a cache line goes there and back.
const ROUND_TRIPS: usize = 20_000;

/// One kind of memory, and what was read from it, by threads.
struct Kind {
    arena: Arena,
    name: String,
    rounds: Vec<ReadRounds>,
}

pub(super) fn measure(args: &Bench, settings: &Settings) -> Result<Value> {
    let kernels = settings.kernels()?;
    let threads = thread_counts(settings.threads());
    let mut kinds = Vec::new();
    for (page, transparent) in [(PageKind::Base4K, false), (PageKind::Base4K, true), (settings.huge_page, false)] {
        let mut plan = Plan::new(page);
        plan.add(RegionName::Scratch, BYTES)?;
        let mut arena = match Arena::map(&plan, settings.keep_free_bytes()) {
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
    let pool = Workers::start(&settings.cores)?;
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
            say(args, &format!("read {:>14} pages, {threads:2} threads: {best} GB/s, {by}", kind.name))?;
            let ways = rounds.0.iter().map(|(by, figures)| (by.to_string(), Spread::of(figures).json()));
            let ways: serde_json::Map<String, Value> = ways.collect();
            rows.push(json!({
                "page_bytes": kind.arena.page().bytes(), "transparent": kind.name.starts_with("transparent"),
                "threads": threads, "read_gbs": best.median, "min": best.min, "max": best.max, "way": by.to_string(),
                "ways": ways,
            }));
        }
    }
    let mut lines = Vec::new();
    if let Some((&first, others)) = settings.cores.split_first() {
        for &other in others {
            let ns = match (0..args.repeat).map(|_| line_ns([first, other])).collect::<Result<Vec<_>>>() {
                Ok(ns) => Spread::of(&ns),
                Err(e) => {
                    note(&format!("a cache line between CPUs not measured: {e}"));
                    break;
                }
            };
            say(args, &format!("a cache line from CPU {first} to {other}: {ns:.0} ns"))?;
            lines.push(json!({"cpus": [first, other], "ns": ns.json()}));
        }
    }
    Ok(json!({
        "bytes": BYTES, "tier": kernels.tier().name(), "repetitions": args.repeat, "read": rows, "cache_line": lines,
    }))
}

/// Nanoseconds that a cache line written on one of two CPUs takes to the other: some 30 below one L3, some 170 between two.
fn line_ns(cpus: [usize; 2]) -> Result<f64> {
    /// What is written where a thread gives up.
    const OVER: usize = usize::MAX;
    #[repr(align(128))]
    struct Line(AtomicUsize);
    let line = Line(AtomicUsize::new(0));
    // The first of two waits for even numbers and writes the next, the second for odd ones.
    let play = |number: usize| -> Result<Instant> {
        cpu::pin_to(cpus[number]).inspect_err(|_| line.0.store(OVER, Ordering::Release))?;
        let mut begun = Instant::now();
        for turn in 0..2 * ROUND_TRIPS {
            let awaited = 2 * turn + number;
            while line.0.load(Ordering::Acquire) != awaited {
                if line.0.load(Ordering::Acquire) == OVER {
                    return Ok(begun);
                }
                std::hint::spin_loop();
            }
            if turn == ROUND_TRIPS {
                begun = Instant::now();
            }
            line.0.store(awaited + 1, Ordering::Release);
        }
        Ok(begun)
    };
    let [first, second] = std::thread::scope(|scope| {
        let second = thread(scope, || play(1).map(|begun| begun.elapsed()))?;
        let first = thread(scope, || play(0).map(|begun| begun.elapsed()));
        // The second waits for the first.
        let first = first.inspect_err(|_| line.0.store(OVER, Ordering::Release))?;
        Ok::<_, Error>([first, second].map(|player| player.join().expect("it does not panic")))
    })?;
    let seconds = first?.max(second?).as_secs_f64();
    Ok(seconds * 1e9 / (2 * ROUND_TRIPS) as f64)
}

/// Every count up to 4, then powers of two, and all.
fn thread_counts(most: usize) -> Vec<usize> {
    (1..=most).filter(|&n| n <= 4 || n.is_power_of_two() || n == most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_takes_some_time_between_two_cpus_and_a_wrong_one_is_an_error() {
        let cpus = cpu::allowed().unwrap();
        if let [first, second, ..] = cpus[..] {
            assert!(line_ns([first, second]).unwrap() > 1.0);
        }
        assert!(line_ns([usize::MAX, usize::MAX]).is_err());
    }

    #[test]
    fn counts_of_threads() {
        assert_eq!(thread_counts(1), [1]);
        assert_eq!(thread_counts(12), [1, 2, 3, 4, 8, 12]);
    }
}
