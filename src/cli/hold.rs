//! `brim hold`: loads weights once and keeps them for later processes. It does nothing else, so there is nothing in it
//! that could fail once it is ready.

use std::path::PathBuf;

use super::announce;
use super::args::Hold;
use super::settings::{Settings, env_or};
use crate::boot;
use crate::error::{Error, Result};
use crate::load::resident;
use crate::units::Human;

/// Executes `brim hold`: returns after SIGTERM or SIGINT.
///
/// # Errors
/// Usage, whatever stands in the way of loading, and exit 7 where the socket cannot be had.
pub fn execute(args: &Hold) -> Result<()> {
    let settings = Settings::resolve(&args.model_args())?;
    if settings.model.is_none() {
        return Err(Error::usage("hold: the demo model is in the binary already; give a file with -m"));
    }
    for (option, given) in [("--ctx", args.ctx.is_some()), ("--kv-type", args.kv_type.is_some())] {
        if given {
            let text = format!("hold: {option} is for the process that uses the weights; leave it out");
            return Err(Error::usage(text));
        }
    }
    if settings.packed {
        return Err(Error::usage("hold: memory that is handed over has pages of one size; give --page-size 2M or 1G"));
    }
    let socket = env_or(args.socket.clone(), "BRIM_SOCKET")?;
    let socket = socket.map_or_else(resident::default_socket, PathBuf::from);
    boot::hold(&settings, &socket, |manifest, elapsed| {
        announce(&format!(
            "ready: {} of {} in {} pages, at {}, after {:.2} s",
            Human(manifest.weights_bytes),
            manifest.model,
            settings.page,
            socket.display(),
            elapsed.as_secs_f64()
        ));
    })
}
