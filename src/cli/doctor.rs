//! `brim doctor`: what this box has, what stands in the way, and the line that mends it.

use std::fmt::Write;
use std::path::Path;

use serde_json::{Value, json};

use super::args::Doctor;
use super::common::out;
use crate::board::{Board, EMBEDDED};
use crate::error::Result;
use crate::kernels::{Tier, select};
use crate::memory::{GiveBack, Host, Hvo, MemoryError, PageKind};
use crate::settings::{env_or, load_board};
use crate::sys::cgroup::cpu_quota;
use crate::sys::cpu::{self, Topology, format_list, online};
use crate::sys::support::Support;
use crate::sys::{file, limits, map};
use crate::units::Human;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ok,
    Note,
    Problem,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Note => "note",
            State::Problem => "problem",
        }
    }
}

#[derive(Debug)]
struct Finding {
    name: String,
    state: State,
    text: String,
    /// The line that mends it.
    mend: Option<String>,
}

/// Everything found: sentences for people, facts for programs.
#[derive(Debug, Default)]
struct Report {
    findings: Vec<Finding>,
    facts: serde_json::Map<String, Value>,
}

/// Examines this box and prints what was found. A problem is a finding, not a failure of the command.
///
/// # Errors
/// Exit 3 where the board asked for is at fault.
pub fn execute(args: Doctor) -> Result<()> {
    let name = env_or(args.board, "BRIM_BOARD")?;
    let board = name.as_deref().map(load_board).transpose()?;
    let host = Host::default();
    let report = Report::gather(&host, &host.try_give_back(), name.as_deref().zip(board.as_ref()))?;
    let text = if args.json { format!("{:#}", report.json()) } else { report.table() };
    out(text.trim_end())
}

impl Report {
    fn gather(
        host: &Host,
        give_back: &std::result::Result<GiveBack, String>,
        board: Option<(&str, &Board)>,
    ) -> Result<Report> {
        let mut report = Report::default();
        report.pools(host);
        report.hvo(host);
        report.give_back(host, give_back, board.map(|(_, board)| board));
        report.calls();
        report.limits(host);
        report.cpu()?;
        report.memory(host, board);
        Ok(report)
    }

    fn say(&mut self, name: &str, state: State, text: String, mend: Option<String>) {
        self.findings.push(Finding { name: name.to_owned(), state, text, mend });
    }

    fn fact(&mut self, key: &str, value: Value) {
        self.facts.insert(key.to_owned(), value);
    }

    fn pools(&mut self, host: &Host) {
        if let Some(what) = host.not_mounted(PageKind::Huge2M) {
            let error = MemoryError::NotMounted { what }.to_string();
            let (text, mend) = error.split_once(": run ").unwrap_or((&error, ""));
            self.say(what, State::Problem, text.to_owned(), Some(mend.replace('`', "")));
        }
        let mut pools = Vec::new();
        for page in PageKind::HUGE {
            let name = format!("{page} pages");
            let Some(pool) = host.pool(page) else {
                self.say(&name, State::Note, "not offered by this kernel and CPU".to_owned(), None);
                continue;
            };
            let nodes = host.node_pools(page);
            let mut text = format!(
                "{} in the pool ({}), {} free, {} reserved",
                pool.total,
                Human(pool.total.saturating_mul(page.bytes())),
                pool.free,
                pool.reserved
            );
            if nodes.len() > 1 {
                for (node, total, free) in &nodes {
                    let _ = write!(text, "; node {node}: {free} free of {total}");
                }
            }
            // The 1 GiB pool is a choice; the 2 MiB pool is what --hugepages takes by default.
            let empty = page == PageKind::Huge2M && pool.total == 0;
            let mend =
                empty.then(|| "brim plan --hugepages -m MODEL.gguf   # names the sysctl line for that model".into());
            self.say(&name, if empty { State::Note } else { State::Ok }, text, mend);
            if let Some(limit) = host.cgroup_hugetlb(page) {
                let short = limit.available_bytes() < pool.available().saturating_mul(page.bytes());
                let text =
                    format!("{} left under the cgroup limit {}", Human(limit.available_bytes()), limit.file.display());
                let state = if short { State::Problem } else { State::Ok };
                self.say(&format!("{name} limit"), state, text, short.then(|| lift(&limit.file)));
            }
            pools.push(json!({
                "page_bytes": page.bytes(),
                "total": pool.total,
                "free": pool.free,
                "reserved": pool.reserved,
                "surplus": pool.surplus,
                "overcommit": pool.overcommit,
                "cgroup_available_bytes": host.cgroup_hugetlb(page).map(|limit| limit.available_bytes()),
                "nodes": nodes.iter().map(|(n, t, f)| json!({"node": n, "total": t, "free": f})).collect::<Vec<_>>(),
            }));
        }
        self.fact("pools", pools.into());
    }

    fn hvo(&mut self, host: &Host) {
        let hvo = host.hvo();
        let pools: Vec<_> = PageKind::HUGE.into_iter().filter_map(|page| host.pool(page)).collect();
        let gain: u64 = pools.iter().map(|pool| Hvo::saving_bytes(pool.page, pool.total)).sum();
        let pages = pools.iter().map(|pool| pool.total).sum::<u64>();
        let saved = Human(gain);
        let given_back = host.memmap_given_back_bytes();
        let counted = match given_back {
            Some(bytes) => format!("{} given back now, by the kernel's counters", Human(bytes)),
            None => "this kernel does not count what is given back (6.12 does)".to_owned(),
        };
        match hvo {
            Hvo { available: false, .. } => self.say(
                "HVO",
                State::Note,
                format!("not in this kernel; it would save {saved} for the present pool"),
                Some("boot a kernel built with CONFIG_HUGETLB_PAGE_OPTIMIZE_VMEMMAP=y".into()),
            ),
            Hvo { enabled: true, .. } => self.say(
                "HVO",
                State::Ok,
                format!(
                    "on; {counted}; {saved} for the present pool if all of it was reserved since it was switched on"
                ),
                None,
            ),
            _ => {
                let mut mend = "sysctl -w vm.hugetlb_optimize_vmemmap=1".to_owned();
                if pages > 0 {
                    mend.push_str("   # then reserve the pool anew: it counts for pages reserved afterwards");
                }
                self.say(
                    "HVO",
                    State::Note,
                    format!("off; {counted}; it would be {saved} for the present pool"),
                    Some(mend),
                );
            }
        }
        let saved_bytes = if hvo.enabled { gain } else { 0 };
        self.fact(
            "hvo",
            json!({"available": hvo.available, "enabled": hvo.enabled, "saved_bytes": saved_bytes, "gain_bytes": gain,
                   "given_back_bytes": given_back}),
        );
        let thp = host.transparent_huge_pages();
        match thp.as_deref() {
            Some("never") => self.say(
                "THP",
                State::Note,
                "never: runs without --hugepages get 4 KiB pages only".to_owned(),
                Some("echo madvise > /sys/kernel/mm/transparent_hugepage/enabled".into()),
            ),
            Some(mode) => self.say("THP", State::Ok, mode.to_owned(), None),
            None => self.say("THP", State::Note, "not in this kernel".to_owned(), None),
        }
        self.fact("thp", thp.into());
    }

    /// Whether pages that `memory.reserve` adds with HVO on go back whole.
    fn give_back(&mut self, host: &Host, tried: &std::result::Result<GiveBack, String>, board: Option<&Board>) {
        let fact = match tried {
            Ok(GiveBack::Works) => Some("works"),
            Ok(GiveBack::Breaks(_)) => Some("breaks"),
            _ => None,
        };
        self.fact("give_back", fact.into());
        if !host.hvo().available {
            return;
        }
        let is_asked = board.is_some_and(|board| board.memory.reserve && (board.memory.hvo || host.hvo().enabled));
        let (state, text, mend) = match tried {
            Ok(GiveBack::Works) => {
                let text = "a page reserved with HVO on was given back since this boot, and nothing was lost";
                (State::Ok, text.to_owned(), None)
            }
            Ok(GiveBack::Breaks(why)) => {
                let mend = "a pool reserved at boot works, as long as it is not made smaller: `hugepagesz=2M hugepages=N \
                            hugetlb_free_vmemmap=on` on the kernel command line, memory.reserve = false";
                let state = if is_asked { State::Problem } else { State::Note };
                (state, why.to_string(), Some(mend.to_owned()))
            }
            Ok(GiveBack::Untried) => return,
            Err(why) => (
                State::Note,
                format!("not tried: {why}"),
                Some("run `brim doctor` as root: it tries one page".to_owned()),
            ),
        };
        self.say("HVO give-back", state, text, mend);
    }

    /// The system calls that brim can do without.
    fn calls(&mut self) {
        let (populating, sealing, pinning) = (map::populating(), map::sealing(), cpu::pinning());
        for (name, support, since, with, without) in [
            (
                "MADV_POPULATE_WRITE",
                populating,
                "5.14",
                "pages are cleared by several threads",
                "one thread clears all pages",
            ),
            (
                "mseal",
                sealing,
                "6.10",
                "weights cannot be changed or unmapped once loaded",
                "weights are read-only, not sealed",
            ),
            ("pinning", pinning, "2.6", "each thread has a CPU of its own", "threads run where the kernel puts them"),
        ] {
            match support {
                Support::Yes => self.say(name, State::Ok, with.to_owned(), None),
                Support::Absent => {
                    let text = format!("not in this kernel (since Linux {since}): {without}");
                    self.say(name, State::Note, text, None);
                }
                Support::Refused(e) => {
                    let call = e.call.split('(').next().unwrap_or(e.call);
                    let mend = format!("allow {call} in its seccomp filter (systemd: SystemCallFilter={call})");
                    self.say(name, State::Note, format!("a sandbox forbids it ({e}): {without}"), Some(mend));
                }
            }
        }
        let has = |support| support == Support::Yes;
        self.fact("kernel", json!({"populate_write": has(populating), "mseal": has(sealing), "pinning": has(pinning)}));
    }

    fn limits(&mut self, host: &Host) {
        let all = limits::relevant();
        for limit in all {
            let shown = limit.soft.map_or("unlimited".to_owned(), |soft| soft.to_string());
            let (state, mend) = match (limit.name, limit.soft) {
                ("RLIMIT_AS", Some(_)) => (State::Problem, Some("ulimit -v unlimited")),
                ("RLIMIT_DATA", Some(_)) => (State::Problem, Some("ulimit -d unlimited")),
                ("RLIMIT_NOFILE", Some(files)) if files < 256 => (State::Note, Some("ulimit -n 1024")),
                _ => (State::Ok, None),
            };
            self.say(limit.name, state, shown, mend.map(str::to_owned));
        }
        self.fact("limits", all.iter().map(|l| json!({"name": l.name, "soft": l.soft})).collect::<Vec<_>>().into());
        let cgroup = host.cgroup_memory();
        match &cgroup {
            None => self.say("cgroup memory", State::Ok, "no limit".to_owned(), None),
            Some(limit) => {
                let short = limit.available_bytes() < host.memory_available_bytes();
                let text =
                    format!("{} left under the limit in {}", Human(limit.available_bytes()), limit.file.display());
                let state = if short { State::Note } else { State::Ok };
                self.say("cgroup memory", state, text, short.then(|| lift(&limit.file)));
            }
        }
        let cgroup = cgroup.map(|limit| {
            json!({"file": limit.file.display().to_string(), "limit_bytes": limit.limit_bytes,
                   "available_bytes": limit.available_bytes()})
        });
        self.fact("cgroup_memory", cgroup.into());
    }

    fn cpu(&mut self) -> Result<()> {
        let topology = Topology::probe()?;
        let (tier, features) = (best_tier(), features());
        let model = cpuinfo("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
        let has: Vec<&str> = features.iter().filter(|(_, has)| *has).map(|(name, _)| *name).collect();
        let state = if tier == Tier::Scalar { State::Problem } else { State::Ok };
        let mend = (tier == Tier::Scalar)
            .then(|| "use a CPU with AVX2, FMA and F16C, or pass them to this virtual machine".into());
        self.say("CPU tier", state, format!("{} ({model}; {})", tier.name(), has.join(" ")), mend);
        let (cpus, all) = (format_list(&topology.cpus), format_list(&online()));
        let fewer = topology.cpus.len() < online().len();
        let mut text = format!("{} cores, CPUs {cpus}", topology.cores.len());
        if fewer {
            let _ = write!(text, " of {all}");
        }
        self.say(
            "cores",
            if fewer { State::Note } else { State::Ok },
            text,
            fewer.then(|| format!("taskset -c {all} brim ...   # or widen cpuset.cpus of the cgroup")),
        );
        let quota = cpu_quota(Path::new("/"));
        if let Some((cpus, file)) = &quota {
            let (have, file) = (topology.cores.len(), file.display());
            let fewer = *cpus < have as f64;
            let text =
                format!("{cpus:.1} CPUs by {file}: {} threads unless told", topology.quota.unwrap_or(have).min(have));
            let mend = fewer
                .then(|| format!("echo max > {file}   # or `docker run` without --cpus, a pod without limits.cpu"));
            self.say("CPU quota", if fewer { State::Note } else { State::Ok }, text, mend);
        }
        let domains: Vec<String> = topology.l3_domains.iter().map(|domain| format_list(domain)).collect();
        let text = format!(
            "L1d {}, L2 {}, L3 {} in {} domains: {}",
            Human(topology.l1d_bytes),
            Human(topology.l2_bytes),
            Human(topology.l3_bytes),
            domains.len(),
            domains.join(" | ")
        );
        let unknown = topology.l1d_bytes == 0;
        let mend = unknown.then(|| "set cpu.l1d_kib, cpu.l2_kib and cpu.l3_kib in the board file".to_owned());
        self.say("caches", if unknown { State::Note } else { State::Ok }, text, mend);
        let features: serde_json::Map<String, Value> =
            features.into_iter().map(|(name, has)| (name.to_owned(), has.into())).collect();
        self.fact(
            "cpu",
            json!({
                "tier": tier.name(),
                "model": model,
                "features": features,
                "cores": topology.cores.len(),
                "quota": quota.map(|(cpus, _)| cpus),
                "cpus": topology.cpus,
                "l1d_bytes": topology.l1d_bytes,
                "l2_bytes": topology.l2_bytes,
                "l3_bytes": topology.l3_bytes,
                "l3_domains": topology.l3_domains,
            }),
        );
        Ok(())
    }

    fn memory(&mut self, host: &Host, board: Option<(&str, &Board)>) {
        let (available, total) = (host.memory_available_bytes(), host.memory_total_bytes());
        let keep_free = board.map_or(0, |(_, board)| board.keep_free_bytes());
        let mut text = format!("{} available of {}, free huge pages not counted", Human(available), Human(total));
        if keep_free > 0 {
            let _ = write!(text, "; the board keeps {} free", Human(keep_free));
        }
        let short = keep_free > available;
        let mend =
            short.then(|| "stop other processes, shrink the huge-page pool or lower memory.keep_free_mib".into());
        self.say("memory", if short { State::Problem } else { State::Ok }, text, mend);
        self.fact("memory", json!({"total_bytes": total, "available_bytes": available}));
        let names: Vec<&str> = EMBEDDED.iter().map(|(name, _)| *name).collect();
        self.say("boards", State::Ok, names.join(", "), None);
        self.fact("boards", names.into());
        let Some((name, board)) = board else { return };
        let best = best_tier();
        let lacking = board.cpu.isa.filter(|&tier| tier > best);
        match lacking {
            Some(wanted) => {
                let (wanted, tier) = (wanted.name(), best.name());
                let text = format!("{name} is made for {wanted}, this CPU has {tier}: slower than measured there");
                self.say("board", State::Note, text, Some(format!("set cpu.isa = \"{tier}\" in the board file")));
            }
            None => self.say("board", State::Ok, name.to_owned(), None),
        }
        self.fact("board", name.into());
    }

    fn json(&self) -> Value {
        let mut facts = self.facts.clone();
        let findings: Vec<Value> = self
            .findings
            .iter()
            .map(|f| json!({"name": f.name, "state": f.state.as_str(), "text": f.text, "mend": f.mend}))
            .collect();
        facts.insert("findings".to_owned(), findings.into());
        facts.into()
    }

    fn table(&self) -> String {
        let mut text = String::new();
        for finding in &self.findings {
            let _ = writeln!(text, "{:<9}{:<21}{}", finding.state.as_str(), finding.name, finding.text);
            if let Some(mend) = &finding.mend {
                let _ = writeln!(text, "{:<30}-> {mend}", "");
            }
        }
        text
    }
}

/// The command that lifts a cgroup limit; v1 says "none" with -1.
fn lift(limit: &std::path::Path) -> String {
    let none = if limit.to_string_lossy().ends_with("limit_in_bytes") { "-1" } else { "max" };
    format!("echo {none} > {}", limit.display())
}

/// The first value of `key` in `/proc/cpuinfo`.
fn cpuinfo(key: &str) -> Option<String> {
    let text = file::text("/proc/cpuinfo")?;
    let (_, value) = text.lines().filter_map(|line| line.split_once(':')).find(|(name, _)| name.trim() == key)?;
    Some(value.trim().to_owned())
}

/// The kernel tier that is chosen on this CPU.
fn best_tier() -> Tier {
    select(None, None).map_or(Tier::Scalar, |kernels| kernels.tier())
}

/// The features that decide the tier, or could add to it.
fn features() -> Vec<(&'static str, bool)> {
    #[cfg(target_arch = "x86_64")]
    {
        let flags = cpuinfo("flags").unwrap_or_default();
        vec![
            ("avx2", is_x86_feature_detected!("avx2")),
            ("fma", is_x86_feature_detected!("fma")),
            ("f16c", is_x86_feature_detected!("f16c")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("avx512bw", is_x86_feature_detected!("avx512bw")),
            ("avx512dq", is_x86_feature_detected!("avx512dq")),
            ("avx512vl", is_x86_feature_detected!("avx512vl")),
            ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
            ("avx512vbmi", is_x86_feature_detected!("avx512vbmi")),
            ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
            ("avxvnni", is_x86_feature_detected!("avxvnni")),
            ("amx-int8", flags.split(' ').any(|flag| flag == "amx_int8")),
        ]
    }
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing is tried while other tests count pages.
    const WORKS: std::result::Result<GiveBack, String> = Ok(GiveBack::Works);

    #[test]
    fn json_has_its_keys_and_every_problem_a_mend() {
        let (name, text) = EMBEDDED[0];
        let board = Board::parse(text).unwrap();
        let report = Report::gather(&Host::default(), &WORKS, Some((name, &board))).unwrap();
        let value: Value = serde_json::from_str(&report.json().to_string()).unwrap();
        for key in ["pools", "hvo", "thp", "limits", "cgroup_memory", "cpu", "memory", "boards", "board", "findings"] {
            assert!(value.get(key).is_some(), "{key} missing in {value:#}");
        }
        assert_eq!(value["cpu"]["tier"], best_tier().name());
        assert!(value["cpu"]["cores"].as_u64().unwrap() > 0);
        for finding in &report.findings {
            assert!(finding.state != State::Problem || finding.mend.is_some(), "{finding:?}");
        }
    }

    #[test]
    fn a_board_is_held_against_the_tier_that_is_chosen_here() {
        let state_with = |isa: &str| {
            let board = Board::parse(&format!("[cpu]\nisa = \"{isa}\"\n")).unwrap();
            let report = Report::gather(&Host::default(), &WORKS, Some(("b", &board))).unwrap();
            report.findings.iter().find(|finding| finding.name == "board").unwrap().state
        };
        for tier in Tier::ALL {
            let want = if tier <= best_tier() { State::Ok } else { State::Note };
            assert_eq!(state_with(tier.name()), want, "{}", tier.name());
        }
    }

    #[test]
    fn a_bare_box_is_described_without_panic() {
        let host = Host::at("/nonexistent");
        let report = Report::gather(&host, &host.try_give_back(), None).unwrap();
        let table = report.table();
        assert!(table.contains("note     HVO                  not in this kernel"), "{table}");
        assert_eq!(report.json()["pools"], json!([]));
        assert_eq!(lift("/sys/fs/cgroup/a/memory.max".as_ref()), "echo max > /sys/fs/cgroup/a/memory.max");
    }
}
