//! CPUs this process may use, pinning, caches and who shares them.

use std::path::Path;

use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_setaffinity};

use super::support::Support;
use super::{OsError, cgroup, file};

/// Where the kernel describes its CPUs.
const CPU_ROOT: &str = "/sys/devices/system/cpu";

/// The CPUs this process may run on, ascending.
///
/// # Errors
/// The errno of `sched_getaffinity`.
pub fn allowed() -> Result<Vec<usize>, OsError> {
    let set = sched_getaffinity(None).map_err(|e| OsError::new("sched_getaffinity", e))?;
    Ok((0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect())
}

/// The CPUs that are online, ascending; empty where sysfs does not say.
pub fn online() -> Vec<usize> {
    file::text(Path::new(CPU_ROOT).join("online")).and_then(|list| parse_list(&list).ok()).unwrap_or_default()
}

/// Pins the calling thread to one CPU.
///
/// # Errors
/// EINVAL where the CPU does not exist or may not be used.
pub fn pin_to(cpu: usize) -> Result<(), OsError> {
    pin(None, cpu)
}

/// Whether threads can be pinned; changes nothing.
pub fn pinning() -> Support {
    let same = sched_getaffinity(None).and_then(|set| sched_setaffinity(None, &set));
    Support::of(same.map_err(|e| OsError::new("sched_setaffinity", e)), libc::ENOSYS, (2, 6))
}

/// Lets the calling thread run on these CPUs only.
///
/// # Errors
/// EINVAL where none of them exists or may be used.
pub fn confine_to(cpus: &[usize]) -> Result<(), OsError> {
    let mut set = CpuSet::new();
    cpus.iter().filter(|&&cpu| cpu < CpuSet::MAX_CPU).for_each(|&cpu| set.set(cpu));
    sched_setaffinity(None, &set).map_err(|e| OsError::new("sched_setaffinity", e))
}

/// Pins a thread of this process, by its [`thread_id`].
///
/// # Errors
/// As [`pin_to`]; ESRCH where there is no such thread.
pub fn pin_thread(thread: u32, cpu: usize) -> Result<(), OsError> {
    let thread = i32::try_from(thread).ok().and_then(Pid::from_raw);
    pin(Some(thread.ok_or(OsError { call: "sched_setaffinity", errno: libc::ESRCH })?), cpu)
}

/// The kernel's id of the calling thread.
pub fn thread_id() -> u32 {
    gettid().as_raw_nonzero().get().cast_unsigned()
}

fn pin(thread: Option<Pid>, cpu: usize) -> Result<(), OsError> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(OsError { call: "sched_setaffinity", errno: libc::EINVAL });
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(thread, &set).map_err(|e| OsError::new("sched_setaffinity", e))
}

/// Why a CPU list cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListError {
    /// It is not a list.
    Malformed,
    /// It names a CPU beyond what Linux can have.
    Beyond(usize),
}

/// Reads a CPU list such as `0-7,16`: ascending, without doubles.
///
/// # Errors
/// Text that is not a list, or a number no CPU has.
pub fn parse_list(list: &str) -> Result<Vec<usize>, ListError> {
    let number = |text: &str| text.parse::<usize>().map_err(|_| ListError::Malformed);
    let mut cpus = Vec::new();
    for item in list.split(',').map(str::trim) {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(ListError::Malformed);
        }
        if last >= CpuSet::MAX_CPU {
            return Err(ListError::Beyond(last));
        }
        cpus.extend(first..=last);
    }
    cpus.sort_unstable();
    cpus.dedup();
    Ok(cpus)
}

/// Writes ascending CPUs as a list: the inverse of [`parse_list`].
pub fn format_list(cpus: &[usize]) -> String {
    let mut text = String::new();
    for run in cpus.chunk_by(|a, b| a + 1 == *b) {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(&run[0].to_string());
        if run.len() > 1 {
            text.push('-');
            text.push_str(&run[run.len() - 1].to_string());
        }
    }
    text
}

/// Caches and cores among some CPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// The CPUs described, ascending.
    pub cpus: Vec<usize>,
    /// The first CPU of each physical core.
    pub cores: Vec<usize>,
    /// L1 data cache of the first CPU; 0 where unknown.
    pub l1d_bytes: u64,
    /// L2 cache of the first CPU; 0 where unknown.
    pub l2_bytes: u64,
    /// One L3 cache; 0 where there is none.
    pub l3_bytes: u64,
    /// CPUs that share an L3, one list per L3.
    pub l3_domains: Vec<Vec<usize>>,
    /// How many of the CPUs a quota of time leaves this process at once, at least 1; `None` where there is no quota.
    pub quota: Option<usize>,
}

impl Topology {
    /// Describes the CPUs this process may use.
    ///
    /// # Errors
    /// The errno of `sched_getaffinity`.
    pub fn probe() -> Result<Topology, OsError> {
        let quota = cgroup::cpu_quota(Path::new("/")).map(|(cpus, _)| (cpus as usize).max(1));
        Ok(Topology { quota, ..Topology::read(Path::new(CPU_ROOT), allowed()?) })
    }

    /// Describes `cpus` from a sysfs tree.
    pub fn read(root: &Path, cpus: Vec<usize>) -> Topology {
        let mut topology = Topology::default();
        let mut seen_cores: Vec<usize> = Vec::new();
        for &cpu in &cpus {
            let dir = root.join(format!("cpu{cpu}"));
            if !seen_cores.contains(&cpu) {
                topology.cores.push(cpu);
                let siblings = file::text(dir.join("topology/thread_siblings_list"));
                seen_cores.extend(siblings.and_then(|list| parse_list(&list).ok()).unwrap_or_else(|| vec![cpu]));
            }
            topology.read_caches(&dir.join("cache"), cpu, &cpus);
        }
        topology.cpus = cpus;
        topology
    }

    /// All CPUs in the order workers should take them: one per physical core, in turns over the L3 domains (one domain
    /// alone does not reach the memory's bandwidth), then the second threads of the cores likewise.
    pub fn spread(&self) -> Vec<usize> {
        let domain = |cpu: usize| self.l3_domains.iter().position(|domain| domain.contains(&cpu)).unwrap_or(0);
        let in_turns = |cpus: Vec<usize>| -> Vec<usize> {
            let mut ranked: Vec<(usize, usize, usize)> = Vec::with_capacity(cpus.len());
            for cpu in cpus {
                let rank = ranked.iter().filter(|&&(_, d, _)| d == domain(cpu)).count();
                ranked.push((rank, domain(cpu), cpu));
            }
            ranked.sort_unstable();
            ranked.into_iter().map(|(_, _, cpu)| cpu).collect()
        };
        let seconds = self.cpus.iter().copied().filter(|cpu| !self.cores.contains(cpu)).collect();
        let mut order = in_turns(self.cores.clone());
        order.extend(in_turns(seconds));
        order
    }

    fn read_caches(&mut self, dir: &Path, cpu: usize, cpus: &[usize]) {
        // No CPU has more than a handful of caches; the first absent index ends the list.
        for index in (0..16).map(|index| dir.join(format!("index{index}"))) {
            let Some(level) = file::number(index.join("level")) else { break };
            let kind = file::text(index.join("type")).unwrap_or_default();
            let size_bytes = file::text(index.join("size")).and_then(|size| parse_size(&size)).unwrap_or(0);
            match (level, kind.as_str()) {
                (1, "Data" | "Unified") if self.l1d_bytes == 0 => self.l1d_bytes = size_bytes,
                (2, "Unified" | "Data") if self.l2_bytes == 0 => self.l2_bytes = size_bytes,
                (3, _) if !self.l3_domains.iter().any(|domain| domain.contains(&cpu)) => {
                    self.l3_bytes = self.l3_bytes.max(size_bytes);
                    let shared = file::text(index.join("shared_cpu_list")).and_then(|list| parse_list(&list).ok());
                    let mut domain = shared.unwrap_or_else(|| vec![cpu]);
                    domain.retain(|cpu| cpus.contains(cpu));
                    self.l3_domains.push(domain);
                }
                _ => {}
            }
        }
    }
}

/// Reads sysfs cache sizes such as `32K` or `16M`.
fn parse_size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_go_there_and_back() {
        for (text, cpus) in [("0", vec![0]), ("0-3,8", vec![0, 1, 2, 3, 8]), ("5,6", vec![5, 6])] {
            assert_eq!(parse_list(text), Ok(cpus));
        }
        assert_eq!(parse_list("3,1-2,2"), Ok(vec![1, 2, 3]));
        assert_eq!(format_list(&[0, 1, 2, 3, 8, 10, 11]), "0-3,8,10-11");
        for bad in ["", "a", "1-", "3-1", "0,", "-1", "0-18446744073709551616"] {
            assert_eq!(parse_list(bad), Err(ListError::Malformed), "{bad}");
        }
        assert_eq!(parse_list("1,99999"), Err(ListError::Beyond(99999)));
        assert_eq!(parse_list("0-18446744073709551615"), Err(ListError::Beyond(usize::MAX)));
    }

    #[test]
    fn pinning_is_checked() {
        let cpus = allowed().unwrap();
        std::thread::spawn(move || {
            pin_to(cpus[0]).unwrap();
            assert_eq!(allowed().unwrap(), [cpus[0]]);
        })
        .join()
        .unwrap();
        assert!(pin_to(1 << 20).is_err());
        assert!(pin_to(CpuSet::MAX_CPU - 1).is_err());
    }

    /// A sysfs tree of `n_cores` cores with two threads each (`n` and `n + n_cores`), every `per_domain` cores sharing
    /// an L3, read for `cpus`.
    fn two_threads_a_core(n_cores: usize, per_domain: usize, cpus: Vec<usize>) -> Topology {
        let root = std::env::temp_dir().join(format!("brim-cpu-{}-{n_cores}-{}", std::process::id(), cpus.len()));
        for cpu in 0..2 * n_cores {
            let dir = root.join(format!("cpu{cpu}"));
            let write = |path: &str, text: &str| {
                let path = dir.join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, format!("{text}\n")).unwrap();
            };
            let core = cpu % n_cores;
            let first = core / per_domain * per_domain;
            let threads = format!("{core},{}", core + n_cores);
            let last = first + per_domain - 1;
            let domain = format!("{first}-{last},{}-{}", first + n_cores, last + n_cores);
            write("topology/thread_siblings_list", &threads);
            for (index, level, kind, size, shared) in [
                (0, "1", "Data", "48K", &threads),
                (1, "1", "Instruction", "32K", &threads),
                (2, "2", "Unified", "1M", &threads),
                (3, "3", "Unified", "32768K", &domain),
            ] {
                write(&format!("cache/index{index}/level"), level);
                write(&format!("cache/index{index}/type"), kind);
                write(&format!("cache/index{index}/size"), size);
                write(&format!("cache/index{index}/shared_cpu_list"), shared);
            }
        }
        let topology = Topology::read(&root, cpus);
        std::fs::remove_dir_all(&root).unwrap();
        topology
    }

    #[test]
    fn two_dies_with_smt_are_understood() {
        let topology = two_threads_a_core(2, 1, vec![0, 1, 2, 3]);
        assert_eq!(topology.cores, [0, 1]);
        assert_eq!((topology.l1d_bytes, topology.l2_bytes, topology.l3_bytes), (48 << 10, 1 << 20, 32 << 20));
        assert_eq!(topology.l3_domains, [[0, 2], [1, 3]]);
    }

    #[test]
    fn workers_span_both_dies_of_sixteen_cores_before_any_core_is_shared() {
        let topology = two_threads_a_core(16, 8, (0..32).collect());
        assert_eq!(topology.cores, (0..16).collect::<Vec<_>>());
        assert_eq!(topology.l3_domains.len(), 2);
        let order = topology.spread();
        assert_eq!(order[..6], [0, 8, 1, 9, 2, 10]);
        assert_eq!(order[16..20], [16, 24, 17, 25]);
        for n in 1..=32 {
            let on_first = order[..n].iter().filter(|&&cpu| cpu % 16 < 8).count();
            assert!(on_first.abs_diff(n - on_first) <= 1, "{n} workers: {on_first} on the first die");
            let mut cores: Vec<usize> = order[..n].iter().map(|cpu| cpu % 16).collect();
            cores.sort_unstable();
            cores.dedup();
            assert_eq!(cores.len(), n.min(16), "{n} workers");
        }
        // A container that was given some second threads, and more of one die than of the other.
        let part = two_threads_a_core(16, 8, vec![2, 3, 4, 5, 18, 24, 25]);
        assert_eq!(part.cores, [2, 3, 4, 5, 24, 25]);
        assert_eq!(part.spread(), [2, 24, 3, 25, 4, 5, 18]);
    }
}
