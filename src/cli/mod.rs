//! Commands: each file is one command; this one parses the words and returns the exit code.

mod args;
mod bench;
mod doctor;
mod inspect;
pub mod plan;
pub mod settings;
mod tokenize;

use std::process::ExitCode;

use crate::error::{Error, Exit, Result};

pub use args::{Command, ModelArgs};

/// Parses the process's arguments, runs the command and reports its verdict.
pub fn main() -> ExitCode {
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
        Command::Bench(args) => bench::execute(&args),
        Command::Doctor(args) => doctor::execute(args),
        Command::Inspect(args) => inspect::execute(&args),
        Command::Tokenize(args) => tokenize::execute(&args),
        other => Err(Error::new(Exit::Unexpected, format!("{other:?} has no body yet"))),
    }
}

/// Prints one result to stdout.
#[allow(clippy::print_stdout, reason = "results belong on stdout")]
fn out(text: &str) {
    println!("{text}");
}

fn report(error: &Error) -> ExitCode {
    eprintln!("brim: {error}");
    ExitCode::from(error.exit() as u8)
}
