//! SHA-256 of files whose chunks come in any order, each from another thread: hashed in the order of the file.

use std::sync::{Condvar, Mutex};

use sha2::{Digest, Sha256};

use super::chunks::Chunk;
use super::header::{ModelFiles, model_error};
use crate::error::Result;

/// A SHA-256.
pub type Sha256Bytes = [u8; 32];

/// The running checksums of a model's files.
pub(super) struct Digests<'a> {
    /// What is expected, file by file.
    expected: &'a [Option<Sha256Bytes>],
    /// Index of the chunk that is to be hashed next, and the state of its file.
    state: Mutex<(usize, Sha256)>,
    turn: Condvar,
}

impl<'a> Digests<'a> {
    pub(super) fn new(expected: &'a [Option<Sha256Bytes>]) -> Digests<'a> {
        Digests { expected, state: Mutex::new((0, Sha256::new())), turn: Condvar::new() }
    }

    /// Hashes chunk `index` once all before it are. Chunks are drawn in order, so whoever has the first of those that are
    /// under way never waits. Does nothing once `failed` says so.
    ///
    /// # Errors
    /// Exit 4 where this was the last of a file and the checksum is another.
    pub(super) fn add(
        &self,
        files: &ModelFiles,
        index: usize,
        chunk: &Chunk<'_>,
        bytes: &[u8],
        failed: &dyn Fn() -> bool,
    ) -> Result<()> {
        let Ok(mut state) = self.state.lock() else { return Ok(()) };
        while state.0 != index {
            if failed() {
                return Ok(());
            }
            match self.turn.wait(state) {
                Ok(again) => state = again,
                Err(_) => return Ok(()),
            }
        }
        let expected = self.expected[usize::from(chunk.file)];
        if expected.is_some() {
            state.1.update(bytes);
        }
        let ends = chunk.bytes.end == files.file_bytes(chunk.file);
        let found: Option<Sha256Bytes> = ends.then(|| std::mem::take(&mut state.1).finalize().into());
        state.0 += 1;
        self.turn.notify_all();
        drop(state);
        match (expected, found) {
            (Some(expected), Some(found)) if expected != found => {
                let text = format!(
                    "SHA-256 is {}, model.sha256 of the board file says {}: this is another file, or it is damaged; \
                     download it again or correct the board file",
                    hex(&found),
                    hex(&expected)
                );
                Err(model_error(files.path(chunk.file), text))
            }
            _ => Ok(()),
        }
    }

    /// Wakes those that wait, for them to see that the load has failed.
    pub(super) fn give_up(&self) {
        // The lock makes sure that nobody is between looking and waiting.
        drop(self.state.lock());
        self.turn.notify_all();
    }
}

fn hex(bytes: &Sha256Bytes) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
