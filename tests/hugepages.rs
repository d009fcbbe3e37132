//! The arena on a real pool of huge pages: exact to the page, refused cleanly, nothing lost.
//!
//! Needs root for the pool; `REQUIRE_HUGEPAGES=1` makes a missing pool a failure instead of a skip. What
//! must happen in a process of its own (a race, a crash) runs in this same test binary, started as a child.
#![allow(unsafe_code, reason = "a stray write to sealed weights cannot be made in safe code: that is the point")]

#[path = "common/pool.rs"]
mod pool;

use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};

use brim::memory::{Arena, MemoryError, PageKind, Plan, RegionName};
use pool::Pool;

const PAGE_BYTES: u64 = 2 << 20;
const SIGKILL: i32 = 9;
const SIGSEGV: i32 = 11;

/// A plan of exactly `pages` pages: all five regions if there are enough, each but the weights one page and not full.
fn plan_of(pages: u64) -> Plan {
    let small = if pages >= 5 { 4 } else { pages - 1 };
    let mut plan = Plan::new(PageKind::Huge2M);
    plan.add(RegionName::Weights, (pages - small - 1) * PAGE_BYTES + 1).expect("small");
    for (name, bytes) in RegionName::ALL.into_iter().rev().take(small as usize).zip([1, 4096, PAGE_BYTES - 1, 77]) {
        plan.add(name, bytes).expect("small");
    }
    assert_eq!(plan.total_pages(), pages);
    plan
}

#[test]
fn takes_exactly_the_planned_pages_and_gives_them_back() {
    let Some(pool) = Pool::with_room(64) else { return };
    let free_before = pool.state().free;
    for pages in [1, 2, 5, 37, 64] {
        let plan = plan_of(pages);
        let mut arena = Arena::map(&plan, 0).unwrap();
        assert_eq!(free_before - pool.state().free, pages, "pages taken");
        assert_eq!(arena.mapped_bytes(), plan.total_bytes());
        let regions = arena.split();
        for region in [regions.weights, regions.vocab, regions.kv, regions.states, regions.scratch] {
            assert!(region.as_ptr().addr().is_multiple_of(PAGE_BYTES as usize) || region.is_empty());
            assert!(region.iter().all(|&byte| byte == 0), "reused pages are zeroed");
            region.fill(0xa5);
        }
        let regions = arena.open();
        let weights = regions.weights.seal().unwrap();
        assert_eq!(free_before - pool.state().free, pages, "sealing takes and gives nothing");
        assert!(weights.iter().all(|&byte| byte == 0xa5));
        regions.vocab.fill(1);
        regions.kv.fill(1);
        drop(arena);
        assert_eq!(pool.state().free, free_before, "pages given back");
        assert_eq!(pool.state().reserved, 0);
    }
}

#[test]
fn pages_come_with_their_contents() {
    let Some(pool) = Pool::with_room(8) else { return };
    let before = pool.state();
    let page = PAGE_BYTES as usize;
    let mut arena = Arena::reserve(&plan_of(8), 0).unwrap();
    let pages = arena.pages();
    let weights = arena.split().weights;
    assert!(weights.len() > 2 * page && pool.state().free == before.free, "promised, not there");
    let Some(filling) = pages.filling(weights).filter(|filling| filling.begin()) else {
        return eprintln!("SKIPPED: no userfaultfd");
    };
    assert_eq!(filling.page_bytes(), page);
    let contents: Vec<u8> = (0..page).map(|i| (i % 251) as u8).collect();
    let (first, rest) = weights.split_at_mut(page);
    let (second, third) = rest.split_at_mut(page);
    let (a, b) = first.split_at_mut(12_345);
    filling.fill(&mut [a, b], &contents).unwrap();
    assert_eq!(before.free - pool.state().free, 1);
    filling.populate(&mut second[7..page]).unwrap();
    assert_eq!(before.free - pool.state().free, 2);
    assert!(*first == contents && second.iter().all(|&byte| byte == 0));
    // What is there already is written, and stays as it is elsewhere.
    second[3] = 1;
    let mut half = contents.clone();
    half[..page / 2].fill(0);
    filling.fill(&mut [&mut second[page / 2..]], &half).unwrap();
    assert!(second[3] == 1 && second[page / 2..] == contents[page / 2..]);
    drop(filling);
    // From here on pages come as always.
    pages.populate(third).unwrap();
    assert!(third.iter().all(|&byte| byte == 0));
    let sealed = arena.open().weights.seal().unwrap();
    assert!(sealed[..page] == contents);
    drop(arena);
    assert_eq!(pool.state(), before);
}

#[test]
fn one_page_short_is_refused_with_the_way_out() {
    let Some(pool) = Pool::with_room(8) else { return };
    let before = pool.state();
    let need = before.available() + 1;
    let refused = Arena::map(&plan_of(need), 0).unwrap_err();
    assert_eq!(refused, MemoryError::PoolShort { need, pool: before });
    let text = refused.to_string();
    for part in [
        "short by 1 pages of 2 MiB".to_owned(),
        format!("need {need}, free {} of {} total", before.free, before.total),
        format!("`sysctl -w vm.nr_hugepages={}`", before.total - before.surplus + 1),
    ] {
        assert!(text.contains(&part), "{part:?} missing in {text:?}");
    }
    assert_eq!(pool.state(), before, "a refusal leaves nothing behind");
    // The line it names is the right one: with that pool the same plan fits.
    drop(pool);
    let Some(pool) = Pool::with_room(need) else { return };
    assert_eq!(pool.state().total, before.total + 1);
    Arena::map(&plan_of(need), 0).unwrap();
}

#[test]
fn of_two_racing_for_the_last_pages_exactly_one_wins() {
    let Some(pool) = Pool::with_room(16) else { return };
    let before = pool.state();
    let need = before.available();
    for round in 0..20 {
        let mut racers = [(); 2].map(|()| Racer::start("race", need));
        racers.iter_mut().for_each(|racer| assert_eq!(racer.line(), "ready"));
        racers.iter_mut().for_each(Racer::go_on);
        let mut answers = racers.each_mut().map(Racer::line);
        assert_eq!(pool.state().free, before.free - need, "round {round}: {answers:?}");
        let ends = racers.map(Racer::finish);
        assert!(ends.iter().all(ExitStatus::success), "round {round}: {ends:?}");
        answers.sort_unstable();
        assert_eq!(answers, [format!("short: need {need}"), "won".to_owned()], "round {round}");
        assert_eq!(pool.state(), before, "round {round}");
    }
}

#[test]
fn a_write_to_sealed_weights_is_a_sigsegv() {
    let Some(pool) = Pool::with_room(8) else { return };
    let before = pool.state();
    let mut child = Racer::start("write-sealed", 8);
    assert_eq!(child.line(), "sealed");
    child.go_on();
    assert_eq!(child.finish().signal(), Some(SIGSEGV));
    assert_eq!(pool.state(), before);
}

#[test]
fn a_killed_process_leaves_the_pool_whole() {
    let Some(pool) = Pool::with_room(8) else { return };
    let before = pool.state();
    let mut child = Racer::start("race", 8);
    assert_eq!(child.line(), "ready");
    child.go_on();
    assert_eq!(child.line(), "won");
    assert_eq!(pool.state().free, before.free - 8);
    child.process.kill().unwrap();
    assert_eq!(child.finish().signal(), Some(SIGKILL));
    assert_eq!(pool.state(), before);
}

/// This test binary in another process, playing a role of [`child`]. It speaks lines on stderr, where the
/// test harness says nothing, and goes on for each line it gets.
struct Racer {
    process: Child,
    lines: Lines<BufReader<ChildStderr>>,
}

impl Racer {
    fn start(role: &str, pages: u64) -> Racer {
        let mut process = Command::new(std::env::current_exe().expect("a running test has a path"))
            .args(["--exact", "child", "--ignored", "--nocapture"])
            .env("BRIM_TEST_ROLE", role)
            .env("BRIM_TEST_PAGES", pages.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the test binary starts");
        let lines = BufReader::new(process.stderr.take().expect("piped")).lines();
        Racer { process, lines }
    }

    fn line(&mut self) -> String {
        self.lines.next().expect("the child died early").expect("UTF-8")
    }

    fn go_on(&mut self) {
        self.process.stdin.as_mut().expect("piped").write_all(b"\n").expect("the child waits");
    }

    /// Closes the child's stdin, which ends its waiting, and returns how it ended.
    fn finish(mut self) -> ExitStatus {
        drop(self.process.stdin.take());
        self.process.wait().expect("it was started")
    }
}

#[test]
#[ignore = "the other end of the tests above, which start it"]
fn child() {
    let (Ok(role), Ok(pages)) = (std::env::var("BRIM_TEST_ROLE"), std::env::var("BRIM_TEST_PAGES")) else { return };
    let plan = plan_of(pages.parse().unwrap());
    let mut parent = std::io::stdin().lock();
    let mut go = [0];
    match role.as_str() {
        "race" => {
            eprintln!("ready");
            parent.read_exact(&mut go).unwrap();
            let mut arena = match Arena::map(&plan, 0) {
                Err(MemoryError::PoolShort { need, .. }) => return eprintln!("short: need {need}"),
                other => other.unwrap(),
            };
            let regions = arena.split();
            for region in [regions.weights, regions.vocab, regions.kv, regions.states, regions.scratch] {
                region.fill(1);
            }
            eprintln!("won");
            parent.read_to_end(&mut Vec::new()).unwrap();
        }
        "write-sealed" => {
            let mut arena = Arena::map(&plan, 0).unwrap();
            arena.split().weights.fill(7);
            let regions = arena.open();
            let weights = regions.weights.seal().unwrap();
            regions.scratch.fill(3);
            assert!(weights.iter().all(|&byte| byte == 7));
            eprintln!("sealed");
            parent.read_exact(&mut go).unwrap();
            let last = weights.as_ptr_range().end.wrapping_sub(1).cast_mut();
            // SAFETY: none: the page is read-only, so the kernel ends the process here, before anything changes.
            unsafe { last.write_volatile(8) };
            eprintln!("still alive");
        }
        other => panic!("no role {other}"),
    }
}
