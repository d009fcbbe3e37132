//! Chapter 4: weights and vocabulary are loaded, the weights are sealed, the workers started; the engine runs.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::buffers::Buffers;
use super::headers::{Headers, vocabulary};
use super::place::{Mapped, MappedPlan};
use super::progress::with_bar;
use crate::engine::{self, Core, Identity};
use crate::error::{Error, Result};
use crate::kernels::{Kernels, Team};
use crate::load::Progress;
use crate::load::header::ModelFiles;
use crate::load::reader::Traffic;
use crate::load::resident::Resident;
use crate::load::stage;
use crate::load::weights::{Job, Loader, run_jobs};
use crate::memory::{Arena, Growing, Host, OpenRegions, Pages, UffdFill, Unsealed};
use crate::model::{Model, ModelError};
use crate::sys::code;
use crate::tokenizer::{self, Tokenizer};
use crate::units::Human;
use crate::workers::Workers;

/// Bytes of scratch (and of the KV cache and states) that are cleared at a time, between reads.
const POPULATE_BYTES: usize = 8 << 20;

/// What a running model stands on. It owns what [`Running`] borrows, so it is declared before it.
#[derive(Default)]
pub struct Foundations<'p> {
    shared_workers: Option<&'p Workers>,
    workers: Option<Workers>,
    model: Option<Model>,
    resident: Option<Resident>,
    arena: Option<Arena>,
}

impl<'p> Foundations<'p> {
    /// For a model whose passes run on the workers of another: the two take turns. The settings of both name the same CPUs.
    pub fn sharing(workers: &'p Workers) -> Foundations<'p> {
        Foundations { shared_workers: Some(workers), ..Foundations::default() }
    }
}

/// A loaded model, for as long as its foundations stand.
pub struct Running<'a> {
    /// The model at work: for an [`Engine`](crate::engine::Engine) or a [`Scheduler`](crate::engine::Scheduler).
    pub core: Core<'a>,
    /// Text to tokens and back.
    pub tokenizer: Tokenizer<'a>,
    /// The sealed weights region, for measuring what reading it costs.
    pub weights: &'a [u8],
    /// The workers.
    pub workers: &'a Workers,
    /// What was mapped.
    pub mapped: MappedPlan,
    /// How the load went.
    pub loaded: LoadReport,
    /// What a saved prefix cache must be of; of a model that serves alone.
    pub identity: Option<Identity>,
}

/// How a load went.
#[derive(Clone, Copy, Debug)]
pub struct LoadReport {
    /// Bytes read.
    pub bytes: u64,
    /// Time from the first read to the last repack, pages of every region cleared.
    pub elapsed: Duration,
    /// Which way they came.
    pub traffic: Traffic,
    /// Threads that may read at a time.
    pub readers: usize,
}

impl Mapped<'_> {
    /// Loads the model into its memory and seals the weights. `progress` tells how far that is.
    ///
    /// # Errors
    /// A read that fails (4); memory that was promised and cannot be had, or a holder that has other weights (5).
    ///
    /// # Panics
    /// If the workers that `base` shares are not as many as the settings name CPUs.
    pub fn start<'a>(self, base: &'a mut Foundations<'_>, progress: &Progress) -> Result<Running<'a>> {
        let begun = Instant::now();
        let Mapped { headers, sizes, is_serving, arena, mapped } = self;
        let Foundations { shared_workers, workers, model, resident, arena: slot } = base;
        let arena = slot.insert(arena);
        let ready = Getting { headers: &headers, mapped: &mapped, pages: arena.pages(), progress };
        let OpenRegions { weights, vocab, kv, states, scratch } = arena.open();
        let source = vocabulary(&headers.files, headers.settings)?;
        let mut built = None;
        let (place, pages, files) = (&mut built, ready.pages, &headers.files);
        let build: Build<'_> = Box::new(move || {
            pages.populate(vocab)?;
            *place = Some(tokenizer::build(&source, vocab).map_err(|e| Error::from(e).at(files.name()))?);
            Ok(())
        });
        let written = Written { kv: &mut *kv, states: &mut *states, scratch: &mut *scratch };
        let (weights, traffic, readers) = match &headers.settings.resident {
            None => ready.load(weights, written, build)?,
            Some(socket) => {
                let resident = resident.insert(ready.attach(socket, written, build)?);
                (resident.weights(), Traffic::default(), 0)
            }
        };
        let tokenizer = built.expect("getting ready has built it");
        check_vocabulary(&tokenizer, &headers)?;
        let bytes = progress.done.load(Ordering::Relaxed);
        let loaded = LoadReport { bytes, elapsed: begun.elapsed(), traffic, readers };
        let workers = match shared_workers {
            Some(workers) => *workers,
            None => workers.insert(Workers::start(&headers.settings.cores)?),
        };
        assert_eq!(workers.size(), sizes.workers, "shared workers are as many as the settings name CPUs");
        log_loaded(&headers, &mapped, &loaded);
        let tables = headers.model.tables(&headers.files)?;
        let identity = is_serving.then(|| identity(&headers.files, headers.kernels));
        // The headers have been read into the vocabulary region; the heap copy of them ends here.
        let Headers { model: read, kernels, .. } = headers;
        let model = model.insert(read);
        let (kv, states) = (Growing::new(kv, pages), Growing::new(states, pages));
        let core = Core::new(model, kernels, workers, sizes, (weights, kv, states, scratch), tables);
        code::forget();
        Ok(Running { core, tokenizer, weights, workers, mapped, loaded, identity })
    }
}

/// Something to be done while weights are on their way, such as building the vocabulary.
type Build<'j> = Box<dyn FnOnce() -> Result<()> + Send + 'j>;

/// The regions that passes write to.
struct Written<'r> {
    kv: &'r mut [u8],
    states: &'r mut [u8],
    scratch: &'r mut [u8],
}

/// A model that gets ready.
#[derive(Clone, Copy)]
struct Getting<'g> {
    headers: &'g Headers<'g>,
    mapped: &'g MappedPlan,
    pages: Pages,
    progress: &'g Progress,
}

impl Getting<'_> {
    /// Reads the weights into their region and seals it; meanwhile builds the vocabulary and clears what passes write to.
    /// Returns the weights, which way they came, and how many threads may have read.
    fn load<'a>(
        &self,
        mut weights: Unsealed<'a>,
        Written { kv, states, scratch }: Written<'_>,
        build: Build<'_>,
    ) -> Result<(&'a [u8], Traffic, usize)> {
        let Headers { files, model, kernels, settings, .. } = self.headers;
        let (mut free_kv, mut free_scratch) = (&mut *kv, &mut *scratch);
        let buffers = Buffers::of(model, settings.threads()).carve(&mut free_kv, &mut free_scratch);
        let readers = buffers.len();
        let mut jobs: Vec<Job<'_>> = vec![build];
        self.clear([free_scratch, free_kv, states], &mut jobs);
        let filling = self.pages.filling(weights.bytes());
        let populate = |place: &mut [u8]| Ok(self.pages.populate(place)?);
        let loader = Loader::new(kernels, buffers)
            .io(settings.io)
            .cpus(&settings.cores)
            .populate(&populate)
            .populate_buffers(&populate)
            .filling(filling.as_ref().map(|filling| filling as &dyn stage::FillPages))
            .meanwhile(jobs)
            .sha256(&settings.sha256)
            .done(&self.progress.done);
        let total = self.headers.file_bytes();
        self.progress.begin(total);
        let traffic = with_bar(total, &self.progress.done, || model.load(files, weights.bytes(), loader))?;
        drop(filling);
        // What was set aside for buffers and not used as such.
        self.pages.populate(scratch)?;
        if self.is_kv_cleared() {
            self.pages.populate(kv)?;
        }
        Ok((weights.seal()?, traffic, readers))
    }

    /// Asks the holder at `socket` for its weights; meanwhile does what [`Getting::load`] does.
    fn attach(&self, socket: &Path, written: Written<'_>, build: Build<'_>) -> Result<Resident> {
        let mut held = None;
        let mut jobs: Vec<Job<'_>> = vec![build];
        jobs.push(Box::new(|| {
            held = Some(Resident::connect(socket, &self.headers.manifest(self.mapped.plan.page()))?);
            Ok(())
        }));
        self.clear([written.scratch, written.kv, written.states], &mut jobs);
        self.progress.begin(0);
        run_jobs(jobs, &self.headers.settings.cores)?;
        Ok(held.expect("all jobs are done"))
    }

    /// What every pass writes to, the scratch region, must be there before Ready. The KV cache and states come as the context
    /// grows, unless the pages of this process are limited: then before others take them.
    fn clear<'j>(&self, regions: [&'j mut [u8]; 3], jobs: &mut Vec<Job<'j>>) {
        let pages = self.pages;
        let n_cleared = if self.is_kv_cleared() { 3 } else { 1 };
        for part in regions.into_iter().take(n_cleared).flat_map(|region| region.chunks_mut(POPULATE_BYTES)) {
            jobs.push(Box::new(move || Ok(pages.populate(part)?)));
        }
    }

    fn is_kv_cleared(&self) -> bool {
        Host::default().cgroup_hugetlb(self.mapped.plan.page()).is_some()
    }
}

fn check_vocabulary(tokenizer: &Tokenizer<'_>, headers: &Headers<'_>) -> Result<()> {
    let (tokens, rows) = (tokenizer.n_tokens() as usize, headers.model.weights.n_vocab());
    match tokens == rows {
        true => Ok(()),
        false => Err(Error::from(ModelError::vocabulary(tokens, rows)).at(headers.files.name())),
    }
}

fn log_loaded(headers: &Headers<'_>, mapped: &MappedPlan, loaded: &LoadReport) {
    log::info!(
        "{}: {} loaded in {:.2} s ({:.2} GB/s; {} around the page cache, {} placed without clearing), \
         {mapped}, kernels {}, {} workers",
        headers.files.name(),
        Human(loaded.bytes),
        loaded.elapsed.as_secs_f64(),
        loaded.bytes as f64 / 1e9 / loaded.elapsed.as_secs_f64(),
        Human(loaded.traffic.direct_bytes),
        Human(loaded.traffic.filled_bytes),
        headers.kernels.tier().name(),
        headers.settings.threads()
    );
}

/// What a saved prefix cache must be of.
fn identity(files: &ModelFiles, kernels: &Kernels) -> Identity {
    let ids = files.ids().flat_map(|id| [id.inode, id.bytes, id.modified_ns as u64]);
    let ids: Vec<u8> = ids.flat_map(u64::to_le_bytes).collect();
    engine::identity(&[files.header_bytes(), &ids, kernels.tier().name().as_bytes()])
}

impl stage::FillPages for UffdFill {
    fn begin(&self) -> bool {
        UffdFill::begin(self)
    }
    fn page_bytes(&self) -> usize {
        UffdFill::page_bytes(self)
    }
    fn fill(&self, places: &mut [&mut [u8]], page: &[u8]) -> Result<()> {
        Ok(UffdFill::fill(self, places, page)?)
    }
    fn populate(&self, bytes: &mut [u8]) -> Result<()> {
        Ok(UffdFill::populate(self, bytes)?)
    }
}
