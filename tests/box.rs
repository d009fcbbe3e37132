//! What the box does to a start: pools that are grown and given back, pages of 1 GiB, cgroup limits, disks that fail. All
//! of it real, so all of it needs root; without, each test says that it skips.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/cli.rs"]
mod cli;
#[path = "common/pool.rs"]
mod pool;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use brim::memory::{Arena, Host, PageKind, Plan, RegionName};
use cli::{Dir, Ran, brim, golden, run};
use pool::Pool;

const GIB: u64 = 1 << 30;

/// Says why a test does not run; with `REQUIRE_HUGEPAGES=1` it is a failure.
fn skip(why: &str) {
    assert!(std::env::var("REQUIRE_HUGEPAGES").map_or(true, |value| value != "1"), "required, but {why}");
    eprintln!("SKIPPED: {why}");
}

fn demo(more: &[&str]) -> Vec<String> {
    let words = ["run", "--hugepages", "--ctx", "64", "-n", "4", "-p", "How?"];
    words.iter().chain(more).map(|word| (*word).to_owned()).collect()
}

#[test]
fn reserve_adds_exactly_what_is_missing_and_leaves_nothing_behind() {
    let Some(pool) = Pool::with_room(0) else { return };
    let dir = Dir::new("box-reserve");
    let board = dir.file("board.toml", "[memory]\nreserve = true\nhvo = true\n");
    let (before, hvo) = (pool.state(), Host::default().hvo());
    let plan = run(&["plan", "--hugepages", "--ctx", "64", "--json"]);
    let plan: serde_json::Value = serde_json::from_str(&plan.stdout).unwrap();
    let need = plan["total_pages"].as_u64().unwrap();
    let words = demo(&["--board", &board, "-v"]);
    let ran: Ran = brim(&words).output().unwrap().into();
    let said = format!("{} pages of 2 MiB added to the pool", need.saturating_sub(before.available()));
    assert!(ran.stderr.contains(&said), "{said:?} not in {ran:?}");
    ran.good();
    assert_eq!((pool.state(), Host::default().hvo()), (before, hvo), "after a good end");
    // An error after the pool was grown: a prompt longer than the context.
    let long = "word ".repeat(100);
    let ran: Ran = brim(&demo(&["--board", &board, "--raw", "-f", &dir.file("p", &long)])).output().unwrap().into();
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert_eq!(pool.state(), before, "after an error");
    // Killed while it generates: what it had goes with it.
    let words = ["run", "--hugepages", "--ctx", "16384", "--raw", "--temp", "0", "-p", "a b c", "-m"];
    let model = golden("qwen3-mixed");
    let mut child = brim(&[&words[..], &[&model, "--board", &board]].concat())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begun = std::time::Instant::now();
    while pool.state().surplus == before.surplus {
        assert!(begun.elapsed().as_secs() < 20, "no surplus page in {:?}", pool.state());
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert_eq!(child.try_wait().unwrap(), None, "it still runs");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!((pool.state(), Host::default().hvo()), (before, hvo), "after kill -9");
}

#[test]
fn a_short_pool_falls_back_only_where_the_board_says_so_and_says_it() {
    let Some(_pool) = Pool::with_room(0) else { return };
    let dir = Dir::new("box-fallback");
    let board = dir.file("board.toml", "[memory]\nfallback = \"small-pages\"\n");
    // 24 GiB of KV cache fit no pool of a test box, and no small pages either.
    let words = ["run", "--hugepages", "-p", "a", "--ctx", "16777216"];
    run(&words).fails(5, &["short by"]);
    let ran: Ran = brim(&demo(&["--board", &board])).output().unwrap().into();
    if !ran.stderr.contains("ordinary pages instead of 2 MiB ones (memory.fallback = \"small-pages\")") {
        return skip("the pool of this box has room for the demo model");
    }
    ran.good();
}

/// A pool of 1 GiB pages, given back on drop.
struct Giants(u64);

const GIANTS: &str = "/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages";

impl Giants {
    fn new(pages: u64) -> Option<Giants> {
        let before: u64 = fs::read_to_string(GIANTS).ok()?.trim().parse().ok()?;
        let giants = Giants(before);
        fs::write(GIANTS, (before + pages).to_string()).ok()?;
        (Host::default().pool(PageKind::Huge1G)?.available() >= pages).then_some(giants)
    }
}

impl Drop for Giants {
    fn drop(&mut self) {
        fs::write(GIANTS, self.0.to_string()).unwrap();
    }
}

#[test]
fn pages_of_1_gib_and_a_mixture_are_taken_as_planned() {
    let Some(pool) = Pool::with_room(8) else { return };
    let Some(_giants) = Giants::new(2) else { return skip("no two pages of 1 GiB are to be had") };
    let host = Host::default();
    let giants = || host.pool(PageKind::Huge1G).unwrap();
    let (before, small_before) = (giants(), pool.state());
    // One whole GiB and a bit, and a region smaller than that.
    let mut plan = Plan::packed();
    plan.add(RegionName::Weights, GIB + 5).unwrap();
    plan.add(RegionName::Kv, 3 << 20).unwrap();
    let mut arena = Arena::reserve(&plan, 0).unwrap();
    let pages = arena.pages();
    let regions = arena.open();
    let (mut weights, kv) = (regions.weights, regions.kv);
    pages.populate(weights.bytes()).unwrap();
    pages.populate(kv).unwrap();
    assert_eq!(before.free - giants().free, 1, "1 GiB pages");
    assert_eq!(small_before.free - pool.state().free, 3, "2 MiB pages");
    weights.bytes()[GIB as usize + 4] = 7;
    assert!(weights.bytes()[..GIB as usize].iter().all(|&byte| byte == 0));
    let sealed = weights.seal().unwrap();
    assert_eq!(sealed[GIB as usize + 4], 7);
    kv[0] = 1;
    drop(arena);
    assert_eq!((giants(), pool.state()), (before, small_before));
    // The whole program: all in 1 GiB pages would take one for each region; packed it takes as many as the plan says.
    let words = ["--ctx", "1048576", "--page-size", "auto"];
    let plan: serde_json::Value = {
        let ran = run(&[&["plan", "--hugepages", "--json"], &words[..]].concat());
        serde_json::from_str(&ran.stdout).unwrap()
    };
    let (large, small) = (plan["packed"]["pages_1g"].as_u64().unwrap(), plan["packed"]["pages_2m"].as_u64().unwrap());
    assert_eq!((large * GIB + small * (2 << 20)), plan["total_bytes"].as_u64().unwrap(), "{plan}");
    assert_eq!(large, 1, "{plan}");
    drop(pool);
    let Some(pool) = Pool::with_room(small) else { return };
    let before = (giants(), pool.state());
    let ran: Ran = brim(&demo(&["--page-size", "auto"])).output().unwrap().into();
    ran.good();
    let ran = run(&[&["run", "--hugepages", "-n", "2", "-p", "How?"], &words[..]].concat());
    ran.good();
    assert_eq!((giants(), pool.state()), before);
}

#[test]
fn without_pages_of_1_gib_the_message_says_how() {
    let Some(_pool) = Pool::with_room(0) else { return };
    match Host::default().pool(PageKind::Huge1G) {
        None => return skip("this kernel has no pages of 1 GiB"),
        Some(pool) if pool.available() > 0 => return skip("the pool has pages of 1 GiB"),
        Some(_) => {}
    }
    let parts = ["1 GiB", "need ", GIANTS, "hugepagesz=1G hugepages="];
    run(&demo(&["--page-size", "1G"])).fails(5, &parts);
}

/// A cgroup (v2) with a limit of 2 MiB pages, removed on drop.
struct Group(PathBuf);

impl Group {
    fn new(limit_bytes: u64) -> Option<Group> {
        let root = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].into_iter().map(Path::new).find(|root| {
            fs::read_to_string(root.join("cgroup.controllers")).is_ok_and(|text| text.contains("hugetlb"))
        })?;
        fs::write(root.join("cgroup.subtree_control"), "+hugetlb").ok()?;
        let group = Group(root.join(format!("brim-test-{}", std::process::id())));
        fs::create_dir(&group.0).ok()?;
        fs::write(group.0.join("hugetlb.2MB.max"), limit_bytes.to_string()).ok()?;
        Some(group)
    }

    /// Runs brim in the group; `hidden` in a namespace in which it cannot see the limit.
    fn run(&self, words: &[String], hidden: bool) -> Ran {
        let unshare = if hidden { "exec unshare -C \"$@\"" } else { "exec \"$@\"" };
        let script = format!("echo $$ > {}/cgroup.procs && {unshare}", self.0.display());
        let program = env!("CARGO_BIN_EXE_brim");
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh", program]).args(words).stdin(Stdio::null());
        command.output().unwrap().into()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_cgroup_limit_is_exit_5_before_and_during_the_load() {
    let Some(pool) = Pool::with_room(64) else { return };
    let Some(group) = Group::new(4 << 20) else { return skip("no cgroup v2 with the hugetlb controller") };
    let before = pool.state();
    let words = demo(&[]);
    group.run(&words, false).fails(5, &["cgroup limit of hugetlb.2MB is too small", "4.0 MiB left", "hugetlb.2MB.max"]);
    // Where brim cannot see it, the kernel still refuses the pages: an error of madvise, never a SIGBUS.
    let ran = group.run(&words, true);
    ran.fails(5, &["could not be faulted in", "madvise", "cgroup hugetlb limits"]);
    assert_eq!(pool.state(), before);
}

#[test]
fn a_disk_that_fails_is_exit_4_with_offset_and_cause() {
    // An ext4 on a loop device whose file loses its end: what lay there is an EIO of a real block device.
    let dir = Dir::new("box-eio");
    let (image, mount) = (dir.at("image"), dir.at("mount"));
    let sh = |script: &str| Command::new("sh").args(["-ec", script]).output().unwrap();
    fs::create_dir(&mount).unwrap();
    let made = sh(&format!("truncate -s 64M {image} && mkfs.ext4 -q -m 0 {image} && mount -o loop {image} {mount}"));
    if !made.status.success() {
        return skip(&String::from_utf8_lossy(&made.stderr));
    }
    let model = format!("{mount}/m.gguf");
    let filler = "for i in 1 2 3 4 5 6 7 8; do head -c 4M /dev/urandom > $M/fill$i; done";
    let copied = sh(&format!("M={mount}; {filler}; cp {} {model}; sync", golden("qwen3-mixed")));
    let words = ["run", "--raw", "-p", "a", "-n", "1", "--ctx", "64", "-m", &model];
    let good = run(&words);
    // Where the model's last block lies.
    let lies = sh(&format!("filefrag -v -b4096 {model} | awk '/^ *[0-9]+:/ {{ end = $5 }} END {{ print end + 0 }}'"));
    let last: u64 = String::from_utf8_lossy(&lies.stdout).trim().parse().unwrap_or(0);
    let cut =
        sh(&format!("truncate -s {} {image} && echo 3 > /proc/sys/vm/drop_caches", last.saturating_sub(8) * 4096));
    let failed = ["auto", "buffered", "direct"].map(|io| run(&[&words[..], &["--io", io]].concat()));
    sh(&format!("umount {mount} || umount -l {mount}"));
    assert!(copied.status.success() && cut.status.success(), "{copied:?} {cut:?}");
    good.good();
    if last == 0 {
        return skip("filefrag does not say where a file lies");
    }
    for ran in failed {
        ran.fails(4, &[&model, "reading at offset ", "Input/output error", "check the disk"]);
    }
}
