//! Commands: each file is one command; this one parses the words and returns the exit code.

mod args;
#[cfg(feature = "bench")]
mod bench;
mod common;
mod doctor;
mod eval;
mod hold;
mod inspect;
mod known;
mod models;
pub mod plan;
#[cfg(feature = "serve")]
mod prompt_cache;
mod run;
mod sampling;
#[cfg(feature = "demo")]
mod selftest;
#[cfg(feature = "serve")]
mod serve;
mod tokenize;

use std::process::ExitCode;

use log::LevelFilter;

use crate::error::{Error, Result};
use crate::sys::{self, signal};
use common::{note, out};

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
    let variables = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let done = match args::parse(&words) {
        Ok(args::Parsed::Command(command)) => {
            known::check_variables(variables, args::commands).and_then(|()| execute(*command))
        }
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
        Command::Models(args) => models::execute(&args),
        Command::Plan(args) => plan::execute(&args),
        Command::Run(args) => run::execute(&args),
        #[cfg(feature = "demo")]
        Command::Selftest(args) => selftest::execute(&args),
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::execute(&args),
        Command::Tokenize(args) => tokenize::execute(&args),
    }
}

fn report(error: &Error) -> ExitCode {
    note(&format!("brim: {error}"));
    ExitCode::from(error.exit() as u8)
}
