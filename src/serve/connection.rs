//! Connections: accepting them, watching over them, and closing those that take more than they may.
//!
//! Every connection has a phase and the time since when. One sweep over all of them, some times a second while there are
//! any, closes what has been idle, in its header, or stuck for too long; so a connection needs no timer of its own.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::app::App;
use super::connections::{Connection, Member, Phase, SWEEP};
use super::listen::{Listener, SocketPath};
use super::router;

/// A connected socket.
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    /// A further descriptor of it.
    fn duplicate(&self) -> io::Result<OwnedFd> {
        match self {
            Socket::Tcp(tcp) => tcp.as_fd().try_clone_to_owned(),
            Socket::Unix(unix) => unix.as_fd().try_clone_to_owned(),
        }
    }
}

/// A connected socket that tells its connection what happens on it.
struct Wire {
    socket: Socket,
    connection: Rc<Connection>,
}

impl Wire {
    fn wrote<T>(&self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match &result {
            Poll::Pending if self.connection.stuck.get().is_none() => self.connection.stuck.set(Some(Instant::now())),
            Poll::Pending => {}
            Poll::Ready(_) => self.connection.stuck.set(None),
        }
        result
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.connection.has_end() {
            return self.connection.poll_end(cx).map(Ok);
        }
        let (before, room) = (buffer.filled().len(), buffer.remaining());
        let result = match &mut self.socket {
            Socket::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buffer),
            Socket::Unix(unix) => Pin::new(unix).poll_read(cx, buffer),
        };
        if buffer.filled().len() > before && self.connection.phase.get().0 == Phase::Idle {
            self.connection.enter(Phase::Header);
        }
        let is_end = matches!(result, Poll::Ready(Ok(()))) && room > 0 && buffer.filled().len() == before;
        if is_end && self.connection.phase.get().0 == Phase::Busy {
            self.connection.set_end(self.socket.duplicate().ok());
            return self.connection.poll_end(cx).map(Ok);
        }
        result
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = match &mut self.socket {
            Socket::Tcp(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Socket::Unix(unix) => Pin::new(unix).poll_write(cx, bytes),
        };
        self.wrote(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = match &mut self.socket {
            Socket::Tcp(tcp) => Pin::new(tcp).poll_write_vectored(cx, parts),
            Socket::Unix(unix) => Pin::new(unix).poll_write_vectored(cx, parts),
        };
        self.wrote(result)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Sockets keep nothing back.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Socket::Unix(unix) => Pin::new(unix).poll_shutdown(cx),
        }
    }
}

enum Acceptor {
    Tcp(TcpListener),
    Unix(UnixListener, #[allow(dead_code, reason = "removes the path at the end")] Option<SocketPath>),
}

impl Acceptor {
    async fn accept(&self) -> io::Result<Socket> {
        match self {
            Acceptor::Tcp(tcp) => {
                let (socket, _) = tcp.accept().await?;
                // A token is worth a packet.
                socket.set_nodelay(true)?;
                Ok(Socket::Tcp(socket))
            }
            Acceptor::Unix(unix, _) => Ok(Socket::Unix(unix.accept().await?.0)),
        }
    }
}

/// What a client is told where all connections are busy.
const FULL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// Accepts connections and serves them, until it is dropped.
///
/// # Errors
/// What the event loop says of the socket.
pub async fn accept(listener: Listener, app: Rc<App>) -> io::Result<()> {
    let hosts = Rc::new(app.config.hosts_of(&listener));
    let acceptor = match listener {
        Listener::Tcp(tcp) => Acceptor::Tcp(TcpListener::from_std(tcp)?),
        Listener::Unix(unix, path) => Acceptor::Unix(UnixListener::from_std(unix)?, path),
    };
    loop {
        let socket = match acceptor.accept().await {
            Ok(socket) => socket,
            // The client has gone again.
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(e) => {
                // Mostly that there are no more descriptors; some will be closed soon.
                log::warn!("accept: {e}");
                tokio::time::sleep(SWEEP).await;
                continue;
            }
        };
        match app.connections.admit(&app.config.limits, &hosts) {
            Some(member) => drop(tokio::task::spawn_local(serve(socket, member, Rc::clone(&app)))),
            None => {
                app.metrics.refused_connections.set(app.metrics.refused_connections.get() + 1);
                let _ = match &socket {
                    Socket::Tcp(tcp) => tcp.try_write(FULL),
                    Socket::Unix(unix) => unix.try_write(FULL),
                };
            }
        }
    }
}

async fn serve(socket: Socket, member: Member, app: Rc<App>) {
    let connection = Rc::clone(&member.connection);
    let wire = TokioIo::new(Wire { socket, connection: Rc::clone(&connection) });
    let limits = app.config.limits;
    let service = service_fn(|request| {
        connection.enter(Phase::Busy);
        router::answer(Rc::clone(&app), request, Rc::clone(&connection))
    });
    let mut builder = http1::Builder::new();
    builder.max_header_size(limits.header_bytes).max_headers(HEADERS_MAX).max_buf_size(limits.header_bytes.max(8192));
    builder.header_read_timeout(None);
    let mut served = std::pin::pin!(builder.serve_connection(wire, service));
    let closed = std::pin::pin!(async {
        tokio::select! {
            () = connection.close.notified() => {}
            () = gone(&connection) => {}
        }
    });
    // A connection that fails has told its client what there was to tell.
    let _ = race(served.as_mut(), closed).await;
    drop(member);
}

/// An interim answer: every client of HTTP/1.1 skips it.
const INTERIM: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// How long a client that has closed its half is believed to wait, and how soon after it was written to it is known to be gone.
const BELIEVED: Duration = Duration::from_secs(1);
const REFUSED: Duration = Duration::from_millis(100);

/// Waits until a client that has closed its half is known to be gone. To the system the end of one that only listens looks the
/// same until something is written to it: before an answer that is an interim one, of a stream it is a sign of life.
async fn gone(connection: &Connection) {
    connection.ended().await;
    // Where there is no further descriptor to ask with, it counts as gone.
    let Some(mut probe) = connection.probe.borrow_mut().take().map(File::from) else { return };
    loop {
        tokio::time::sleep(BELIEVED).await;
        // The first makes the other side refuse, the second finds that it has.
        for _ in 0..2 {
            if connection.takes_interim.get() {
                match probe.write(INTERIM) {
                    Ok(n) if n == INTERIM.len() => {}
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    _ => return,
                }
            }
            tokio::time::sleep(REFUSED).await;
        }
    }
}

/// Most header lines of a request.
const HEADERS_MAX: usize = 64;

/// Whichever of two ends first; `None` for the second.
async fn race<A: Future, B: Future>(mut a: Pin<&mut A>, mut b: Pin<&mut B>) -> Option<A::Output> {
    std::future::poll_fn(|cx| match a.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending => b.as_mut().poll(cx).map(|_| None),
    })
    .await
}
