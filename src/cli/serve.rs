//! `brim serve`: opens the door, loads the model, serves until SIGTERM.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use log::LevelFilter;

use super::args::Serve;
use super::common::{announce, checkpoints, names, resolve_served};
use super::plan::PlanReport;
use super::prompt_cache::PromptCache;
use super::{run, sampling};
use crate::board::ServeSection;
use crate::boot::{Foundations, Headers, Mapped, Planned, Running, Serving, Workload, map_all, plan_all};
use crate::chat::Renderer;
use crate::engine::Scheduler;
use crate::error::{Error, Result};
use crate::gguf::Metadata;
use crate::load::Progress;
use crate::sampling::SamplingParams;
use crate::serve::config::{ClientLimits, LISTEN_DEFAULT, ServerConfig};
use crate::serve::{self, About, Fim, Loaded, MappedPages, host, listen};
use crate::settings::{Settings, env_or, env_or_switch, for_one_model};
use crate::sys::zygote::SharedZygote;
use crate::tokenizer::Tokenizer;
use crate::workers::Workers;

/// The template that some files have for chats with tools (`tokenizer.chat_template.tool_use`).
const TOOL_TEMPLATE: &str = "tool_use";

/// How a model that ranks writes a query and a document.
const RANK_TEMPLATE_KEY: &str = "tokenizer.chat_template.rerank";

/// Executes `brim serve`.
///
/// # Errors
/// Usage, exit 7 where it cannot listen, and whatever stands in the way of loading.
pub fn execute(args: &Serve) -> Result<()> {
    let all = resolve_served(&args.overrides_with_held(), LevelFilter::Info)?;
    // First of all: it is a copy of this process.
    let zygote = serve::zygote();
    if let Err(e) = &zygote {
        log::warn!("requests with a JSON schema or a grammar will get 503: {e}");
    }
    let Some(first) = all.first() else { return Ok(()) };
    let config = config(args, &first.board.serve)?;
    // Before anything is read or mapped: where nobody can come in, nothing else matters.
    let listeners = listen::open(&config.listen)?;
    let chosen = env_or(args.chat_template.clone(), "BRIM_CHAT_TEMPLATE")?;
    let name = env_or(args.name.clone(), "BRIM_NAME")?;
    if !first.board.serve.models.is_empty() {
        for (option, given) in [("name", &name), ("chat-template", &chosen)] {
            if given.is_some() {
                return Err(Error::usage(format!("--{option}: {}", for_one_model(all.len()))));
            }
        }
    }
    let names = names(&all, name)?;
    let headers = all.iter().map(|settings| Ok((Headers::read(settings)?, workload(args, settings)?)));
    let planned = plan_all(headers.collect::<Result<_>>()?)?;
    let read = |(planned, name): (&Planned<'_>, &String)| {
        Described::read(planned, name.clone(), chosen.as_deref(), &zygote)
            .map_err(|e| if all.len() > 1 { e.at(name) } else { e })
    };
    let described = planned.iter().zip(&names).map(read).collect::<Result<Vec<_>>>()?;
    let report = PlanReport::of(&planned, names)?;
    for listener in &listeners {
        let address = listener.address();
        announce(&format!("listening: {address}"));
        if listener.is_public() && config.keys_file.is_none() {
            log::warn!("other machines can reach {address} without an API key: see serve.keys_file");
        }
    }
    let progress: Arc<[Progress]> = planned.iter().map(|planned| Progress::of(planned.load_bytes())).collect();
    let queue = config.limits.queue;
    let mut server = serve::start(config, zygote.ok(), listeners, Arc::clone(&progress), report.json())?;
    let loaded = map_all(planned).and_then(|mapped| Loading { described, report, progress, queue }.load(mapped));
    let served = loaded.map(|AllLoaded { loaded, mut schedulers, caches, names, elapsed }| {
        announce(&format!("ready: {names} after {:.2} s", elapsed.as_secs_f64()));
        server.ready(loaded);
        Scheduler::run_all(&mut schedulers);
        for (cache, scheduler) in caches.iter().zip(&schedulers) {
            if let Some(cache) = cache {
                cache.save(scheduler);
            }
        }
    });
    server.join();
    served
}

/// What the server is told to do.
fn config(args: &Serve, board: &ServeSection) -> Result<ServerConfig> {
    let listen = env_or(args.listen.clone(), "BRIM_LISTEN")?.or_else(|| board.listen.clone());
    let keys_file = env_or(args.keys_file.clone(), "BRIM_KEYS_FILE")?.or_else(|| board.keys_file.clone());
    Ok(ServerConfig {
        listen: listen.unwrap_or_else(|| LISTEN_DEFAULT.to_owned()),
        keys_file: keys_file.map(Into::into),
        cors_origin: board.cors_origin.clone(),
        hosts: host::listed(&board.hosts)?,
        log_prompts: env_or_switch(args.log_prompts, "BRIM_LOG_PROMPTS")?.unwrap_or(board.log_prompts),
        ready_fd: env_or(args.ready_fd, "BRIM_READY_FD")?,
        limits: ClientLimits::new(&board.limits),
    })
}

/// What one of the models is to do.
fn workload(args: &Serve, settings: &Settings) -> Result<Workload> {
    let board = &settings.board.serve;
    let slots = env_or(args.slots, "BRIM_SLOTS")?.or(board.slots);
    let serving = Serving::new(slots, env_or(args.kv_tokens, "BRIM_KV_TOKENS")?.or(board.kv_tokens));
    Ok(Workload { checkpoints: checkpoints(args.checkpoints, settings)?, ..serving.into() })
}

/// What is known of a model before it is loaded, for those who ask it.
struct Described {
    name: String,
    aliases: Vec<String>,
    template: Option<Renderer>,
    tool_template: Option<Renderer>,
    sampling: SamplingParams,
    about: About,
    fim_numbers: BTreeMap<&'static str, u32>,
    cache_dir: Option<String>,
    cache_mib: Option<u32>,
}

impl Described {
    fn read(planned: &Planned<'_>, name: String, chosen: Option<&str>, zygote: &SharedZygote) -> Result<Described> {
        let Headers { files, settings, .. } = &planned.headers;
        let (metadata, board) = (files.metadata(), &settings.board.serve);
        let entry = board.models.first();
        let chosen = chosen.or_else(|| entry?.chat_template.as_deref());
        let template = run::template(&metadata, chosen, settings, zygote.clone())?;
        match template.as_ref().map_or(Ok(()), Renderer::check) {
            Err(e) if e.is_unavailable() => log::warn!("chats will get 503: {e}"),
            checked => checked?,
        }
        // A template that was asked for is meant for all chats.
        let tool_template = match chosen {
            None if has_template(&metadata, TOOL_TEMPLATE)? => {
                run::template(&metadata, Some(TOOL_TEMPLATE), settings, zygote.clone())?
            }
            _ => None,
        };
        if let Some(template) = &tool_template {
            template.check().or_else(|e| if e.is_unavailable() { Ok(()) } else { Err(e) })?;
        }
        let sampling = sampling::defaults(&metadata, files.name(), SamplingParams::default());
        let (about, fim_numbers) = about(&metadata, settings.model.as_deref())?;
        Ok(Described {
            name,
            aliases: entry.map(|entry| entry.aliases.clone()).unwrap_or_default(),
            template,
            tool_template,
            sampling,
            about,
            fim_numbers,
            cache_dir: board.cache_dir.clone(),
            cache_mib: board.cache_mib,
        })
    }
}

/// What loading takes beside the memory.
struct Loading {
    described: Vec<Described>,
    report: PlanReport,
    progress: Arc<[Progress]>,
    /// Requests that may wait for each model.
    queue: usize,
}

/// Models that are ready to run.
struct AllLoaded {
    loaded: Vec<Loaded>,
    schedulers: Vec<Scheduler<'static>>,
    caches: Vec<Option<PromptCache>>,
    names: String,
    elapsed: Duration,
}

impl Loading {
    /// Loads one model after the other. All run on the workers of the first, and stay until the process ends, so that any
    /// thread may use them.
    fn load(self, mapped: Vec<Mapped<'_>>) -> Result<AllLoaded> {
        let Loading { described, report, progress, queue } = self;
        let names: Vec<String> = described.iter().map(|described| described.name.clone()).collect();
        let report = report.mapped(&mapped.iter().map(Mapped::mapped).collect::<Vec<_>>())?;
        let mut workers: Option<&'static Workers> = None;
        let (mut loaded, mut schedulers, mut caches) = (Vec::new(), Vec::<Scheduler<'static>>::new(), Vec::new());
        let mut elapsed = Duration::ZERO;
        for (at, (mapped, described)) in mapped.into_iter().zip(described).enumerate() {
            let base = Box::leak(Box::new(workers.map_or_else(Foundations::default, Foundations::sharing)));
            let running = mapped.until_exit().start(base, &progress[at])?;
            workers = Some(running.workers);
            elapsed += running.loaded.elapsed;
            let Running { core, tokenizer, mapped, identity, .. } = running;
            let tokenizer: &'static Tokenizer<'static> = Box::leak(Box::new(tokenizer));
            let ends = (0..tokenizer.n_tokens()).filter(|&id| tokenizer.is_end_of_generation(id)).collect();
            let starts_message = |&id: &u32| tokenizer.is_control(id) && !tokenizer.is_end_of_generation(id);
            let starts: Vec<u32> = (0..tokenizer.n_tokens()).filter(starts_message).collect();
            let (scheduler, engine) = match schedulers.first() {
                None => Scheduler::new(core, queue, ends),
                Some(first) => first.beside(core, queue, ends),
            };
            let mut scheduler = scheduler.with_message_starts(&starts);
            let Described { name, aliases, template, tool_template, sampling, about, fim_numbers, .. } = described;
            let cache = described.cache_dir.as_deref().zip(identity);
            let cache = cache.map(|(dir, identity)| PromptCache::new(dir, &name, described.cache_mib, identity));
            if let Some(cache) = &cache {
                cache.restore(&mut scheduler);
            }
            let pages = MappedPages { bytes: mapped.plan.page().bytes(), is_fallback: mapped.is_fallback };
            let (bytes, facts) = (mapped.plan.total_bytes(), report.facts_of(at));
            let about = About { fim: Fim::find(|key| fim_numbers.get(key).copied(), tokenizer), ..about };
            loaded.push(Loaded {
                engine,
                tokenizer,
                template,
                tool_template,
                sampling,
                name,
                aliases,
                pages,
                bytes,
                facts,
                about,
            });
            schedulers.push(scheduler);
            caches.push(cache);
        }
        Ok(AllLoaded { loaded, schedulers, caches, names: names.join(", "), elapsed })
    }
}

/// What clients are told of the model, and the numbers of its file that may be tokens for gaps.
fn about(metadata: &Metadata<'_>, path: Option<&str>) -> Result<(About, BTreeMap<&'static str, u32>)> {
    let architecture = metadata.str("general.architecture")?.unwrap_or_default().to_owned();
    let number = |key: &str| metadata.u32(key).ok().flatten();
    let about = About {
        path: path.unwrap_or("the embedded demo model").to_owned(),
        size_label: metadata.str("general.size_label").ok().flatten().unwrap_or_default().to_owned(),
        file_type: number("general.file_type"),
        ctx_train: number(&format!("{architecture}.context_length")),
        architecture,
        fim: None,
        rank_template: metadata.str(RANK_TEMPLATE_KEY)?.map(str::to_owned),
    };
    Ok((about, Fim::keys().filter_map(|key| Some((key, number(key)?))).collect()))
}

/// Whether the model has a chat template of this name.
fn has_template(metadata: &Metadata<'_>, name: &str) -> Result<bool> {
    Ok(metadata.str(&format!("{}.{name}", run::TEMPLATE_KEY))?.is_some_and(|source| !source.trim().is_empty()))
}
