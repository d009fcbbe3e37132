//! Resource limits of this process.

use rustix::process::{Resource, getrlimit};

/// One soft limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Its name as `ulimit` users know it, e.g. `RLIMIT_AS`.
    pub name: &'static str,
    /// The soft limit; `None` is unlimited.
    pub soft: Option<u64>,
}

/// The limits that can stop brim: address space, data, locked memory, open files.
pub fn relevant() -> [Limit; 4] {
    [
        ("RLIMIT_AS", Resource::As),
        ("RLIMIT_DATA", Resource::Data),
        ("RLIMIT_MEMLOCK", Resource::Memlock),
        ("RLIMIT_NOFILE", Resource::Nofile),
    ]
    .map(|(name, resource)| Limit { name, soft: getrlimit(resource).current })
}
