//! Commands: each file is one command; this one parses the words and returns the exit code.

mod args;
#[cfg(feature = "bench")]
mod bench;
mod doctor;
mod eval;
mod hold;
mod inspect;
pub mod plan;
#[cfg(feature = "serve")]
mod prompt_cache;
mod run;
#[cfg(feature = "demo")]
mod selftest;
#[cfg(feature = "serve")]
mod serve;
mod tokenize;

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use log::LevelFilter;

use crate::error::{Error, Exit, Result};
use crate::settings::{Overrides, Settings};
use crate::sys::{self, signal};

pub use args::Command;

/// Parses the process's arguments, runs the command and reports its verdict.
pub fn main() -> ExitCode {
    // `-v` raises the level. The engine logs nothing once a model is Ready.
    sys::log::install(LevelFilter::Warn);
    if let Err(e) = signal::ignore_file_size() {
        log::warn!("a file that grows beyond `ulimit -f` ends brim: {e}");
    }
    let words: Vec<String> = match std::env::args_os().skip(1).map(|w| w.into_string()).collect() {
        Ok(words) => words,
        Err(word) => {
            return report(&Error::usage(format!("argument {word:?} is not valid UTF-8")));
        }
    };
    let done = match args::parse(&words) {
        Ok(args::Parsed::Command(command)) => execute(*command),
        Ok(args::Parsed::Text(text)) => out(&text),
        Err(error) => Err(error),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

fn execute(command: Command) -> Result<()> {
    match command {
        #[cfg(feature = "bench")]
        Command::Bench(args) => bench::execute(&args),
        Command::Doctor(args) => doctor::execute(args),
        Command::Eval(args) => eval::execute(&args),
        Command::Hold(args) => hold::execute(&args),
        Command::Inspect(args) => inspect::execute(&args),
        Command::Plan(args) => plan::execute(&args),
        Command::Run(args) => run::execute(&args),
        #[cfg(feature = "demo")]
        Command::Selftest(args) => selftest::execute(&args),
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::execute(&args),
        Command::Tokenize(args) => tokenize::execute(&args),
    }
}

/// The settings of a command that says as much as `usual` on stderr, and one level more with `-v`. Nothing else sets how
/// much is said.
fn resolve(overrides: &Overrides, usual: LevelFilter) -> Result<Settings> {
    let settings = Settings::resolve(overrides)?;
    log::set_max_level(if settings.verbose { usual.increment_severity() } else { usual });
    Ok(settings)
}

/// Prints a result and a line break to stdout.
///
/// # Errors
/// As [`put`].
fn out(text: &str) -> Result<()> {
    put(&mut std::io::stdout().lock(), &format!("{text}\n")).map(|_| ())
}

/// Writes a part of a result to stdout at once; `false` where the pipe is closed, its reader's way of saying that it has
/// enough.
///
/// # Errors
/// Exit 1 for any other failure, for a result that is not written must not look like one.
fn put(stdout: &mut impl Write, text: &str) -> Result<bool> {
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(Error::new(Exit::Unexpected, format!("{e}; what was written there is incomplete")).at("stdout")),
    }
}

/// Says on stdout how far a daemon is. It goes on where nobody can be told, and where the reader is too slow.
fn announce(text: &str) {
    if !sys::log::to_stdout(text) {
        log::warn!("stdout does not take {text:?}");
    }
}

/// Says something to people on stderr.
fn note(text: &str) {
    sys::log::line(text);
}

fn report(error: &Error) -> ExitCode {
    note(&format!("brim: {error}"));
    ExitCode::from(error.exit() as u8)
}
