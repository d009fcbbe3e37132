//! What commands share: how settings are resolved, and how results and notes are written.

use std::io::{ErrorKind, Write};
use std::path::Path;

use log::LevelFilter;

use crate::board::BoardError;
use crate::error::{Error, Exit, Result};
use crate::settings::{Overrides, Settings, env_or};
use crate::sys;

/// The settings of a command that says as much as `usual` on stderr, and one level more with `-v`. Nothing else sets how
/// much is said.
pub(super) fn resolve(overrides: &Overrides, usual: LevelFilter) -> Result<Settings> {
    let settings = Settings::resolve(overrides)?;
    say_as_much_as(&settings, usual);
    Ok(settings)
}

/// As [`resolve`], of each model of a server: at least one.
pub(super) fn resolve_served(overrides: &Overrides, usual: LevelFilter) -> Result<Vec<Settings>> {
    let all = Settings::resolve_served(overrides)?;
    all.iter().take(1).for_each(|settings| say_as_much_as(settings, usual));
    Ok(all)
}

fn say_as_much_as(settings: &Settings, usual: LevelFilter) {
    log::set_max_level(if settings.verbose { usual.increment_severity() } else { usual });
}

/// The names of a server's models, as clients see them: `flag` of the only one, those of the board, else those of their
/// files.
///
/// # Errors
/// Exit 3 where two have the same.
pub(super) fn names(all: &[Settings], flag: Option<String>) -> Result<Vec<String>> {
    let entry = |settings: &Settings| settings.board.serve.models.first().cloned().unwrap_or_default();
    let own = |settings: &Settings| entry(settings).name.unwrap_or_else(|| name_of(settings.model.as_deref()));
    let names: Vec<String> = match flag {
        Some(name) => vec![name],
        None => all.iter().map(own).collect(),
    };
    let aliases = all.iter().flat_map(|settings| entry(settings).aliases);
    let called = names.iter().cloned().chain(aliases).collect();
    let files = names.iter().map(|name| file_name(name)).collect();
    match twice(called).or_else(|| twice(files)) {
        Some(name) => {
            let why = format!("two of them are called {name}; give each a name of its own (name, aliases)");
            Err(BoardError::Refused { key: "serve.models", why }.into())
        }
        None => Ok(names),
    }
}

/// A name that is there more than once.
fn twice(mut names: Vec<String>) -> Option<String> {
    names.sort_unstable();
    names.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0].clone())
}

/// The name of a model in the name of a file.
pub(super) fn file_name(name: &str) -> String {
    name.replace('/', "_")
}

/// The name of a model that was given none: that of its file, without what says which part of a set it is.
fn name_of(model: Option<&str>) -> String {
    let Some(path) = model else { return "brim-demo".to_owned() };
    let stem = Path::new(path).file_stem().map_or_else(|| path.into(), |stem| stem.to_string_lossy());
    match stem.rsplit_once("-of-").and_then(|(first, _)| first.rsplit_once('-')) {
        Some((name, part)) if part.bytes().all(|byte| byte.is_ascii_digit()) => name.to_owned(),
        _ => stem.into_owned(),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files() {
        for (path, name) in [
            (Some("/m/Qwen3-8B-Q4_K_M.gguf"), "Qwen3-8B-Q4_K_M"),
            (Some("big-00001-of-00003.gguf"), "big"),
            (Some("best-of-breed.gguf"), "best-of-breed"),
            (None, "brim-demo"),
        ] {
            assert_eq!(name_of(path), name);
        }
    }
}
