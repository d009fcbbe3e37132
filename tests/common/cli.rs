//! The built binary, run as a user would.
#![allow(dead_code)]

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// A command of brim that no `BRIM_*` variable of the caller reaches.
pub fn brim<S: AsRef<OsStr>>(words: &[S]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_brim"));
    command.args(words).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("BRIM_") {
            command.env_remove(name);
        }
    }
    command
}

/// What one run came to.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        let text = |bytes| String::from_utf8(bytes).expect("brim writes UTF-8");
        Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Ran {
    /// Standard output, after exit code 0.
    pub fn good(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }

    /// Standard output as the one JSON document it should be, after exit code 0.
    pub fn json(self) -> Value {
        let text = self.good();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }

    /// Checks the exit code and that the message on stderr, which begins with `brim: ` behind warnings, has all `parts`.
    pub fn fails(self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        let message = self.stderr.lines().find(|line| !line.starts_with("WARN "));
        assert!(message.is_some_and(|line| line.starts_with("brim: ")), "{self:?}");
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is missing in {self:?}");
        }
    }
}

/// Runs brim to its end with nothing on stdin.
pub fn run<S: AsRef<OsStr>>(words: &[S]) -> Ran {
    brim(words).output().expect("brim starts").into()
}

/// Runs brim to its end with `input` on stdin.
pub fn run_with<S: AsRef<OsStr>>(words: &[S], input: &[u8]) -> Ran {
    let mut child =
        brim(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("brim starts");
    // Small enough for the pipe's buffer, so nobody waits for anybody.
    assert!(input.len() < 60_000);
    let mut stdin = child.stdin.take().expect("piped");
    // A process that has already refused its options reads nothing; its exit code tells.
    let _ = stdin.write_all(input);
    drop(stdin);
    child.wait_with_output().expect("it was started").into()
}

/// A golden model by name.
pub fn golden(name: &str) -> String {
    format!("{}/tests/golden/models/{name}.gguf", env!("CARGO_MANIFEST_DIR"))
}

/// A directory that goes away with the test.
pub struct Dir(PathBuf);

impl Dir {
    pub fn new(name: &str) -> Dir {
        let path = std::env::temp_dir().join(format!("brim-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory for temporary files");
        Dir(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Path of the file `name`, whether it exists or not.
    pub fn at(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("UTF-8").to_owned()
    }

    /// Writes a file and returns its path.
    pub fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.at(name);
        std::fs::write(&path, bytes).expect("the directory is there");
        path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
