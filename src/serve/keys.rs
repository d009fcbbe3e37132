//! API keys: a file with one a line, compared in constant time, read again on SIGHUP.

use std::path::{Path, PathBuf};

use crate::error::{Error, Exit, Result};

/// Longest key.
const KEY_BYTES_MAX: usize = 512;

/// Most keys of one file.
const KEYS_MAX: usize = 4096;

/// The keys in force; without a file everybody may.
#[derive(Debug, Default)]
pub struct Keys {
    path: Option<PathBuf>,
    keys: Vec<Vec<u8>>,
}

impl Keys {
    /// Reads the keys at `path`; `None` lets everybody in.
    ///
    /// # Errors
    /// Usage, with what is wrong with the file.
    pub fn load(path: Option<&Path>) -> Result<Keys> {
        let keys = path.map(read).transpose()?.unwrap_or_default();
        Ok(Keys { path: path.map(Path::to_owned), keys })
    }

    /// Reads the file again; the old keys stay if it cannot be read.
    ///
    /// # Errors
    /// As [`Keys::load`].
    pub fn reload(&mut self) -> Result<usize> {
        if let Some(path) = &self.path {
            self.keys = read(path)?;
        }
        Ok(self.keys.len())
    }

    /// Whether nobody needs a key.
    pub fn is_open(&self) -> bool {
        self.path.is_none()
    }

    /// Whether `given` is one of the keys. The time it takes depends on lengths and on how many keys there are, not on
    /// what they are.
    pub fn admits(&self, given: Option<&[u8]>) -> bool {
        if self.is_open() {
            return true;
        }
        let given = given.unwrap_or_default();
        self.keys.iter().fold(false, |found, key| found | equal(key, given))
    }
}

/// Equality without a branch that depends on the bytes.
fn equal(key: &[u8], given: &[u8]) -> bool {
    let longer = key.len().max(given.len());
    let byte = |text: &[u8], i: usize| text.get(i).copied().unwrap_or(0);
    let differ =
        (0..longer).fold(key.len() ^ given.len(), |differ, i| differ | usize::from(byte(key, i) ^ byte(given, i)));
    std::hint::black_box(differ) == 0
}

fn read(path: &Path) -> Result<Vec<Vec<u8>>> {
    let fail = |why: String| Error::new(Exit::Usage, format!("keys file {}: {why}", path.display()));
    let text = std::fs::read(path).map_err(|e| fail(format!("{e}; it holds the API keys, one a line")))?;
    let lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let keys: Vec<Vec<u8>> =
        lines.filter(|line| !line.is_empty() && line[0] != b'#').map(<[u8]>::to_vec).take(KEYS_MAX + 1).collect();
    if keys.is_empty() {
        return Err(fail("it has no keys; write one per line, or leave keys_file out to let everybody in".to_owned()));
    }
    if keys.len() > KEYS_MAX {
        return Err(fail(format!("more than {KEYS_MAX} keys")));
    }
    if let Some(key) = keys.iter().find(|key| key.len() > KEY_BYTES_MAX) {
        return Err(fail(format!("a key has {} bytes; the limit is {KEY_BYTES_MAX}", key.len())));
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_compared_whole_and_read_again() {
        let path = std::env::temp_dir().join(format!("brim-keys-{}", std::process::id()));
        std::fs::write(&path, "# comment\n\nsecret-1\n  secret-2\r\n").unwrap();
        let mut keys = Keys::load(Some(&path)).unwrap();
        for (given, want) in [
            (Some(&b"secret-1"[..]), true),
            (Some(b"secret-2"), true),
            (Some(b"secret-"), false),
            (Some(b"secret-11"), false),
            (Some(b"secret-1\0"), false),
            (Some(b""), false),
            (None, false),
        ] {
            assert_eq!(keys.admits(given), want, "{given:?}");
        }
        std::fs::write(&path, "other").unwrap();
        assert_eq!(keys.reload().unwrap(), 1);
        assert!(keys.admits(Some(b"other")) && !keys.admits(Some(b"secret-1")));
        std::fs::write(&path, "# none\n").unwrap();
        assert!(keys.reload().is_err());
        assert!(keys.admits(Some(b"other")), "the old keys stay");
        std::fs::remove_file(&path).unwrap();
        assert!(Keys::load(Some(&path)).unwrap_err().to_string().contains("keys file"));
        assert!(Keys::load(None).unwrap().admits(None));
    }
}
