//! What the host does to a start: pools that are grown and given back, pages of 1 GiB, cgroup limits, disks that fail. All
//! of it real, so all of it needs root; without, each test says that it skips.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/cgroup.rs"]
mod cgroup;
#[path = "common/cli.rs"]
mod cli;
#[path = "common/pool.rs"]
mod pool;
#[path = "common/serve.rs"]
mod serve;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use brim::memory::{Arena, GiveBack, Host, PageKind, Plan, RegionName};
use cgroup::Group;
use cli::{Dir, Ran, brim, golden, run};
use pool::Pool;
use serve::Server;

const GIB: u64 = 1 << 30;

const FEW_GIANTS: &str = "as many pages of 1 GiB are not to be had";

/// Says why a test does not run; with `REQUIRE_HUGEPAGES=1` it is a failure.
fn skip(why: &str) {
    assert!(std::env::var("REQUIRE_HUGEPAGES").map_or(true, |value| value != "1"), "required, but {why}");
    eprintln!("SKIPPED: {why}");
}

/// The same for what a box that has been up for long may lack even if it has all the rest: memory in one piece.
fn skip_fragmented(why: &str) {
    eprintln!("SKIPPED: {why}");
}

fn demo(more: &[&str]) -> Vec<String> {
    let words = ["run", "--hugepages", "--ctx", "64", "-n", "4", "-p", "How?"];
    words.iter().chain(more).map(|word| (*word).to_owned()).collect()
}

#[test]
fn reserve_adds_exactly_what_is_missing_and_leaves_nothing_behind() {
    let Some(pool) = Pool::with_exactly(0) else { return };
    let dir = Dir::new("box-reserve");
    let board = dir.file("board.toml", "[memory]\nreserve = true\nhvo = true\n");
    if let GiveBack::Breaks(why) = Host::default().give_back() {
        return skip(&why.to_string());
    }
    let (before, hvo) = (pool.state(), Host::default().hvo());
    let plan = run(&["plan", "--hugepages", "--ctx", "64", "--json"]);
    let plan: serde_json::Value = serde_json::from_str(&plan.stdout).unwrap();
    let need = plan["total_pages"].as_u64().unwrap();
    let words = demo(&["--board", &board, "-v"]);
    let ran: Ran = brim(&words).output().unwrap().into();
    let said = format!("{need} pages of 2 MiB added to the pool");
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
    let Some(_pool) = Pool::with_exactly(0) else { return };
    let dir = Dir::new("box-fallback");
    let board = dir.file("board.toml", "[memory]\nfallback = \"small-pages\"\n");
    // 24 GiB of KV cache fit no pool of a test box, and no small pages either.
    let words = ["run", "--hugepages", "-p", "a", "--ctx", "16777216"];
    run(&words).fails(5, &["short by"]);
    let ran: Ran = brim(&demo(&["--board", &board])).output().unwrap().into();
    assert!(ran.stderr.contains(FALLBACK), "{ran:?}");
    // The closing note is about the pages that were mapped.
    let note = ran.stderr.lines().find(|line| line.contains("tokens/s; ")).unwrap();
    assert!(note.contains(" pages of 4 KiB, resident "), "{note}");
    ran.good();
    // So are the status page and the metrics of a server.
    for (words, fallback) in [(&["--hugepages", "--board", &board][..], 1), (&["--board", &board], 0)] {
        let server = Server::start(&[words, &["--ctx", "64"]].concat());
        let metrics = server.get("/metrics").text();
        for line in ["brim_page_bytes 4096".to_owned(), format!("brim_page_fallback {fallback}")] {
            assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
        }
        let facts = &server.get("/status").json()["facts"];
        assert_eq!((&facts["page_bytes"], &facts["hugepages"]), (&4096.into(), &false.into()), "{facts}");
        assert_eq!((&facts["fallback"], &facts["fits"]), (&(fallback == 1).into(), &true.into()), "{facts}");
    }
}

/// What is logged where ordinary pages stand for huge ones.
const FALLBACK: &str = "ordinary pages instead of 2 MiB ones (memory.fallback = \"small-pages\")";

#[test]
fn a_holder_falls_back_only_where_the_board_says_so_and_its_users_are_served() {
    let Some(_pool) = Pool::with_exactly(0) else { return };
    let dir = Dir::new("box-hold-fallback");
    let (model, socket) = (golden("qwen3-mixed"), dir.at("s.sock"));
    let board = dir.file("board.toml", "[memory]\nfallback = \"small-pages\"\n");
    let words = ["hold", "--hugepages", "-m", &model, "--socket", &socket];
    run(&words).fails(5, &["short by", "pages of 2 MiB"]);
    let mut holder = brim(&[&words[..], &["--board", &board]].concat());
    let mut holder = holder.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut ready = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    let user = run(&["run", "--raw", "-p", "a b c", "-n", "2", "--ctx", "64", "-m", &model, "--resident", &socket]);
    holder.kill().unwrap();
    let said = String::from_utf8(holder.wait_with_output().unwrap().stderr).unwrap();
    assert!(ready.starts_with("ready: ") && ready.contains(" in 4 KiB pages"), "{ready:?}");
    assert!(said.contains(FALLBACK), "{said}");
    user.good();
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
    let Some(_giants) = Giants::new(2) else { return skip_fragmented(FEW_GIANTS) };
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
    if let Err(why) = pool.make_room(small) {
        return skip(&why);
    }
    let before = (giants(), pool.state());
    let ran: Ran = brim(&demo(&["--page-size", "auto"])).output().unwrap().into();
    ran.good();
    let ran = run(&[&["run", "--hugepages", "-n", "2", "-p", "How?"], &words[..]].concat());
    ran.good();
    assert_eq!((giants(), pool.state()), before);
}

#[test]
fn without_pages_of_1_gib_the_message_says_how() {
    let Some(_pool) = Pool::with_exactly(0) else { return };
    match Host::default().pool(PageKind::Huge1G) {
        None => return skip("this kernel has no pages of 1 GiB"),
        Some(pool) if pool.available() > 0 => return skip("the pool has pages of 1 GiB"),
        Some(_) => {}
    }
    let parts = ["1 GiB", "need ", GIANTS, "hugepagesz=1G hugepages="];
    run(&demo(&["--page-size", "1G"])).fails(5, &parts);
}

#[test]
fn the_whole_program_runs_in_pages_of_1_gib_from_the_pool_and_reserved() {
    let Some(_pool) = Pool::with_exactly(0) else { return };
    let plan = run(&["plan", "--hugepages", "--page-size", "1G", "--ctx", "64", "--json"]);
    let plan: serde_json::Value = serde_json::from_str(&plan.stdout).unwrap();
    let need = plan["total_pages"].as_u64().unwrap();
    assert!(need >= 4 && plan["page_bytes"].as_u64() == Some(GIB), "a page for each region: {plan}");
    let Some(giants) = Giants::new(need) else { return skip_fragmented(FEW_GIANTS) };
    let host = Host::default();
    let state = || host.pool(PageKind::Huge1G).unwrap();
    let before = state();
    let want = run(&demo(&[])[..1].iter().cloned().chain(demo(&[])[2..].iter().cloned()).collect::<Vec<_>>()).good();
    let ran: Ran = brim(&demo(&["--page-size", "1G", "-v"])).output().unwrap().into();
    assert!(ran.stderr.contains(&format!("{need} pages of 1 GiB")), "{ran:?}");
    assert_eq!(ran.good(), want);
    assert_eq!(state(), before);
    // One page short, then added for the length of the run.
    drop(giants);
    let Some(_giants) = Giants::new(need - 1) else { return skip_fragmented(FEW_GIANTS) };
    let before = state();
    if before.available() >= need {
        return skip("the pool has pages of 1 GiB to spare");
    }
    run(&demo(&["--page-size", "1G"])).fails(5, &["short by 1 pages of 1 GiB", GIANTS]);
    let dir = Dir::new("box-giants");
    let board = dir.file("board.toml", "[memory]\nreserve = true\n");
    let ran: Ran = brim(&demo(&["--page-size", "1G", "-v", "--board", &board])).output().unwrap().into();
    assert!(ran.stderr.contains("1 pages of 1 GiB added to the pool"), "{ran:?}");
    assert_eq!(ran.good(), want);
    assert_eq!(state(), before);
}

#[test]
fn a_pool_that_shrinks_during_the_start_is_exit_5_or_no_harm() {
    let plan = run(&["plan", "--hugepages", "--ctx", "64", "--json"]);
    let plan: serde_json::Value = serde_json::from_str(&plan.stdout).unwrap();
    let need = plan["total_pages"].as_u64().unwrap();
    let Some(pool) = Pool::with_exactly(need) else { return };
    let setting = "/proc/sys/vm/nr_hugepages";
    let (mut good, mut refused) = (0, 0);
    // From before brim has looked at the pool to long after it has loaded.
    for round in 0..60u64 {
        if let Err(why) = pool.set_room(need) {
            return skip(&why);
        }
        let child = brim(&demo(&[])).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_micros(round * 500));
        fs::write(setting, "0").unwrap();
        let ran: Ran = child.wait_with_output().unwrap().into();
        match ran.code {
            Some(0) => good += 1,
            _ => {
                refused += 1;
                ran.fails(5, &["the huge-page pool is short by", "`sysctl -w vm.nr_hugepages="]);
            }
        }
        let left = pool.state();
        assert_eq!((left.total, left.free, left.reserved), (0, 0, 0), "round {round}: nothing is left behind");
    }
    println!("{good} runs began before the pool had shrunk, {refused} were refused");
    assert!(good > 0 && refused > 0, "{good} good, {refused} refused");
}

#[test]
fn a_cgroup_limit_is_exit_5_before_and_during_the_load() {
    let Some(pool) = Pool::with_room(64) else { return };
    let Some(group) = Group::new(4 << 20) else { return skip("no cgroup v2 with the hugetlb controller") };
    let before = pool.state();
    let words = demo(&[]);
    Ran::from(group.command(&words, false).output().unwrap())
        .fails(5, &["cgroup limit of hugetlb.2MB is too small", "4.0 MiB left", "hugetlb.2MB.max"]);
    // Where brim cannot see it, the kernel still refuses the pages: an error of madvise, never a SIGBUS.
    let ran = Ran::from(group.command(&words, true).output().unwrap());
    ran.fails(5, &["could not be faulted in", "madvise", "cgroup hugetlb limits"]);
    assert_eq!(pool.state(), before);
    // All but the last page are there at Ready, and that one comes with the first token: an error all the same.
    let plan = run(&["plan", "--hugepages", "--ctx", "64", "--json"]);
    let plan: serde_json::Value = serde_json::from_str(&plan.stdout).unwrap();
    let need = plan["total_pages"].as_u64().unwrap();
    group.limit((need - 1) * (2 << 20));
    let ran = Ran::from(group.command(&demo(&["-v"]), true).output().unwrap());
    assert!(ran.stderr.contains("loaded in"), "{ran:?}");
    assert!(ran.code == Some(5) && ran.stderr.contains("could not be faulted in"), "{ran:?}");
    // Where it sees a limit that is wide enough, it takes all pages at once: others in the group cannot take them later.
    group.limit(need * (2 << 20));
    Ran::from(group.command(&words, false).output().unwrap()).good();
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
