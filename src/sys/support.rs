//! Which system calls can be made: a kernel may be too old for one, or a sandbox (seccomp) forbid it.

use super::OsError;

/// A kernel's version: `6.12.115` of `6.12.115+deb13-amd64`.
pub type Version = (u32, u32, u32);

/// The version in a kernel's release, as `uname -r` and `/proc/sys/kernel/osrelease` say it.
pub fn parse_release(release: &str) -> Option<Version> {
    let number = |text: &str| -> Option<u32> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        text[..digits].parse().ok()
    };
    let mut parts = release.trim().splitn(3, '.');
    let (major, minor) = (number(parts.next()?)?, number(parts.next()?)?);
    Some((major, minor, parts.next().and_then(number).unwrap_or(0)))
}

/// Whether a call can be made that not every kernel has and not every sandbox allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// It can.
    Yes,
    /// The kernel is too old for it.
    Absent,
    /// A sandbox forbids it.
    Refused(OsError),
}

impl Support {
    /// What `tried` says of a call that is there since Linux `since`, and of which `absent` is the answer of a kernel without
    /// it. Sandboxes answer that as well: the kernel's version tells.
    pub(super) fn of(tried: Result<(), OsError>, absent: i32, since: (u32, u32)) -> Support {
        Support::on(parse_release(&rustix::system::uname().release().to_string_lossy()), tried, absent, since)
    }

    fn on(kernel: Option<Version>, tried: Result<(), OsError>, absent: i32, since: (u32, u32)) -> Support {
        let is_old = kernel.is_none_or(|(major, minor, _)| (major, minor) < since);
        match tried {
            Ok(()) => Support::Yes,
            Err(e) if e.errno == absent && is_old => Support::Absent,
            Err(e) => Support::Refused(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_distributions_are_read() {
        for (release, version) in [
            ("6.12.115+deb13-amd64\n", Some((6, 12, 115))),
            ("6.8.0-45-generic", Some((6, 8, 0))),
            ("5.15.167.4-microsoft-standard-WSL2", Some((5, 15, 167))),
            ("6.18-rc3", Some((6, 18, 0))),
            ("7.0.13", Some((7, 0, 13))),
            ("6", None),
            ("", None),
            ("99999999999.1.1", None),
        ] {
            assert_eq!(parse_release(release), version, "{release:?}");
        }
    }

    #[test]
    fn a_filter_is_told_from_an_old_kernel() {
        let error = |errno| OsError { call: "mseal", errno };
        let on = |kernel, errno| Support::on(kernel, Err(error(errno)), libc::ENOSYS, (6, 10));
        assert_eq!(Support::on(Some((6, 9, 0)), Ok(()), libc::ENOSYS, (6, 10)), Support::Yes);
        assert_eq!(on(Some((6, 9, 12)), libc::ENOSYS), Support::Absent);
        assert_eq!(on(None, libc::ENOSYS), Support::Absent);
        assert_eq!(on(Some((6, 9, 12)), libc::EPERM), Support::Refused(error(libc::EPERM)));
        assert_eq!(on(Some((6, 10, 0)), libc::ENOSYS), Support::Refused(error(libc::ENOSYS)));
        assert_eq!(on(Some((7, 0, 0)), libc::EPERM), Support::Refused(error(libc::EPERM)));
    }
}
