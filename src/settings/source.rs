//! Where the value of an option comes from: the flag, else `BRIM_<OPTION>` in the environment, else the board. The value
//! keeps its source, so that a refusal names what its reader can change.

use std::fmt::Display;
use std::str::FromStr;

use crate::board::BoardError;
use crate::error::{Error, Result};

/// The environment, replaceable in tests: the value of a variable, `None` where it is not set.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Where a value came from, which decides whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Flag,
    Env,
    /// The key of the board file.
    Board(&'static str),
}

/// The environment of this process.
pub(super) fn process_env(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

/// `flag`, else the value of the environment variable `name`; an empty variable counts as unset.
///
/// # Errors
/// A usage error that names the variable.
pub fn env_or<T: FromStr>(flag: Option<T>, name: &str) -> Result<Option<T>>
where
    T::Err: Display,
{
    match flag {
        Some(flag) => Ok(Some(flag)),
        None => from_env(&process_env, name),
    }
}

/// As [`env_or`] for a switch: the variable may be 1, 0, true or false. `None` where neither says, so that a board may.
///
/// # Errors
/// As [`env_or`].
pub fn env_or_switch(flag: bool, name: &str) -> Result<Option<bool>> {
    if flag { Ok(Some(true)) } else { switch_from_env(&process_env, name) }
}

pub(super) fn from_env<T: FromStr>(env: Env<'_>, name: &str) -> Result<Option<T>>
where
    T::Err: Display,
{
    match env(name).filter(|value| !value.is_empty()) {
        None => Ok(None),
        Some(value) => value.parse().map(Some).map_err(|e| Error::usage(format!("{name}={value}: {e}"))),
    }
}

pub(super) fn switch_from_env(env: Env<'_>, name: &str) -> Result<Option<bool>> {
    match env(name).as_deref() {
        None | Some("") => Ok(None),
        Some("1" | "true") => Ok(Some(true)),
        Some("0" | "false") => Ok(Some(false)),
        Some(value) => Err(Error::usage(format!("{name}={value}: expected 1, 0, true or false"))),
    }
}

/// The value of the long option `option` and its source. `board` is the board's value with its key.
pub(super) fn pick<T: FromStr>(
    env: Env<'_>,
    option: &str,
    flag: Option<T>,
    board: Option<(&'static str, T)>,
) -> Result<Option<(T, Source)>>
where
    T::Err: Display,
{
    if let Some(flag) = flag {
        return Ok(Some((flag, Source::Flag)));
    }
    if let Some(value) = from_env(env, &variable(option))? {
        return Ok(Some((value, Source::Env)));
    }
    Ok(board.map(|(key, value)| (value, Source::Board(key))))
}

/// The value of a flag.
pub(super) fn parse_flag<T: FromStr>(option: &str, flag: Option<&str>) -> Result<Option<T>>
where
    T::Err: Display,
{
    flag.map(|value| value.parse().map_err(|e| Error::usage(format!("--{option} {value}: {e}")))).transpose()
}

fn variable(option: &str) -> String {
    format!("BRIM_{}", option.replace('-', "_").to_uppercase())
}

/// A refusal of the value of `option` in the words of where it came from.
pub(super) fn refuse(option: &str, source: Source, why: impl Display) -> Error {
    match source {
        Source::Flag => Error::usage(format!("--{option}: {why}")),
        Source::Env => Error::usage(format!("{}: {why}", variable(option))),
        Source::Board(key) => BoardError::Refused { key, why: why.to_string() }.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Exit;

    #[test]
    fn a_refusal_names_what_its_reader_can_change() {
        let nothing = |_: &str| None;
        let (ctx, source) = pick(&nothing, "ctx", None, Some(("model.ctx", 7u32))).unwrap().unwrap();
        let error = refuse("ctx", source, format!("{ctx} is odd"));
        assert_eq!((error.to_string().as_str(), error.exit()), ("model.ctx: 7 is odd", Exit::Board));
        let five = |name: &str| (name == "BRIM_PAGE_SIZE").then(|| "5".to_owned());
        let (_, source) = pick(&five, "page-size", None, Some(("memory.page_size", 7u32))).unwrap().unwrap();
        assert_eq!(refuse("page-size", source, "no").to_string(), "BRIM_PAGE_SIZE: no");
        let (_, source) = pick(&five, "page-size", Some(3u32), None).unwrap().unwrap();
        let error = refuse("page-size", source, "no");
        assert_eq!((error.to_string().as_str(), error.exit()), ("--page-size: no", Exit::Usage));
    }
}
