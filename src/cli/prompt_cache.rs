//! The prompt cache between one start of the server and the next, in a file.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::common::file_name;
use crate::engine::{CacheError, Identity, Scheduler};
use crate::serve::config::CACHE_MIB_DEFAULT;

/// Where a server keeps its prompt cache. To lose it costs time, so nothing about it is an error.
pub(super) struct PromptCache {
    path: PathBuf,
    cap_bytes: u64,
    identity: Identity,
}

impl PromptCache {
    /// That of the model called `name` in the directory `dir`, of at most `mib` MiB.
    pub(super) fn new(dir: &str, name: &str, mib: Option<u32>, identity: Identity) -> PromptCache {
        let path = Path::new(dir).join(format!("{}.kv", file_name(name)));
        PromptCache { path, cap_bytes: u64::from(mib.unwrap_or(CACHE_MIB_DEFAULT)) << 20, identity }
    }

    /// Hands what was saved to the scheduler, and warns now if the end will have no place to save it.
    pub(super) fn restore(&self, scheduler: &mut Scheduler<'_>) {
        if let Err(e) = writable(&self.path) {
            log::warn!("{}: {e}; the prompt cache will not be saved", self.path.display());
        }
        let begun = Instant::now();
        let loaded = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            file => file.map_err(CacheError::Io).and_then(|file| scheduler.load_cache(file, &self.identity)),
        };
        match loaded {
            Ok(pages) => log::info!("prompt cache: {pages} pages restored in {:.2} s", begun.elapsed().as_secs_f64()),
            Err(e) => log::warn!("{}: {e}; the prompt cache starts empty", self.path.display()),
        }
    }

    /// Saves what the scheduler has.
    pub(super) fn save(&self, scheduler: &Scheduler<'_>) {
        let save = |file: &mut File| scheduler.save_cache(file, self.cap_bytes, &self.identity);
        match replace(&self.path, save) {
            Ok(pages) => log::info!("prompt cache: {pages} pages saved to {}", self.path.display()),
            Err(e) => log::warn!("{}: {e}; the prompt cache is not saved", self.path.display()),
        }
    }
}

/// It holds the tokens of prompts.
const OWNER_ONLY: u32 = 0o600;

/// Writes the file at `path`, readable by its owner alone, whose directory is made if it is missing. It is written beside its place, as `NAME.new`, and
/// moved there when it is whole and on the disk; if that fails, what was there stays, and `NAME.new` does not.
fn replace<T>(path: &Path, write: impl FnOnce(&mut File) -> Result<T, CacheError>) -> Result<T, CacheError> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let beside = path.with_extension("new");
    // What a process that was killed has left.
    let _ = fs::remove_file(&beside);
    let mut file = File::options().write(true).create_new(true).mode(OWNER_ONLY).open(&beside)?;
    let written = write(&mut file).and_then(|result| {
        file.sync_all()?;
        fs::rename(&beside, path)?;
        Ok(result)
    });
    if written.is_err() {
        // It would fill a disk that may be full already. The error that counts is the first.
        let _ = fs::remove_file(&beside);
    }
    written
}

/// Whether a file at `path` could be written; its directory is made, and nothing is left beside it.
fn writable(path: &Path) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    // Not `NAME.new`: the server before may be about to save.
    let probe = path.with_extension(format!("{}.try", std::process::id()));
    File::options().write(true).create_new(true).mode(OWNER_ONLY).open(&probe)?;
    fs::remove_file(probe)?;
    if path.is_dir() { Err(io::ErrorKind::IsADirectory.into()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    /// A directory of one test, removed at its end.
    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Dir {
            let path = std::env::temp_dir().join(format!("brim-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Dir(path)
        }

        fn names(&self) -> Vec<String> {
            fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn full(_: io::Error) -> CacheError {
        CacheError::Io(io::ErrorKind::StorageFull.into())
    }

    #[test]
    fn a_file_is_replaced_whole_in_a_directory_that_need_not_be_there() {
        let dir = Dir::new("replace");
        let path = dir.0.join("some/where/name.kv");
        for text in ["first", "second"] {
            replace(&path, |file| file.write_all(text.as_bytes()).map_err(full)).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(fs::read_dir(dir.0.join("some/where")).unwrap().count(), 1);
    }

    #[test]
    fn prompts_are_for_their_owner_alone_whatever_was_there_before() {
        let dir = Dir::new("replace-mode");
        let path = dir.0.join("name.kv");
        for name in ["name.kv", "name.new"] {
            fs::write(dir.0.join(name), "left for everybody to read").unwrap();
        }
        replace(&path, |file| file.write_all(b"tokens").map_err(full)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            (dir.names(), fs::read_to_string(&path).unwrap()),
            (vec!["name.kv".to_owned()], "tokens".to_owned())
        );
    }

    #[test]
    fn what_cannot_be_written_or_moved_leaves_nothing_beside_what_was_there() {
        let dir = Dir::new("replace-fails");
        let path = dir.0.join("name.kv");
        fs::write(&path, "before").unwrap();
        let failed = replace(&path, |file| {
            file.write_all(b"some of it").unwrap();
            Err::<(), _>(full(io::ErrorKind::Other.into()))
        });
        assert!(matches!(failed, Err(CacheError::Io(error)) if error.kind() == io::ErrorKind::StorageFull));
        assert_eq!(
            (dir.names(), fs::read_to_string(&path).unwrap()),
            (vec!["name.kv".to_owned()], "before".to_owned())
        );
        // Its place is a directory.
        let path = dir.0.join("taken.kv");
        fs::create_dir(&path).unwrap();
        assert!(replace(&path, |file| file.write_all(b"all of it").map_err(full)).is_err());
        assert_eq!(dir.names().iter().filter(|name| name.ends_with(".new")).count(), 0);
    }
}
