//! All connections, and what becomes of those that are over their limits.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::config::ClientLimits;
use super::host::Hosts;

/// How often connections are looked at, while there are any.
pub(super) const SWEEP: Duration = Duration::from_millis(250);

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing has come since the last answer.
    Idle,
    /// Part of a header has come.
    Header,
    /// A request is being answered.
    Busy,
}

/// One connection, as the table sees it.
#[derive(Debug)]
pub struct Connection {
    pub(super) phase: Cell<(Phase, Instant)>,
    /// Since when the other side has taken nothing of what waits for it.
    pub(super) stuck: Cell<Option<Instant>>,
    pub(super) close: Notify,
    /// The other side has closed its half. It may still read.
    end: Cell<bool>,
    end_seen: Notify,
    /// A descriptor of the socket from then on, to ask whether it is still there.
    pub(super) probe: RefCell<Option<OwnedFd>>,
    /// Who is to be told of the end once there is no request any more.
    reader: RefCell<Option<Waker>>,
    /// Nothing of the answer has been written, and the client knows interim answers.
    pub(super) takes_interim: Cell<bool>,
    /// The hosts that are answered on it.
    pub hosts: Rc<Hosts>,
}

impl Connection {
    fn new(hosts: Rc<Hosts>) -> Connection {
        let phase = Cell::new((Phase::Idle, Instant::now()));
        Connection {
            phase,
            stuck: Cell::new(None),
            close: Notify::new(),
            end: Cell::new(false),
            end_seen: Notify::new(),
            probe: RefCell::new(None),
            reader: RefCell::new(None),
            takes_interim: Cell::new(false),
            hosts,
        }
    }

    /// Nothing more comes from the other side.
    pub(super) fn set_end(&self, probe: Option<OwnedFd>) {
        *self.probe.borrow_mut() = probe;
        self.end.set(true);
        self.end_seen.notify_waiters();
    }

    /// Whether nothing more comes.
    pub(super) fn has_end(&self) -> bool {
        self.end.get()
    }

    /// Waits until nothing more comes.
    pub async fn ended(&self) {
        while !self.end.get() {
            self.end_seen.notified().await;
        }
    }

    /// While a request is answered its end is held back: to hyper it would be the end of everything.
    pub(super) fn poll_end(&self, cx: &Context<'_>) -> Poll<()> {
        if self.phase.get().0 != Phase::Busy {
            return Poll::Ready(());
        }
        *self.reader.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Enters a phase.
    pub fn enter(&self, phase: Phase) {
        self.phase.set((phase, Instant::now()));
        if phase != Phase::Busy
            && let Some(reader) = self.reader.borrow_mut().take()
        {
            reader.wake();
        }
    }

    fn is_over(&self, limits: &ClientLimits, now: Instant) -> bool {
        let (phase, since) = self.phase.get();
        let limit = match phase {
            Phase::Idle => limits.idle_time,
            Phase::Header => limits.header_time,
            Phase::Busy => Duration::MAX,
        };
        let is_stuck = self.stuck.get().is_some_and(|since| now.duration_since(since) > limits.write_time);
        is_stuck || now.duration_since(since) > limit
    }
}

/// All connections.
#[derive(Debug, Default)]
pub struct Connections {
    all: RefCell<Vec<Rc<Connection>>>,
    /// There is one again, or one less.
    changed: Notify,
}

impl Connections {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.borrow().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.borrow().is_empty()
    }

    /// Takes in a connection; at the limit the one that has been without a request for the longest goes. `None` where all
    /// have one.
    pub(super) fn admit(self: &Rc<Connections>, limits: &ClientLimits, hosts: &Rc<Hosts>) -> Option<Member> {
        if self.len() >= limits.connections {
            let mut all = self.all.borrow_mut();
            let idle = all.iter().enumerate().filter(|(_, c)| c.phase.get().0 != Phase::Busy);
            let (oldest, _) = idle.min_by_key(|(_, c)| c.phase.get().1)?;
            all.swap_remove(oldest).close.notify_one();
        }
        let connection = Rc::new(Connection::new(Rc::clone(hosts)));
        self.all.borrow_mut().push(Rc::clone(&connection));
        self.changed.notify_one();
        Some(Member { connection, table: Rc::clone(self) })
    }

    /// Closes what is over its limits, for as long as the server runs.
    pub async fn sweep(&self, limits: ClientLimits) {
        loop {
            if self.is_empty() {
                self.changed.notified().await;
            }
            tokio::time::sleep(SWEEP).await;
            let now = Instant::now();
            self.all.borrow().iter().filter(|c| c.is_over(&limits, now)).for_each(|c| c.close.notify_one());
        }
    }

    /// Closes all that have no request.
    pub fn close_idle(&self) {
        self.all.borrow().iter().filter(|c| c.phase.get().0 != Phase::Busy).for_each(|c| c.close.notify_one());
    }
}

/// A connection's place in the table; left when dropped.
pub(super) struct Member {
    pub(super) connection: Rc<Connection>,
    table: Rc<Connections>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.table.all.borrow_mut().retain(|other| !Rc::ptr_eq(other, &self.connection));
        self.table.changed.notify_one();
    }
}
