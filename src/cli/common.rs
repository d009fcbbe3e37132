//! What commands share: how settings are resolved, and how results and notes are written.

use std::io::{ErrorKind, Write};

use log::LevelFilter;

use crate::error::{Error, Exit, Result};
use crate::settings::{Overrides, Settings, env_or};
use crate::sys;

/// The settings of a command that says as much as `usual` on stderr, and one level more with `-v`. Nothing else sets how
/// much is said.
pub(super) fn resolve(overrides: &Overrides, usual: LevelFilter) -> Result<Settings> {
    let settings = Settings::resolve(overrides)?;
    log::set_max_level(if settings.verbose { usual.increment_severity() } else { usual });
    Ok(settings)
}

/// How many checkpoints there are to be, if anybody says so: the flag, else the environment, else the board.
pub(super) fn checkpoints(flag: Option<u32>, settings: &Settings) -> Result<Option<usize>> {
    let checkpoints = env_or(flag, "BRIM_CHECKPOINTS")?.or(settings.board.serve.checkpoints);
    Ok(checkpoints.map(|checkpoints| checkpoints as usize))
}

/// Prints a result and a line break to stdout.
///
/// # Errors
/// As [`put`].
pub(super) fn out(text: &str) -> Result<()> {
    put(&mut std::io::stdout().lock(), &format!("{text}\n")).map(|_| ())
}

/// Writes a part of a result to stdout at once; `false` where the pipe is closed, its reader's way of saying that it has
/// enough.
///
/// # Errors
/// Exit 1 for any other failure, for a result that is not written must not look like one.
pub(super) fn put(stdout: &mut impl Write, text: &str) -> Result<bool> {
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(Error::new(Exit::Unexpected, format!("{e}; what was written there is incomplete")).at("stdout")),
    }
}

/// Says on stdout how far a daemon is. It goes on where nobody can be told, and where the reader is too slow.
pub(super) fn announce(text: &str) {
    if !sys::log::to_stdout(text) {
        log::warn!("stdout does not take {text:?}");
    }
}

/// Says something to people on stderr.
pub(super) fn note(text: &str) {
    sys::log::line(text);
}
