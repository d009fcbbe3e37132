//! `brim hold`: loads weights once and keeps them for later processes. It does nothing else, so there is nothing in it
//! that could fail once it is ready.

use std::path::PathBuf;

use log::LevelFilter;

use super::args::Hold;
use super::common::{announce, resolve};
use crate::boot;
use crate::error::{Error, Result};
use crate::load::resident;
use crate::settings::env_or;
use crate::units::Human;

/// Executes `brim hold`: returns after SIGTERM or SIGINT.
///
/// # Errors
/// Usage, whatever stands in the way of loading, and exit 7 where the socket cannot be had.
pub fn execute(args: &Hold) -> Result<()> {
    let settings = resolve(&args.overrides(), LevelFilter::Warn)?;
    if settings.model.is_none() {
        return Err(Error::usage("hold: the demo model is in the binary already; give a file with -m"));
    }
    for (option, given) in [("--ctx", args.ctx.is_some()), ("--kv-type", args.kv_type.is_some())] {
        if given {
            let text = format!("hold: {option} is for the process that uses the weights; leave it out");
            return Err(Error::usage(text));
        }
    }
    if settings.hugepages && settings.packed {
        return Err(Error::usage("hold: memory that is handed over has pages of one size; give --page-size 2M or 1G"));
    }
    let socket = env_or(args.socket.clone(), "BRIM_SOCKET")?;
    let socket = socket.map_or_else(resident::default_socket, PathBuf::from);
    boot::hold(&settings, &socket, |manifest, mapped, elapsed| {
        announce(&format!(
            "ready: {} of {} in {} pages, at {}, after {:.2} s",
            Human(manifest.weights_bytes),
            manifest.model,
            mapped.plan.page(),
            socket.display(),
            elapsed.as_secs_f64()
        ));
    })
}
