//! Which CPUs the workers are pinned to.

use super::overrides::Overrides;
use super::source::{Env, Source, pick, refuse};
use crate::board::Board;
use crate::error::{Error, Result};
use crate::sys::cpu::{ListError, Topology, format_list, parse_list};

/// The CPU of each worker: those that are named, else one per physical core, spread over the L3 domains, and no more than a
/// quota of the cgroup lets run at once: one that is held up holds up all.
pub(super) fn cores(overrides: &Overrides, env: Env<'_>, board: &Board, topology: &Topology) -> Result<Vec<usize>> {
    let threads = threads(overrides, env, board, topology)?;
    let named = board.cpu.cores.clone().map(|list| ("cpu.cores", list));
    let Some((list, source)) = pick(env, "cores", overrides.cores.clone(), named)? else {
        let mut cores = topology.spread();
        let most = topology.cores.len().min(topology.quota.unwrap_or(usize::MAX)).max(1);
        cores.truncate(threads.map_or(most, |(threads, _)| threads));
        return Ok(cores);
    };
    let mut cores = named_cores(&list, source, topology)?;
    if let Some((threads, source)) = threads {
        let count = cores.len();
        if count < threads {
            let why = format!(
                "{threads} threads need as many CPUs, but cores = {list} names {count}; use at most {count} threads, or \
                 name more CPUs"
            );
            return Err(refuse("threads", source, why));
        }
        cores.truncate(threads);
    }
    Ok(cores)
}

/// How many workers there are to be, if anybody says so.
fn threads(overrides: &Overrides, env: Env<'_>, board: &Board, topology: &Topology) -> Result<Option<(usize, Source)>> {
    let named = board.cpu.threads.map(|threads| ("cpu.threads", threads));
    let Some((threads, source)) = pick(env, "threads", overrides.threads, named)? else { return Ok(None) };
    let have = topology.cpus.len();
    match threads as usize {
        0 => Err(refuse("threads", source, "at least 1 thread is needed")),
        asked if asked > have => {
            let why = format!(
                "{asked} threads, but this process may use {have} CPUs, and more threads than CPUs only get in each \
                 other's way; use at most {have}, or leave it out for one per physical core"
            );
            Err(refuse("threads", source, why))
        }
        asked => Ok(Some((asked, source))),
    }
}

/// The CPUs of a list such as `0-7,16`, all of which this process may use.
fn named_cores(list: &str, source: Source, topology: &Topology) -> Result<Vec<usize>> {
    let not_ours = |missing: String| -> Error {
        let allowed = format_list(&topology.cpus);
        let why = format!(
            "{list} names CPU {missing}, but this process may use only {allowed}; name some of those, or leave it out"
        );
        refuse("cores", source, why)
    };
    let cores = parse_list(list).map_err(|e| match e {
        ListError::Malformed => refuse("cores", source, format!("{list:?} is not a list of CPUs such as 0-7,16")),
        ListError::Beyond(cpu) => not_ours(cpu.to_string()),
    })?;
    let missing: Vec<usize> = cores.iter().copied().filter(|cpu| !topology.cpus.contains(cpu)).collect();
    match missing.is_empty() {
        true => Ok(cores),
        false => Err(not_ours(format_list(&missing))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_leaves_as_many_workers_unless_somebody_says_how_many() {
        let of = |quota, threads| {
            let topology = Topology { cpus: (0..8).collect(), cores: (0..4).collect(), quota, ..Topology::default() };
            cores(&Overrides { threads, ..Overrides::default() }, &|_| None, &Board::default(), &topology).unwrap()
        };
        assert_eq!(of(None, None), [0, 1, 2, 3]);
        assert_eq!(of(Some(2), None), [0, 1]);
        assert_eq!(of(Some(6), None), [0, 1, 2, 3]);
        assert_eq!(of(Some(2), Some(3)), [0, 1, 2]);
    }
}
