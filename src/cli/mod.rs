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
pub mod settings;
mod tokenize;

use std::io::Write;
use std::process::ExitCode;

use crate::error::{Error, Result};

pub use args::{Command, ModelArgs};

/// Parses the process's arguments, runs the command and reports its verdict.
pub fn main() -> ExitCode {
    // One line a record, to stderr; `-v` raises the level. Nothing is logged once a model is Ready.
    let logger = simple_logger::SimpleLogger::new().with_level(log::LevelFilter::Info);
    if logger.init().is_ok() {
        log::set_max_level(log::LevelFilter::Warn);
    }
    let words: Vec<String> = match std::env::args_os().skip(1).map(|w| w.into_string()).collect() {
        Ok(words) => words,
        Err(word) => {
            return report(&Error::usage(format!("argument {word:?} is not valid UTF-8")));
        }
    };
    match args::parse(&words) {
        Ok(args::Parsed::Command(command)) => match execute(*command) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => report(&error),
        },
        Ok(args::Parsed::Text(text)) => {
            out(&text);
            ExitCode::SUCCESS
        }
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

/// Prints one result to stdout. A closed pipe is the reader's way of saying that it has enough; any other failure is
/// said aloud, for a result that is not written must not look like one.
fn out(text: &str) {
    if let Err(e) = writeln!(std::io::stdout(), "{text}")
        && e.kind() != std::io::ErrorKind::BrokenPipe
    {
        note(&format!("brim: stdout: {e}; the result above is incomplete"));
    }
}

/// Says something to people on stderr. Unlike `eprintln!` it does not end the process where nobody listens any more.
fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn report(error: &Error) -> ExitCode {
    note(&format!("brim: {error}"));
    ExitCode::from(error.exit() as u8)
}
