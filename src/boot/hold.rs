//! The other end of a plan: weights alone, in sealed memory, for other processes.

use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use super::headers::Headers;
use super::place::{MappedPlan, Policy};
use super::progress::with_bar;
use crate::error::Result;
use crate::load::resident::{Holder, Manifest};
use crate::load::stage::FillPages;
use crate::load::weights::{Loader, readers};
use crate::memory::{Host, RegionName, Shared};
use crate::settings::Settings;
use crate::sys;

/// Loads the weights of `settings.model` into sealed memory and hands it out at `socket` until SIGTERM or SIGINT;
/// `ready` is called once it is there.
///
/// # Errors
/// As the chapters of a model; exit 7 where the socket cannot be had.
pub fn hold(settings: &Settings, socket: &Path, ready: impl FnOnce(&Manifest, &MappedPlan, Duration)) -> Result<()> {
    let begun = Instant::now();
    let headers = Headers::read(settings)?;
    // First of all, for another holder there means that loading would be in vain.
    let holder = Holder::listen(socket)?;
    let mut plan = settings.empty_plan();
    plan.add(RegionName::Weights, headers.model.weights.bytes as u64)?;
    let (mut shared, mapped) = Policy::of(settings, Host::default()).shared(&plan)?;
    load(&headers, &mut shared)?;
    let manifest = headers.manifest(mapped.plan.page());
    drop(headers);
    let sealed = shared.seal()?;
    let stop = sys::signal::terminations()?;
    ready(&manifest, &mapped, begun.elapsed());
    if let Err(e) = sys::socket::notify_supervisor("READY=1") {
        log::warn!("cannot tell the supervisor: {e}");
    }
    let served = holder.serve(&manifest, &sealed, &stop);
    let _ = sys::socket::notify_supervisor("STOPPING=1");
    served
}

/// Loads the weights into `shared`.
fn load(headers: &Headers<'_>, shared: &mut Shared) -> Result<()> {
    let Headers { files, model, kernels, settings, .. } = headers;
    // Its buffers are ordinary memory, so there are as few of them as for a small model.
    let n_readers = readers(settings.threads(), 0);
    let buffer_bytes = model.buffer_bytes(n_readers);
    let mut buffers = vec![0u8; n_readers * buffer_bytes];
    let done = AtomicU64::new(0);
    let pages = shared.pages();
    let region = &mut shared.bytes_mut()[..model.weights.bytes];
    let filling = pages.filling(region);
    let populate = |place: &mut [u8]| Ok(pages.populate(place)?);
    let loader = Loader::new(kernels, buffers.chunks_exact_mut(buffer_bytes))
        .io(settings.io)
        .cpus(&settings.cores)
        .populate(&populate)
        .filling(filling.as_ref().map(|filling| filling as &dyn FillPages))
        .sha256(&settings.sha256)
        .done(&done);
    with_bar(headers.file_bytes(), &done, || model.load(files, region, loader))?;
    Ok(())
}
