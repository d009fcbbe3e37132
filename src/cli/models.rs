//! `brim models`: the architectures that run, and why others do not.

use std::fmt::Write as _;

use serde_json::json;

use super::args::Models;
use super::common::put;
use crate::error::{Error, Result};
use crate::model::Known;

/// Runs the command.
pub fn execute(args: &Models) -> Result<()> {
    let text = match (args.json, args.markdown) {
        (true, true) => return Err(Error::usage("--json and --markdown: one of them at a time".to_owned())),
        (true, false) => document(),
        (false, true) => markdown(),
        (false, false) => report(),
    };
    put(&mut std::io::stdout().lock(), &text).map(|_| ())
}

/// Names, first of those that run.
fn parts() -> [Vec<&'static Known>; 2] {
    let (runs, others) = Known::all().iter().partition(|known| known.runs());
    [runs, others]
}

fn report() -> String {
    let [runs, others] = parts();
    let width = Known::all().iter().map(|known| known.name.len()).max().unwrap_or(0) + 2;
    let mut out = format!("{} architectures run:\n", runs.len());
    for known in &runs {
        let _ = writeln!(out, "  {:<width$}{}", known.name, known.models);
    }
    let _ = writeln!(out, "\n{} more are known and refused:", others.len());
    for known in &others {
        let _ = writeln!(out, "  {:<width$}{}: {}", known.name, known.models, known.lacks);
    }
    out
}

/// The table of README and of the goldens' page.
fn markdown() -> String {
    let [runs, others] = parts();
    let mut out = String::from("| `general.architecture` | models | runs |\n|---|---|---|\n");
    for known in runs {
        let _ = writeln!(out, "| `{}` | {} | yes |", known.name, known.models);
    }
    for known in others {
        let _ = writeln!(out, "| `{}` | {} | no: {} |", known.name, known.models, known.lacks);
    }
    out
}

fn document() -> String {
    let list = Known::all().iter().map(|known| {
        let Known { name, models, lacks, nearest } = *known;
        match known.runs() {
            true => json!({"name": name, "models": models, "runs": true}),
            false => json!({"name": name, "models": models, "runs": false, "lacks": lacks, "nearest": nearest}),
        }
    });
    format!("{:#}\n", json!({"architectures": list.collect::<Vec<_>>()}))
}
