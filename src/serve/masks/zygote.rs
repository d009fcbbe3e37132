//! The process from which the process of each grammar is split off. It is split off itself while the server has one thread
//! and nothing else, so that it is small, and knows the vocabulary for as long as there are grammars.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use super::vocabulary::Vocabulary;
use super::worker::{self, Answer};
use crate::sys::{OsError, process, socket};

/// How long the vocabulary is kept for the next grammar: it takes 4 MiB with 150,000 tokens.
const KEEP: Duration = Duration::from_secs(30);

/// The server's end.
pub struct Zygote {
    control: OwnedFd,
}

const SESSION: &[u8] = b"session";
const VOCABULARY: &[u8] = b"vocabulary";

impl Zygote {
    /// Splits it off. This comes before any thread is started and before anything is mapped or opened. It ends when the
    /// server does.
    ///
    /// # Errors
    /// EAGAIN where there are too many processes, and what `socketpair` says.
    pub fn start() -> Result<Zygote, OsError> {
        let (control, theirs) = socket::pair()?;
        process::fork(theirs.as_fd(), || run(theirs.as_fd()))?;
        Ok(Zygote { control })
    }

    /// Has a process started that talks by `stream`.
    ///
    /// # Errors
    /// Where the zygote has ended.
    pub fn start_session(&self, stream: BorrowedFd<'_>) -> Result<(), OsError> {
        socket::send(&self.control, SESSION, stream)
    }

    /// Hands over what [`super::vocabulary::describe`] wrote.
    ///
    /// # Errors
    /// Where the zygote has ended.
    pub fn teach(&self, file: BorrowedFd<'_>) -> Result<(), OsError> {
        socket::send(&self.control, VOCABULARY, file)
    }
}

type Known = Option<Result<Arc<Vocabulary>, String>>;

/// The process, from its first step to its last.
fn run(control: BorrowedFd<'_>) {
    let mut vocabulary: Known = None;
    loop {
        process::reap();
        match socket::wait(control, KEEP) {
            Ok(true) => {}
            Ok(false) => {
                vocabulary = None;
                continue;
            }
            Err(_) => return,
        }
        // Nothing more comes where the server has ended.
        let Ok((message, fd)) = socket::receive(control) else { return };
        match message.as_slice() {
            VOCABULARY => vocabulary = Some(learn(File::from(fd))),
            _ => start(&UnixStream::from(fd), &vocabulary),
        }
    }
}

fn learn(mut file: File) -> Result<Arc<Vocabulary>, String> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|e| format!("the vocabulary cannot be read: {e}"))?;
    Vocabulary::read(&bytes)
}

fn start(stream: &UnixStream, vocabulary: &Known) {
    let said = match vocabulary {
        None => Some(Answer::Untaught),
        Some(vocabulary) => process::fork(stream.as_fd(), || worker::run(stream, vocabulary)).err().map(|e| {
            let advice = "raise RLIMIT_NPROC (`ulimit -u`, or TasksMax= of the unit) or pids.max of the cgroup";
            Answer::Unavailable(format!("a process for the grammar cannot be started: {e}: {advice}"))
        }),
    };
    if let Some(said) = said {
        // Whoever has hung up does not ask.
        let _ = said.send(stream);
    }
}
