//! Listening sockets: TCP, `unix:PATH`, or those that a supervisor passed on. An address that cannot be used is exit 7.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::error::{Error, Exit, Result};
use crate::sys::supervisor;

/// A socket that connections come from.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A unix socket; the path is removed at the end if brim made it.
    Unix(UnixListener, Option<SocketPath>),
}

/// The path of a unix socket that brim made; it goes with it.
#[derive(Debug)]
pub struct SocketPath(PathBuf);

impl Drop for SocketPath {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Opens what to listen on: the sockets that were passed on, else `addresses`, which commas are between.
///
/// # Errors
/// Exit 7 with the address, what the system says of it, and what to do.
pub fn open(addresses: &str) -> Result<Vec<Listener>> {
    let passed = supervisor::passed_sockets()
        .map_err(|e| Error::new(Exit::Listen, format!("cannot use a socket passed by LISTEN_FDS: {e}")))?;
    if !passed.is_empty() {
        return passed.into_iter().map(adopt).collect();
    }
    let mut listeners = Vec::new();
    for address in split(addresses) {
        match address.strip_prefix("unix:") {
            Some(path) => listeners.push(unix(Path::new(path))?),
            None => listeners.extend(tcp(address)?),
        }
    }
    Ok(listeners)
}

/// The addresses of an option, one by one.
pub(super) fn split(addresses: &str) -> impl Iterator<Item = &str> {
    addresses.split(',').map(str::trim)
}

impl Listener {
    /// The address, for people.
    pub fn address(&self) -> String {
        match self {
            Listener::Tcp(tcp) => tcp.local_addr().map_or_else(|e| e.to_string(), |a| format!("http://{a}")),
            Listener::Unix(_, Some(path)) => format!("unix:{}", path.0.display()),
            Listener::Unix(unix, None) => {
                let address = unix.local_addr().ok();
                let path = address.as_ref().and_then(|a| a.as_pathname());
                path.map_or("a passed unix socket".to_owned(), |p| format!("unix:{}", p.display()))
            }
        }
    }

    /// Whether other machines may reach it.
    pub fn is_public(&self) -> bool {
        match self {
            Listener::Tcp(tcp) => tcp.local_addr().is_ok_and(|a| !a.ip().to_canonical().is_loopback()),
            Listener::Unix(..) => false,
        }
    }

    /// The address that it listens on; loopback's where the system does not say, `None` for a unix socket.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Listener::Tcp(tcp) => {
                Some(tcp.local_addr().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |a| a.ip().to_canonical()))
            }
            Listener::Unix(..) => None,
        }
    }
}

/// The sockets of an address: for `localhost` one for either version of the protocol, because clients try one of them first.
fn tcp(address: &str) -> Result<Vec<Listener>> {
    let port =
        address.rsplit_once(':').filter(|(host, _)| host.eq_ignore_ascii_case("localhost")).map(|(_, port)| port);
    let Some(port) = port.and_then(|port| port.parse::<u16>().ok()) else { return Ok(vec![bind(address, address)?]) };
    let first = bind((Ipv4Addr::LOCALHOST, port), address)?;
    let port = match &first {
        Listener::Tcp(tcp) => tcp.local_addr().map_or(port, |found| found.port()),
        Listener::Unix(..) => port,
    };
    let second = match TcpListener::bind((Ipv6Addr::LOCALHOST, port)) {
        // A system without the newer version of the protocol.
        Err(e) if !matches!(e.kind(), ErrorKind::AddrInUse | ErrorKind::PermissionDenied) => return Ok(vec![first]),
        bound => taken(bound, address)?,
    };
    Ok(vec![first, second])
}

fn bind(address: impl ToSocketAddrs, name: &str) -> Result<Listener> {
    taken(TcpListener::bind(address), name)
}

fn taken(bound: std::io::Result<TcpListener>, address: &str) -> Result<Listener> {
    let listener = bound.map_err(|e| {
        let advice = match e.kind() {
            ErrorKind::AddrInUse => "stop what listens there, or choose another port",
            ErrorKind::PermissionDenied => "ports below 1024 need root or CAP_NET_BIND_SERVICE",
            ErrorKind::InvalidInput => "write ADDRESS:PORT, such as 127.0.0.1:8080, or unix:PATH",
            _ => "give an address of this box, such as 127.0.0.1:8080, or unix:PATH",
        };
        Error::new(Exit::Listen, format!("cannot listen on {address}: {e}; {advice}"))
    })?;
    prepared(Listener::Tcp(listener))
}

fn unix(path: &Path) -> Result<Listener> {
    let fail = |why: String| Error::new(Exit::Listen, format!("cannot listen on unix:{}: {why}", path.display()));
    if path.as_os_str().is_empty() {
        // To the kernel it is a socket of no name, which nobody could reach.
        return Err(fail("it needs a path, such as unix:/run/brim.sock".to_owned()));
    }
    if let Ok(found) = std::fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            return Err(fail("something else is there, not a socket; remove it or give another path".to_owned()));
        }
        if UnixStream::connect(path).is_ok() {
            return Err(fail("another server is alive there; stop it or give another path".to_owned()));
        }
        std::fs::remove_file(path).map_err(|e| fail(format!("a dead socket is in the way: {e}")))?;
    }
    let listener =
        UnixListener::bind(path).map_err(|e| fail(format!("{e}; the directory must exist and be writable")))?;
    let guard = SocketPath(path.to_owned());
    let mode = std::fs::Permissions::from_mode(0o660);
    std::fs::set_permissions(path, mode).map_err(|e| fail(format!("its mode cannot be set: {e}")))?;
    prepared(Listener::Unix(listener, Some(guard)))
}

/// A passed socket, whichever kind it is.
fn adopt(fd: OwnedFd) -> Result<Listener> {
    let tcp = TcpListener::from(fd);
    if tcp.local_addr().is_ok() {
        return prepared(Listener::Tcp(tcp));
    }
    let unix = UnixListener::from(OwnedFd::from(tcp));
    match unix.local_addr() {
        Ok(_) => prepared(Listener::Unix(unix, None)),
        Err(e) => Err(Error::new(Exit::Listen, format!("a passed descriptor is not a listening socket: {e}"))),
    }
}

fn prepared(listener: Listener) -> Result<Listener> {
    let set = match &listener {
        Listener::Tcp(tcp) => tcp.set_nonblocking(true),
        Listener::Unix(unix, _) => unix.set_nonblocking(true),
    };
    set.map_err(|e| Error::new(Exit::Listen, format!("{}: {e}", listener.address())))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn localhost_is_both_and_commas_are_between_addresses() {
        let path = std::env::temp_dir().join(format!("brim-listen-many-{}", std::process::id()));
        let listeners = open(&format!("localhost:0, unix:{}", path.display())).unwrap();
        let ips: Vec<_> = listeners.iter().map(Listener::ip).collect();
        assert_eq!((ips.first(), ips.last()), (Some(&Some(Ipv4Addr::LOCALHOST.into())), Some(&None)));
        if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
            assert_eq!(ips[1], Some(Ipv6Addr::LOCALHOST.into()));
            let port = |listener: &Listener| match listener {
                Listener::Tcp(tcp) => tcp.local_addr().unwrap().port(),
                Listener::Unix(..) => 0,
            };
            assert_eq!(port(&listeners[0]), port(&listeners[1]));
        }
        for addresses in ["127.0.0.1:0,", "127.0.0.1:0,localhost", "localhost:99999"] {
            assert_eq!(open(addresses).unwrap_err().exit(), Exit::Listen, "{addresses}");
        }
    }

    #[test]
    fn a_dead_socket_is_replaced_and_anything_else_is_left_alone() {
        let path = std::env::temp_dir().join(format!("brim-listen-{}", std::process::id()));
        let address = format!("unix:{}", path.display());
        let first = open(&address).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let error = open(&address).unwrap_err();
        assert!(error.exit() == Exit::Listen && error.to_string().contains("alive"), "{error}");
        drop(first);
        assert!(!path.exists());
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a server that was killed leaves its socket");
        drop(open(&address).unwrap());
        std::fs::write(&path, "mine").unwrap();
        assert!(open(&address).unwrap_err().to_string().contains("not a socket"));
        std::fs::remove_file(&path).unwrap();
        for address in ["256.0.0.1:80", "127.0.0.1", "unix:/nonexistent/dir/s", "unix:"] {
            let error = open(address).unwrap_err();
            assert!(error.exit() == Exit::Listen && error.to_string().contains(address), "{error}");
        }
    }
}
