//! Unix sockets that hand over a message and a file descriptor, and the readiness notification of supervisors.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use super::OsError;

/// Longest message: more than a manifest of the largest split set takes, less than any socket's buffer.
pub const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// Connections that may wait to be served; each takes microseconds.
const BACKLOG: i32 = 16;

fn socket(kind: SocketType) -> Result<OwnedFd, OsError> {
    net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).map_err(|e| OsError::new("socket", e))
}

/// Two ends of a connection for [`send`] and [`receive`].
///
/// # Errors
/// The errno of `socketpair`.
pub fn pair() -> Result<(OwnedFd, OwnedFd), OsError> {
    net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(|e| OsError::new("socketpair", e))
}

/// Waits until something can be received, or the other end has gone; false where neither happens within `time`.
///
/// # Errors
/// The errno of `poll`.
pub fn wait(connection: impl AsFd, time: Duration) -> Result<bool, OsError> {
    let time = Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: time.subsec_nanos().into() };
    match poll(&mut [PollFd::new(&connection, PollFlags::IN)], Some(&time)) {
        Ok(n) => Ok(n > 0),
        Err(Errno::INTR) => Ok(false),
        Err(e) => Err(OsError::new("poll", e)),
    }
}

fn address(path: &Path) -> Result<SocketAddrUnix, OsError> {
    SocketAddrUnix::new(path).map_err(|e| OsError::new("the path as a socket address", e))
}

/// Listens at `path`, which owner and group of the process may connect to, and nobody else.
///
/// # Errors
/// The errno of `bind` (EADDRINUSE where something has that path) or `listen`.
pub fn listen(path: &Path) -> Result<OwnedFd, OsError> {
    let listener = socket(SocketType::SEQPACKET)?;
    let address = address(path)?;
    // The mask is the process's; brim binds before it starts threads that create files.
    let before = rustix::process::umask(Mode::from_raw_mode(0o117));
    let bound = net::bind(&listener, &address);
    rustix::process::umask(before);
    bound.map_err(|e| OsError::new("bind", e))?;
    net::listen(&listener, BACKLOG).map_err(|e| OsError::new("listen", e))?;
    Ok(listener)
}

/// Connects to who listens at `path`.
///
/// # Errors
/// ENOENT without a socket there, ECONNREFUSED without a listener, EACCES where the socket's mode forbids it.
pub fn connect(path: &Path) -> Result<OwnedFd, OsError> {
    let connection = socket(SocketType::SEQPACKET)?;
    loop {
        match net::connect(&connection, &address(path)?) {
            Ok(()) => return Ok(connection),
            Err(Errno::INTR) => {}
            Err(e) => return Err(OsError::new("connect", e)),
        }
    }
}

/// Waits for a connection, or until `stop` can be read: `None` then.
///
/// # Errors
/// The errno of `poll` or `accept`.
pub fn accept(listener: BorrowedFd<'_>, stop: BorrowedFd<'_>) -> Result<Option<OwnedFd>, OsError> {
    loop {
        let mut fds = [PollFd::new(&stop, PollFlags::IN), PollFd::new(&listener, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) if !fds[0].revents().is_empty() => return Ok(None),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(e) => return Err(OsError::new("poll", e)),
        }
        match net::accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(connection) => return Ok(Some(connection)),
            // The other end has gone again, or was never let in.
            Err(Errno::INTR | Errno::AGAIN | Errno::CONNABORTED | Errno::PERM) => {}
            Err(e) => return Err(OsError::new("accept", e)),
        }
    }
}

/// Sends one message with one descriptor, without ever waiting.
///
/// # Errors
/// The errno of `sendmsg`; EMSGSIZE beyond [`MESSAGE_BYTES_MAX`].
pub fn send(connection: impl AsFd, message: &[u8], fd: BorrowedFd<'_>) -> Result<(), OsError> {
    if message.len() > MESSAGE_BYTES_MAX {
        return Err(OsError { call: "sendmsg", errno: libc::EMSGSIZE });
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    let pushed = control.push(SendAncillaryMessage::ScmRights(&fds));
    debug_assert!(pushed, "the space is for one descriptor");
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    net::sendmsg(connection, &[IoSlice::new(message)], &mut control, flags).map_err(|e| OsError::new("sendmsg", e))?;
    Ok(())
}

/// Receives one message and the descriptor that came with it.
///
/// # Errors
/// The errno of `recvmsg`; EPROTO where the message was cut off or came without a descriptor.
pub fn receive(connection: impl AsFd) -> Result<(Vec<u8>, OwnedFd), OsError> {
    let mut message = vec![0; MESSAGE_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match net::recvmsg(&connection, &mut [IoSliceMut::new(&mut message)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => break received,
            Err(Errno::INTR) => {}
            Err(e) => return Err(OsError::new("recvmsg", e)),
        }
    };
    let fd = control.drain().find_map(|part| match part {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let cut_off = received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    message.truncate(received.bytes);
    match fd.filter(|_| !cut_off) {
        Some(fd) => Ok((message, fd)),
        None => Err(OsError { call: "recvmsg", errno: libc::EPROTO }),
    }
}

/// Tells the supervisor that started this process what its state is (`READY=1`, `STOPPING=1`), where it asked to be told:
/// the protocol of systemd's `sd_notify`, one datagram to the socket that NOTIFY_SOCKET names.
///
/// # Errors
/// The errno of `socket` or `sendto`.
pub fn notify_supervisor(state: &str) -> Result<(), OsError> {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else { return Ok(()) };
    use std::os::unix::ffi::OsStrExt;
    let to = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddrUnix::new_abstract_name(name),
        None => SocketAddrUnix::new(&name),
    };
    let to = to.map_err(|e| OsError::new("NOTIFY_SOCKET as a socket address", e))?;
    let datagrams = socket(SocketType::DGRAM)?;
    net::sendto(datagrams, state.as_bytes(), SendFlags::NOSIGNAL, &to).map_err(|e| OsError::new("sendto", e))?;
    Ok(())
}

/// The name of this machine, as `hostname` has it; empty where it is not UTF-8.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_message_and_a_descriptor_go_over() {
        let path = std::env::temp_dir().join(format!("brim-socket-{}", std::process::id()));
        let listener = listen(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert_eq!(listen(&path).unwrap_err().errno, libc::EADDRINUSE);
        let client = connect(&path).unwrap();
        let (never, _keep) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        let server = accept(listener.as_fd(), never.as_fd()).unwrap().unwrap();
        let text = std::env::temp_dir().join(format!("brim-socket-text-{}", std::process::id()));
        std::fs::write(&text, "inside").unwrap();
        let sent = File::open(&text).unwrap();
        let long = vec![b'x'; MESSAGE_BYTES_MAX];
        send(&server, &long, sent.as_fd()).unwrap();
        assert_eq!(send(&server, &[0; MESSAGE_BYTES_MAX + 1], sent.as_fd()).unwrap_err().errno, libc::EMSGSIZE);
        let (message, fd) = receive(&client).unwrap();
        assert!(message == long);
        let mut inside = String::new();
        File::from(fd).read_to_string(&mut inside).unwrap();
        assert_eq!(inside, "inside");
        drop(server);
        assert_eq!(receive(&client).unwrap_err().errno, libc::EPROTO, "nothing more comes");
        drop(listener);
        assert_eq!(connect(&path).unwrap_err().errno, libc::ECONNREFUSED);
        std::fs::remove_file(path).unwrap();
        std::fs::remove_file(text).unwrap();
    }
}
