//! A small process from which others are split off. It is split off itself while brim has one thread and nothing else, so
//! that splitting off from it is quick and safe for as long as it lives.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use super::{OsError, process, socket};

/// Our end of it. It ends when this is dropped, or this process ends.
#[derive(Debug)]
pub struct Zygote {
    control: OwnedFd,
}

/// A zygote for all who need one, or why there is none.
pub type SharedZygote = Result<Arc<Zygote>, OsError>;

impl Zygote {
    /// Splits it off. It has `handle` look at each message and the descriptor that came with it, and at `None` after `idle`
    /// without one. This comes before any thread is started and before anything is mapped or opened.
    ///
    /// # Errors
    /// EAGAIN where there are too many processes, and what `socketpair` says.
    pub fn start(idle: Duration, handle: impl FnMut(Option<(&[u8], OwnedFd)>)) -> SharedZygote {
        let (control, theirs) = socket::pair()?;
        process::fork(theirs.as_fd(), || run(theirs.as_fd(), idle, handle))?;
        Ok(Arc::new(Zygote { control }))
    }

    /// Hands it a message and a descriptor, without waiting for what it does.
    ///
    /// # Errors
    /// EPIPE where it has ended.
    pub fn send(&self, message: &[u8], fd: BorrowedFd<'_>) -> Result<(), OsError> {
        socket::send(&self.control, message, fd)
    }
}

/// The process, from its first step to its last.
fn run(control: BorrowedFd<'_>, idle: Duration, mut handle: impl FnMut(Option<(&[u8], OwnedFd)>)) {
    loop {
        process::reap();
        match socket::wait(control, idle) {
            Ok(true) => {}
            Ok(false) => {
                handle(None);
                continue;
            }
            Err(_) => return,
        }
        // Nothing more comes where the other end is gone.
        let Ok((message, fd)) = socket::receive(control) else { return };
        handle(Some((&message, fd)));
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn it_hears_messages_and_silence_and_ends_when_nothing_more_comes() {
        let mut heard = Vec::new();
        let zygote = Zygote::start(Duration::from_millis(20), |asked| match asked {
            None => heard.push(b'.'),
            Some((message, fd)) => {
                heard.truncate(1);
                heard.extend(message);
                let _ = File::from(fd).write_all(&heard);
            }
        });
        let zygote = zygote.unwrap();
        std::thread::sleep(Duration::from_millis(200));
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        zygote.send(b"hello", theirs.as_fd()).unwrap();
        drop(theirs);
        let mut said = String::new();
        ours.read_to_string(&mut said).unwrap();
        assert_eq!(said, ".hello");
        // Its end is closed when it has ended.
        let control = zygote.control.try_clone().unwrap();
        rustix::net::shutdown(&control, rustix::net::Shutdown::Write).unwrap();
        assert_eq!(socket::receive(&control).unwrap_err().errno, libc::EPROTO);
    }
}
