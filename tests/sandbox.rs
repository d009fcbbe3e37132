//! What a sandbox forbids and brim can do without costs speed or a safeguard, says so once, and changes nothing else.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/cli.rs"]
mod cli;
#[path = "common/seccomp.rs"]
mod seccomp;

use brim::memory::{Arena, PageKind, Plan, RegionName};
use brim::sys::support::Support;
use brim::sys::{cpu, map};
use cli::{Dir, Ran, brim, golden, run};
use seccomp::{forbid, forbidding};
use serde_json::Value;

const ANSWER: [&str; 5] = ["run", "-p", "How do I reserve huge pages?", "-n", "8"];

fn run_without(words: &[&str], call: libc::c_long, errno: i32) -> Ran {
    forbidding(brim(words), &[call], errno).output().unwrap().into()
}

#[test]
fn what_can_be_done_without_is_done_without() {
    let dir = Dir::new("sandbox");
    let model = dir.file("model.gguf", std::fs::read(golden("llama-f32")).unwrap());
    let words = ["run", "-m", &model, "--raw", "-p", "A text", "-n", "8", "--temp", "0"];
    let want = run(&words).good();
    for (name, call) in [
        ("mseal", libc::SYS_mseal),
        ("sched_setaffinity", libc::SYS_sched_setaffinity),
        ("mbind", libc::SYS_mbind),
        ("userfaultfd", libc::SYS_userfaultfd),
        ("cachestat", CACHESTAT),
        ("mincore", libc::SYS_mincore),
        ("fadvise64", libc::SYS_fadvise64),
        ("madvise", libc::SYS_madvise),
        ("sched_yield", libc::SYS_sched_yield),
        ("prlimit64", libc::SYS_prlimit64),
        ("ppoll", libc::SYS_ppoll),
    ] {
        for errno in [libc::EPERM, libc::ENOSYS] {
            let ran = run_without(&words, call, errno);
            assert_eq!((ran.code, &ran.stdout), (Some(0), &want), "{name} fails with {errno}: {ran:?}");
        }
    }
}

/// In no version of libc that is in use.
const CACHESTAT: libc::c_long = 451;

#[test]
fn weights_that_cannot_be_sealed_are_read_only_and_it_is_said_once() {
    let ran = run_without(&ANSWER, libc::SYS_mseal, libc::EPERM);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let said: Vec<&str> = ran.stderr.lines().filter(|line| line.contains("mseal")).collect();
    assert_eq!(said.len(), 1, "{ran:?}");
    for part in ["WARN", "read-only", "not sealed", "Operation not permitted", "SystemCallFilter=mseal"] {
        assert!(said[0].contains(part), "{part:?} is missing in {said:?}");
    }
    // What an old kernel says is what some filters say: the version tells.
    let ran = run_without(&ANSWER, libc::SYS_mseal, libc::ENOSYS);
    let is_old = map::sealing() == Support::Absent;
    assert!(ran.code == Some(0) && ran.stderr.contains("mseal: Function not implemented") != is_old, "{ran:?}");
}

#[test]
fn threads_that_cannot_be_pinned_run_anywhere_and_it_is_said_once() {
    let ran = run_without(&ANSWER, libc::SYS_sched_setaffinity, libc::EPERM);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let said: Vec<&str> = ran.stderr.lines().filter(|line| line.contains("sched_setaffinity")).collect();
    assert_eq!(said.len(), 1, "{ran:?}");
    assert!(said[0].contains("WARN") && said[0].contains("not pinned"), "{said:?}");
    // Benchmarks say what they could not measure.
    if cpu::allowed().unwrap().len() > 1 {
        let ran = run_without(&["bench", "memory", "-r", "1"], libc::SYS_sched_setaffinity, libc::EPERM);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert!(ran.stderr.contains("a cache line between CPUs not measured: sched_setaffinity"), "{ran:?}");
    }
}

#[test]
fn pages_that_cannot_be_spread_lie_where_they_come() {
    let spread = |errno: Option<i32>| {
        std::thread::spawn(move || {
            errno.iter().for_each(|&errno| forbid(&[libc::SYS_mbind], errno).unwrap());
            let mut plan = Plan::new(PageKind::Base4K);
            plan.add(RegionName::Weights, 1 << 20).unwrap();
            let mut arena = Arena::map(&plan, 0).unwrap();
            // A node that is not there is a fault of the caller, and remains one.
            let other = arena.interleave(&[1023]).is_ok();
            arena.interleave(&[0]).unwrap();
            arena.split().weights.fill(1);
            other
        })
        .join()
        .unwrap()
    };
    assert!(spread(Some(libc::EPERM)) && spread(Some(libc::ENOSYS)));
    assert!(!spread(None));
}

#[test]
fn doctor_tells_a_filter_from_a_kernel_that_lacks_the_call() {
    let finding = |report: &Value, name: &str| {
        let findings = report["findings"].as_array().unwrap();
        findings.iter().find(|finding| finding["name"] == name).unwrap_or_else(|| panic!("{name}: {report}")).clone()
    };
    let report = |call, errno| run_without(&["doctor", "--json"], call, errno).json();
    let usual = run(&["doctor", "--json"]).json();
    let has_mseal = usual["kernel"]["mseal"] == true;
    if !has_mseal {
        eprintln!("SKIPPED in part: this kernel has no mseal");
    }
    let filtered = report(libc::SYS_mseal, libc::EPERM);
    let seal = finding(&filtered, "mseal");
    assert_eq!((&filtered["kernel"]["mseal"], &seal["state"]), (&false.into(), &"note".into()));
    assert!(seal["text"].as_str().unwrap().contains("a sandbox forbids it (mseal: Operation not permitted"), "{seal}");
    assert!(seal["mend"].as_str().unwrap().contains("SystemCallFilter=mseal"), "{seal}");
    let absent = finding(&report(libc::SYS_mseal, libc::ENOSYS), "mseal");
    let text = absent["text"].as_str().unwrap();
    let want = if has_mseal { "a sandbox forbids it (mseal: Function" } else { "not in this kernel" };
    assert!(text.contains(want), "{absent}");

    assert_eq!(finding(&usual, "pinning")["state"], "ok");
    let pinning = finding(&report(libc::SYS_sched_setaffinity, libc::EPERM), "pinning");
    assert_eq!(pinning["state"], "note");
    assert!(pinning["text"].as_str().unwrap().contains("a sandbox forbids it (sched_setaffinity"), "{pinning}");
}
