//! Weights that outlive the process: a holder keeps them in sealed memory and hands that to whoever asks at its socket.
//!
//! The whole protocol is one message, from the holder, to each connection: a [`Manifest`] in JSON and the descriptor of
//! the memory, for reading only. Nothing is ever read from a client, so no client can disturb the holder.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::header::ModelFiles;
use crate::error::{Error, Exit, Result};
use crate::sys::map::Mapping;
use crate::sys::memfd::Sealed;
use crate::sys::read::FileId;
use crate::sys::socket;

/// What is held: everything that must be the same for it to be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// What tells the way its weights lie in their region from others: an equal one has equal panels in equal places.
    pub layout: String,
    /// Version of the holder.
    pub version: String,
    /// Process id of the holder.
    pub holder: u32,
    /// Kernel tier that it was loaded for.
    pub tier: String,
    /// Path of the first file.
    pub model: String,
    /// The files as they were.
    pub files: Vec<FileId>,
    /// SHA-256 of the header of the first file, in hexadecimal.
    pub header_sha256: String,
    /// Bytes of the weights.
    pub weights_bytes: u64,
    /// Bytes of the page that they lie in.
    pub page_bytes: u64,
}

impl Manifest {
    /// Of weights loaded from `files` by this process.
    pub fn new(files: &ModelFiles, layout: String, tier: &str, weights_bytes: u64, page_bytes: u64) -> Manifest {
        Manifest {
            layout,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            holder: std::process::id(),
            tier: tier.to_owned(),
            model: std::path::absolute(files.path(0))
                .unwrap_or_else(|_| files.path(0).to_owned())
                .display()
                .to_string(),
            files: files.ids().collect(),
            header_sha256: Sha256::digest(files.header_bytes()).iter().map(|byte| format!("{byte:02x}")).collect(),
            weights_bytes,
            page_bytes,
        }
    }

    /// Why what is held cannot stand for `wanted`: exit code and sentence.
    fn mismatch(&self, wanted: &Manifest) -> Option<(Exit, String)> {
        let (held, holder) = (&self.model, self.holder);
        let refuse = |exit, text: String| Some((exit, text));
        if self.files.len() != wanted.files.len() || self.files.iter().zip(&wanted.files).any(|(a, b)| !a.same_file(b))
        {
            let text = format!("it holds {held}, another file than {}: hold that one", wanted.model);
            return refuse(Exit::Model, text);
        }
        if self.files != wanted.files || self.header_sha256 != wanted.header_sha256 {
            let text = format!("{held} has changed since it was loaded: restart the holder (process {holder})");
            return refuse(Exit::Model, text);
        }
        if self.tier != wanted.tier {
            let text = format!(
                "it was loaded for the kernel tier {}, this process uses {}: give both the same --isa",
                self.tier, wanted.tier
            );
            return refuse(Exit::Memory, text);
        }
        if self.weights_bytes != wanted.weights_bytes {
            let text = format!(
                "it holds {} bytes of weights, this process needs {}: give both the same version and the same memory.embedding",
                self.weights_bytes, wanted.weights_bytes
            );
            return refuse(Exit::Memory, text);
        }
        (self.layout != wanted.layout).then(|| {
            let text = format!(
                "it is brim {} with weight layout {:.8}, this is brim {} with layout {:.8}: restart the holder with this version",
                self.version, self.layout, wanted.version, wanted.layout
            );
            (Exit::Memory, text)
        })
    }
}

/// The socket without a path given: in the user's runtime directory, else that of the system.
pub fn default_socket() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir).join("brim.sock"),
        None => PathBuf::from("/run/brim.sock"),
    }
}

/// Sealed weights and the socket they are handed out at; the socket's name goes away with it.
#[derive(Debug)]
pub struct Holder {
    path: PathBuf,
    listener: OwnedFd,
}

impl Holder {
    /// Takes the socket at `path`; one that a holder has left behind there is replaced.
    ///
    /// # Errors
    /// Exit 7: another holder is alive there, the path is something else, or cannot be had.
    pub fn listen(path: &Path) -> Result<Holder> {
        let failed = |cause: &dyn std::fmt::Display| {
            Error::new(Exit::Listen, format!("cannot listen there: {cause}")).at(path.display())
        };
        use std::os::unix::fs::FileTypeExt;
        if let Ok(found) = std::fs::symlink_metadata(path) {
            if !found.file_type().is_socket() {
                return Err(failed(&"something else is there, not a socket; choose another --socket"));
            }
            match socket::connect(path) {
                Err(e) if e.errno == libc::ECONNREFUSED => std::fs::remove_file(path).map_err(|e| failed(&e))?,
                Err(e) => return Err(failed(&e)),
                Ok(_) => {
                    return Err(failed(&"another holder is alive there; stop it, or choose another --socket"));
                }
            }
        }
        let listener = socket::listen(path).map_err(|e| failed(&e))?;
        Ok(Holder { path: path.to_owned(), listener })
    }

    /// Hands out `memory` with its manifest to whoever connects, until `stop` can be read.
    ///
    /// # Errors
    /// Exit 7: the socket fails.
    pub fn serve(&self, manifest: &Manifest, memory: &Sealed, stop: &OwnedFd) -> Result<()> {
        use std::os::fd::AsFd;
        let unexpected = |e: crate::sys::OsError| Error::from(e).at(self.path.display());
        let message = serde_json::to_vec(manifest).map_err(|e| Error::new(Exit::Unexpected, e))?;
        loop {
            let next = socket::accept(self.listener.as_fd(), stop.as_fd());
            let Some(client) = next.map_err(|e| Error::new(Exit::Listen, unexpected(e)))? else { return Ok(()) };
            if let Err(e) = socket::send(&client, &message, memory.as_fd()) {
                log::warn!("a client went away: {e}");
            }
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Weights that another process holds, mapped for reading.
#[derive(Debug)]
pub struct Resident {
    mapping: Mapping,
    weights_bytes: usize,
}

impl Resident {
    /// Asks the holder at `path` for the weights that `wanted` describes, and maps them.
    ///
    /// # Errors
    /// Exit 5: no holder, or one of another layout or tier, or memory that is not sealed. Exit 4: it holds another file, or
    /// the file has changed.
    pub fn connect(path: &Path, wanted: &Manifest) -> Result<Resident> {
        let place = || format!("resident weights at {}", path.display());
        let failed = |text: String| Error::new(Exit::Memory, text).at(place());
        let connection = socket::connect(path).map_err(|e| {
            failed(format!("{e}: start `brim hold -m {} --socket {}` first", wanted.model, path.display()))
        })?;
        let (message, memory) =
            socket::receive(&connection).map_err(|e| failed(format!("the holder sent nothing: {e}")))?;
        let held: Manifest = serde_json::from_slice(&message).map_err(|e| {
            failed(format!(
                "the holder's answer makes no sense to this version ({e}): restart the holder with this version"
            ))
        })?;
        if let Some((exit, text)) = held.mismatch(wanted) {
            return Err(Error::new(exit, text).at(place()));
        }
        let Some(memory) = Sealed::of(memory) else {
            return Err(failed("the memory is not sealed: restart the holder".to_owned()));
        };
        let bytes = memory.bytes()?;
        if bytes < held.weights_bytes {
            return Err(failed(format!("the memory is too short ({bytes} bytes): restart the holder")));
        }
        let too_large = |_| failed(format!("{bytes} bytes exceed the address space"));
        let len = usize::try_from(bytes).map_err(too_large)?;
        let mapping = Mapping::shared_read_only(&memory, len).map_err(|e| failed(e.to_string()))?;
        // Not more than `len`.
        Ok(Resident { mapping, weights_bytes: held.weights_bytes as usize })
    }

    /// The weights region.
    pub fn weights(&self) -> &[u8] {
        &self.mapping.bytes()[..self.weights_bytes]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let id = FileId { device: (1, 2), inode: 3, bytes: 4, modified_ns: 5 };
        Manifest {
            layout: "a1".to_owned(),
            version: "1".to_owned(),
            holder: 77,
            tier: "avx2".to_owned(),
            model: "/m.gguf".to_owned(),
            files: vec![id, id],
            header_sha256: "00".to_owned(),
            weights_bytes: 6,
            page_bytes: 4096,
        }
    }

    #[test]
    fn every_mismatch_is_refused_by_name() {
        let held = manifest();
        assert_eq!(held.mismatch(&Manifest { holder: 1, model: "/other/name".to_owned(), ..manifest() }), None);
        type Change = fn(&mut Manifest);
        let changes: [(Change, Exit, &str); 7] = [
            (|m| m.layout.push('0'), Exit::Memory, "weight layout a1, this is brim 1 with layout a10"),
            (|m| m.files[1].inode += 1, Exit::Model, "another file than"),
            (|m| m.files.truncate(1), Exit::Model, "another file than"),
            (
                |m| m.files[0].modified_ns += 1,
                Exit::Model,
                "/m.gguf has changed since it was loaded: restart the holder (process 77)",
            ),
            (|m| m.header_sha256.push('0'), Exit::Model, "has changed since"),
            (|m| m.tier = "scalar".to_owned(), Exit::Memory, "tier avx2, this process uses scalar"),
            (|m| m.weights_bytes += 1, Exit::Memory, "holds 6 bytes of weights, this process needs 7"),
        ];
        for (change, exit, part) in changes {
            let mut wanted = manifest();
            change(&mut wanted);
            let (found, text) = held.mismatch(&wanted).unwrap();
            assert_eq!(found, exit, "{text}");
            assert!(text.contains(part), "{part:?} not in {text}");
        }
    }
}
