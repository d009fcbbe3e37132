//! A cgroup with a limit of huge pages; needs root.
#![allow(dead_code)]

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A cgroup (v2) with a limit of 2 MiB pages, removed on drop.
pub struct Group(PathBuf);

impl Group {
    pub fn new(limit_bytes: u64) -> Option<Group> {
        let root = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].into_iter().map(Path::new).find(|root| {
            fs::read_to_string(root.join("cgroup.controllers")).is_ok_and(|text| text.contains("hugetlb"))
        })?;
        fs::write(root.join("cgroup.subtree_control"), "+hugetlb").ok()?;
        let group = Group(root.join(format!("brim-test-{}", std::process::id())));
        fs::create_dir(&group.0).ok()?;
        fs::write(group.0.join("hugetlb.2MB.max"), limit_bytes.to_string()).ok()?;
        Some(group)
    }

    pub fn limit(&self, bytes: u64) {
        fs::write(self.0.join("hugetlb.2MB.max"), bytes.to_string()).unwrap();
    }

    /// brim in the group; `hidden` in a namespace in which it cannot see the limit.
    pub fn command(&self, words: &[impl AsRef<OsStr>], hidden: bool) -> Command {
        let unshare = if hidden { "exec unshare -C \"$@\"" } else { "exec \"$@\"" };
        let script = format!("echo $$ > {}/cgroup.procs && {unshare}", self.0.display());
        let program = env!("CARGO_BIN_EXE_brim");
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh", program]).args(words).stdin(Stdio::null());
        command
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}
