//! Huge pages that are given back with HVO on: on the kernel of this box, and on made-up ones that lose them. All of it needs
//! root; without, each test says that it skips.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/cli.rs"]
mod cli;
#[path = "common/pool.rs"]
mod pool;

use std::fs;
use std::process::{Command, Stdio};

use brim::memory::{GiveBack, Host};
use cli::{Dir, Ran, brim, run};
use pool::Pool;
use serde_json::Value;

/// Where a good trial is noted.
const NOTE: &str = "/run/brim-hvo-give-back";

/// A run that needs huge pages, under a board.
fn answer(board: &str) -> [&str; 10] {
    ["run", "--hugepages", "--ctx", "64", "-n", "4", "-p", "How?", "--board", board]
}

/// brim where the kernel file `path` says `text`.
fn brim_where(dir: &Dir, (path, text): (&str, &str), words: &[&str]) -> Ran {
    let made_up = dir.file("made-up", format!("{text}\n"));
    let script = format!("mount --bind {made_up} {path} && exec \"$@\"");
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &script, "sh", env!("CARGO_BIN_EXE_brim")]).args(words);
    command.stdin(Stdio::null()).output().unwrap().into()
}

fn finding(report: &Value) -> &Value {
    let findings = report["findings"].as_array().unwrap();
    findings.iter().find(|finding| finding["name"] == "HVO give-back").unwrap_or_else(|| panic!("{report}"))
}

/// A pool without free pages; `None` where there is nothing to give back with HVO on.
fn pool_and_hvo() -> Option<Pool> {
    let pool = Pool::with_exactly(0)?;
    if !Host::default().hvo().available {
        eprintln!("SKIPPED: this kernel has no HVO");
        return None;
    }
    Some(pool)
}

#[test]
fn this_kernel_is_tried_once_and_left_as_it_was() {
    let Some(pool) = pool_and_hvo() else { return };
    let state = || {
        let taint = fs::read_to_string("/proc/sys/kernel/tainted").unwrap();
        (pool.state(), Host::default().hvo(), taint)
    };
    let before = state();
    let _ = fs::remove_file(NOTE);
    let report = run(&["doctor", "--json"]).json();
    if let GiveBack::Breaks(why) = Host::default().give_back() {
        assert_eq!(report["give_back"], "breaks", "{report}");
        return eprintln!("SKIPPED: {why}");
    }
    assert_eq!((&report["give_back"], &finding(&report)["state"]), (&"works".into(), &"ok".into()));
    assert_eq!(state(), before, "after a trial by doctor");
    assert_eq!(
        fs::read_to_string(NOTE).unwrap(),
        fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim()
    );
    // The first reservation tries as well.
    fs::remove_file(NOTE).unwrap();
    let dir = Dir::new("give-back");
    let board = dir.file("board.toml", "[memory]\nreserve = true\nhvo = true\n");
    brim(&answer(&board)).output().map(Ran::from).unwrap().good();
    assert_eq!(state(), before, "after a run");
    assert_eq!(Host::default().give_back(), GiveBack::Works);
}

#[test]
fn a_kernel_that_loses_pages_is_given_none_back() {
    let Some(pool) = pool_and_hvo() else { return };
    let dir = Dir::new("give-back-broken");
    let board = dir.file("board.toml", "[memory]\nreserve = true\nhvo = true\n");
    let without_hvo = dir.file("without.toml", "[memory]\nreserve = true\n");
    let before = (pool.state(), Host::default().hvo());
    let known = ("/proc/sys/kernel/osrelease", "6.12.116+deb13-amd64");
    let tainted = ("/proc/sys/kernel/tainted", "32");
    if Host::default().hvo().enabled {
        return eprintln!("SKIPPED: HVO is switched on, so nothing is reserved without it");
    }
    let usual = brim(&answer(&without_hvo)).output().map(Ran::from).unwrap().good();
    for (kernel, why) in [(known, "Linux 6.12.116 is known to lose"), (tainted, "has reported a bad page")] {
        let refused = brim_where(&dir, kernel, &answer(&board));
        let boot = "hugetlb_free_vmemmap=on` to the kernel command line";
        refused.fails(5, &[why, "memory.reserve = false", boot, "memory.hvo = false"]);
        let plan = brim_where(&dir, kernel, &["plan", "--hugepages", "--ctx", "64", "--board", &board]);
        assert!(plan.code == Some(5) && plan.stderr.contains(why), "{plan:?}");
        // What is lost is what HVO has touched; and what a pool has from the boot on is never given back.
        assert_eq!(brim_where(&dir, kernel, &answer(&without_hvo)).good(), usual);
        pool.set_room(64).unwrap();
        assert_eq!(brim_where(&dir, kernel, &answer(&board)).good(), usual);
        pool.set_room(0).unwrap();
        let report = brim_where(&dir, kernel, &["doctor", "--json", "--board", &board]).json();
        assert_eq!((&report["give_back"], &finding(&report)["state"]), (&"breaks".into(), &"problem".into()));
        assert!(finding(&report)["mend"].as_str().unwrap().contains("hugetlb_free_vmemmap=on"), "{report}");
        let report = brim_where(&dir, kernel, &["doctor", "--json"]).json();
        assert_eq!(finding(&report)["state"], "note");
        assert_eq!((pool.state(), Host::default().hvo()), before);
    }
}
