//! `brim bench`: measures this box against its own ceilings.
//!
//! Repetitions are interleaved: every round measures everything once, ceilings among it, so that a change of clock or
//! of neighbours meets all alike. Reported are medians, least and greatest.

mod attention;
mod ceilings;
mod delta;
mod figures;
mod kernels;
mod load;
mod memory;
mod model;
mod streams;

use log::LevelFilter;

use super::args::Bench;
use super::common::{out, resolve};
use crate::error::{Error, Result};

/// Executes `brim bench`.
///
/// # Errors
/// Usage, or whatever stands in the way of loading and running.
pub fn execute(args: &Bench) -> Result<()> {
    let overrides = if args.what == "load" { args.overrides_with_held() } else { args.overrides() };
    let settings = resolve(&overrides, LevelFilter::Warn)?;
    if args.resident.is_some() && args.what != "load" {
        return Err(Error::usage(format!(
            "--resident is for `bench load`, not for `bench {}`; leave it out",
            args.what
        )));
    }
    if args.repeat == 0 || args.repeat > 1000 {
        return Err(Error::usage(format!("-r {}: needs 1 to 1000 repetitions", args.repeat)));
    }
    if args.types.is_some() && args.what != "kernels" {
        return Err(Error::usage(format!(
            "--type is for `bench kernels`, not for `bench {}`; leave it out",
            args.what
        )));
    }
    if args.streams.is_some() && (args.what != "model" || args.depth > 0) {
        return Err(Error::usage("--streams is for `bench model`, without -d"));
    }
    let report = match args.what.as_str() {
        "model" if args.streams.is_some() => streams::measure(args, &settings)?,
        "model" => model::measure(args, &settings)?,
        "kernels" => kernels::measure(args, &settings)?,
        "memory" => memory::measure(args, &settings)?,
        "load" => load::measure(args, &settings)?,
        other => return Err(Error::usage(format!("bench {other}: measures `model`, `kernels`, `memory` or `load`"))),
    };
    if args.json {
        out(&format!("{report:#}"))?;
    }
    Ok(())
}
