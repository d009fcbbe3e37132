//! What the zygote of the server does: it splits off the process of each grammar, and that of each rendering. It knows the
//! vocabulary of each model for as long as there are grammars.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::vocabulary::Vocabulary;
use super::worker::{self, MaskAnswer};
use crate::chat::process as rendering;
use crate::error::PROCESS_ADVICE;
use crate::sys::process;
use crate::sys::zygote::{SharedZygote, Zygote};

/// A process is to be started that talks by the descriptor. The number of the model follows.
pub(super) const SESSION: u8 = b's';
/// The descriptor has what [`super::vocabulary::describe`] wrote. The number of the model follows.
pub(super) const VOCABULARY: u8 = b'v';

/// How long a vocabulary is kept for the next grammar: it takes 4 MiB with 150,000 tokens.
const KEEP: Duration = Duration::from_secs(30);

/// Splits it off, which comes before any thread is started and before anything is mapped or opened.
///
/// # Errors
/// As [`Zygote::start`].
pub fn start() -> SharedZygote {
    let mut known: BTreeMap<u8, (Known, Instant)> = BTreeMap::new();
    Zygote::start(KEEP, move |asked| {
        known.retain(|_, (_, last_use)| last_use.elapsed() < KEEP);
        match asked {
            None => {}
            Some((rendering::MESSAGE, stream)) => rendering::start(&UnixStream::from(stream)),
            Some((&[VOCABULARY, model], file)) => {
                known.insert(model, (learn(File::from(file)), Instant::now()));
            }
            Some((message, stream)) => {
                let model = message.last().copied().unwrap_or_default();
                let found = known.get_mut(&model).map(|(vocabulary, last_use)| {
                    *last_use = Instant::now();
                    &*vocabulary
                });
                start_session(&UnixStream::from(stream), found);
            }
        }
    })
}

type Known = Result<Arc<Vocabulary>, String>;

fn learn(mut file: File) -> Result<Arc<Vocabulary>, String> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|e| format!("the vocabulary cannot be read: {e}"))?;
    Vocabulary::read(&bytes)
}

fn start_session(stream: &UnixStream, vocabulary: Option<&Known>) {
    let said = match vocabulary {
        None => Some(MaskAnswer::Untaught),
        Some(vocabulary) => process::fork(stream.as_fd(), || worker::run(stream, vocabulary)).err().map(|e| {
            MaskAnswer::Unavailable(format!("a process for the grammar cannot be started: {e}: {PROCESS_ADVICE}"))
        }),
    };
    if let Some(said) = said {
        // Whoever has hung up does not ask.
        let _ = said.send(stream);
    }
}
