//! `brim serve`: opens the door, loads the model, serves until SIGTERM.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use log::LevelFilter;

use super::args::Serve;
use super::common::{announce, checkpoints, resolve};
use super::plan::PlanReport;
use super::prompt_cache::PromptCache;
use super::{run, sampling};
use crate::boot::{Foundations, Headers, Running, Serving, Workload};
use crate::chat::Renderer;
use crate::engine::Scheduler;
use crate::error::Result;
use crate::gguf::Metadata;
use crate::load::Progress;
use crate::sampling::SamplingParams;
use crate::serve::config::{ClientLimits, LISTEN_DEFAULT, ServerConfig};
use crate::serve::{self, About, Fim, Loaded, MappedPages, host, listen};
use crate::settings::{env_or, env_or_switch};
use crate::tokenizer::Tokenizer;

/// The template that some files have for chats with tools (`tokenizer.chat_template.tool_use`).
const TOOL_TEMPLATE: &str = "tool_use";

/// How a model that ranks writes a query and a document.
const RANK_TEMPLATE_KEY: &str = "tokenizer.chat_template.rerank";

/// Executes `brim serve`.
///
/// # Errors
/// Usage, exit 7 where it cannot listen, and whatever stands in the way of loading.
pub fn execute(args: &Serve) -> Result<()> {
    let settings = resolve(&args.overrides_with_held(), LevelFilter::Info)?;
    // First of all: it is a copy of this process.
    let zygote = serve::zygote();
    if let Err(e) = &zygote {
        log::warn!("requests with a JSON schema or a grammar will get 503: {e}");
    }
    let board = settings.board.serve.clone();
    let listen = env_or(args.listen.clone(), "BRIM_LISTEN")?.or(board.listen);
    let config = ServerConfig {
        listen: listen.unwrap_or_else(|| LISTEN_DEFAULT.to_owned()),
        keys_file: env_or(args.keys_file.clone(), "BRIM_KEYS_FILE")?.or(board.keys_file).map(Into::into),
        cors_origin: board.cors_origin,
        hosts: host::listed(&board.hosts)?,
        log_prompts: env_or_switch(args.log_prompts, "BRIM_LOG_PROMPTS")?.unwrap_or(board.log_prompts),
        ready_fd: env_or(args.ready_fd, "BRIM_READY_FD")?,
        limits: ClientLimits::new(&board.limits),
    };
    let queue = config.limits.queue;
    // Before anything is read or mapped: where nobody can come in, nothing else matters.
    let listeners = listen::open(&config.listen)?;
    let slots = env_or(args.slots, "BRIM_SLOTS")?.or(board.slots);
    let serving = Serving::new(slots, env_or(args.kv_tokens, "BRIM_KV_TOKENS")?.or(board.kv_tokens));
    let workload = Workload { checkpoints: checkpoints(args.checkpoints, &settings)?, ..serving.into() };
    let planned = Headers::read(&settings)?.plan(&workload)?;
    let chosen = env_or(args.chat_template.clone(), "BRIM_CHAT_TEMPLATE")?;
    let template = run::template(&planned.headers.files.metadata(), chosen.as_deref(), &settings, zygote.clone())?;
    match template.as_ref().map_or(Ok(()), Renderer::check) {
        Err(e) if e.is_unavailable() => log::warn!("chats will get 503: {e}"),
        checked => checked?,
    }
    // A template that was asked for is meant for all chats.
    let own_tool_template =
        || run::template(&planned.headers.files.metadata(), Some(TOOL_TEMPLATE), &settings, zygote.clone());
    let tool_template = match chosen {
        None if has_template(&planned.headers.files.metadata(), TOOL_TEMPLATE)? => own_tool_template()?,
        _ => None,
    };
    if let Some(template) = &tool_template {
        template.check().or_else(|e| if e.is_unavailable() { Ok(()) } else { Err(e) })?;
    }
    let name = match env_or(args.name.clone(), "BRIM_NAME")? {
        Some(name) => name,
        None => name_of(settings.model.as_deref()),
    };
    let sampling =
        sampling::defaults(&planned.headers.files.metadata(), planned.headers.files.name(), SamplingParams::default());
    let report = PlanReport::of(&planned);
    let (about, fim_numbers) = about(&planned.headers.files.metadata(), settings.model.as_deref())?;
    for listener in &listeners {
        let address = listener.address();
        announce(&format!("listening: {address}"));
        if listener.is_public() && config.keys_file.is_none() {
            log::warn!("other machines can reach {address} without an API key: see serve.keys_file");
        }
    }
    let progress = Arc::new(Progress::default());
    let mut server = serve::start(config, zygote.ok(), listeners, Arc::clone(&progress), report.json())?;
    let served = planned.map().and_then(|mapped| {
        // The model stays until the process ends, so that any thread may use it.
        let base = Box::leak(Box::<Foundations<'_>>::default());
        let Running { core, tokenizer, loaded, mapped, identity, .. } = mapped.until_exit().start(base, &progress)?;
        let tokenizer: &'static Tokenizer<'static> = Box::leak(Box::new(tokenizer));
        let ends = (0..tokenizer.n_tokens()).filter(|&id| tokenizer.is_end_of_generation(id)).collect();
        let starts_message = |&id: &u32| tokenizer.is_control(id) && !tokenizer.is_end_of_generation(id);
        let starts: Vec<u32> = (0..tokenizer.n_tokens()).filter(starts_message).collect();
        let (scheduler, engine) = Scheduler::new(core, queue, ends);
        let mut scheduler = scheduler.with_message_starts(&starts);
        let cache = board.cache_dir.as_deref().zip(identity);
        let cache = cache.map(|(dir, identity)| PromptCache::new(dir, &name, board.cache_mib, identity));
        if let Some(cache) = &cache {
            cache.restore(&mut scheduler);
        }
        announce(&format!("ready: {name} after {:.2} s", loaded.elapsed.as_secs_f64()));
        let pages = MappedPages { bytes: mapped.plan.page().bytes(), is_fallback: mapped.is_fallback };
        let facts = report.mapped(&mapped).json();
        let about = About { fim: Fim::find(|key| fim_numbers.get(key).copied(), tokenizer), ..about };
        server.ready(Loaded { engine, tokenizer, template, tool_template, sampling, name, pages, facts, about });
        scheduler.run();
        if let Some(cache) = &cache {
            cache.save(&scheduler);
        }
        Ok(())
    });
    server.join();
    served
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

/// The name of a model that was given none: that of its file, without what says which part of a set it is.
fn name_of(model: Option<&str>) -> String {
    let Some(path) = model else { return "brim-demo".to_owned() };
    let stem = Path::new(path).file_stem().map_or_else(|| path.into(), |stem| stem.to_string_lossy());
    match stem.rsplit_once("-of-").and_then(|(first, _)| first.rsplit_once('-')) {
        Some((name, part)) if part.bytes().all(|byte| byte.is_ascii_digit()) => name.to_owned(),
        _ => stem.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files() {
        for (path, name) in [
            (Some("/m/Qwen3-8B-Q4_K_M.gguf"), "Qwen3-8B-Q4_K_M"),
            (Some("big-00001-of-00003.gguf"), "big"),
            (Some("best-of-breed.gguf"), "best-of-breed"),
            (None, "brim-demo"),
        ] {
            assert_eq!(name_of(path), name);
        }
    }
}
