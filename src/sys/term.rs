//! Terminals.

use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, poll};

/// Whether `fd` is a terminal.
pub fn is_terminal(fd: impl AsFd) -> bool {
    rustix::termios::isatty(fd)
}

/// Waits until `fd` can be read, or until a signal arrives: `false` then.
pub fn wait_readable(fd: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, None).is_ok()
}

/// Columns of the terminal behind `fd`, `None` where it is none or does not say.
pub fn columns(fd: impl AsFd) -> Option<u16> {
    let size = rustix::termios::tcgetwinsize(fd).ok()?;
    (size.ws_col > 0).then_some(size.ws_col)
}
