//! The cgroups that this process is in, v1 and v2, and the share of the CPUs that they leave it.

use std::path::{Path, PathBuf};

use super::file;

/// The directories of the cgroups above this process, its own first, that a controller may have files in; each with whether
/// it is of v2. `root` is `/` but in tests.
///
/// Without a cgroup namespace a container sees a path that its mount does not have: absent directories are passed over and
/// the mount's own root still counts.
pub fn above(root: &Path, controller: &str) -> Vec<(PathBuf, bool)> {
    let mut dirs = Vec::new();
    for line in file::text(root.join("proc/self/cgroup")).unwrap_or_default().lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else { continue };
        let v2 = controllers.is_empty();
        if !v2 && controllers.split(',').all(|c| c != controller) {
            continue;
        }
        let mounts: &[&str] = if v2 { &["", "unified"] } else { &[controllers, controller] };
        for mount in mounts {
            let mount = root.join("sys/fs/cgroup").join(mount);
            let own = mount.join(group.trim_start_matches('/'));
            dirs.extend(own.ancestors().take_while(|dir| dir.starts_with(&mount)).map(|dir| (dir.to_owned(), v2)));
        }
    }
    dirs
}

/// The time of CPUs that the cgroups give this process, in CPUs: the tightest quota, with the file that holds it. `None`
/// where there is none.
pub fn cpu_quota(root: &Path) -> Option<(f64, PathBuf)> {
    let quota = |(dir, v2): (PathBuf, bool)| {
        let file = dir.join(if v2 { "cpu.max" } else { "cpu.cfs_quota_us" });
        let text = file::text(&file)?;
        let (quota, period): (f64, f64) = match v2 {
            true => {
                let (quota, period) = text.split_once(' ')?;
                (quota.parse().ok()?, period.parse().ok()?)
            }
            // Minus one is no quota.
            false => (text.parse().ok()?, file::number(dir.join("cpu.cfs_period_us"))? as f64),
        };
        (quota > 0.0 && period > 0.0).then_some((quota / period, file))
    };
    above(root, "cpu").into_iter().filter_map(quota).min_by(|(a, _): &(f64, PathBuf), (b, _)| a.total_cmp(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(name: &str, files: &[(&str, &str)]) -> Option<f64> {
        let root = std::env::temp_dir().join(format!("brim-cgroup-{name}-{}", std::process::id()));
        for (path, text) in files {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!("{text}\n")).unwrap();
        }
        let found = cpu_quota(&root);
        let _ = std::fs::remove_dir_all(&root);
        found.map(|(cpus, _)| cpus)
    }

    #[test]
    fn the_tightest_quota_of_a_group_and_those_above_counts() {
        let v2 = |own: &'static str, above: &'static str| {
            [("proc/self/cgroup", "0::/a/b"), ("sys/fs/cgroup/a/b/cpu.max", own), ("sys/fs/cgroup/a/cpu.max", above)]
        };
        assert_eq!(quota("max", &v2("max 100000", "max 100000")), None);
        assert_eq!(quota("own", &v2("250000 100000", "max 100000")), Some(2.5));
        assert_eq!(quota("above", &v2("400000 100000", "50000 100000")), Some(0.5));
        assert_eq!(quota("odd", &v2("x", "0 0")), None);
        assert_eq!(quota("none", &[]), None);
    }

    #[test]
    fn quotas_of_v1_are_two_files() {
        let v1 = |quota: &'static str| {
            [
                ("proc/self/cgroup", "3:cpuset:/x\n4:cpu,cpuacct:/docker/abc"),
                ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", quota),
                ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000"),
            ]
        };
        assert_eq!(quota("v1", &v1("300000")), Some(3.0));
        assert_eq!(quota("v1-none", &v1("-1")), None);
    }
}
