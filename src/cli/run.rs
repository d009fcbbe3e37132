//! `brim run`: one answer, or a chat on a terminal.

use std::io::{BufRead, IsTerminal, Read};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use log::LevelFilter;

use super::args::Run;
use super::common::{checkpoints, note, put, resolve};
use super::sampling;
use crate::boot::{Foundations, Headers, Workload};
use crate::chat::{self, Message, Prompt, Renderer, Role, Time};
use crate::engine::Engine;
use crate::error::{Error, Exit, Result};
use crate::gguf::Metadata;
use crate::load::Progress;
use crate::sampling::{Candidate, Sampler, SamplingParams};
use crate::settings::{Settings, env_or, env_or_switch};
use crate::sys::{file, signal, term, zygote};
use crate::tokenizer::{Decoder, PromptForm, Tokenizer};
use crate::units::Human;

/// Executes `brim run`.
///
/// # Errors
/// Usage, and whatever stands in the way of loading and generating.
pub fn execute(args: &Run) -> Result<()> {
    let settings = resolve(&args.overrides_with_held(), LevelFilter::Warn)?;
    let raw = env_or_switch(args.raw, "BRIM_RAW")?.unwrap_or(false);
    let plain = env_or_switch(args.plain, "BRIM_PLAIN")?.unwrap_or(false);
    if plain && !raw {
        return Err(Error::usage("--plain needs --raw: a chat template writes control tokens that are meant"));
    }
    // Before anything is read or mapped: it is a copy of this process.
    let zygote = (!raw).then(chat::process::zygote);
    // Options that are out of range are refused before anything is read.
    let usual = SamplingParams { temp: if settings.model.is_none() { 0.0 } else { 0.8 }, ..SamplingParams::default() };
    Sampler::new(sampling_params(args, usual)?)?;
    let prompt = prompt(args)?;
    let system = env_or(args.system.clone(), "BRIM_SYSTEM")?;
    if raw && system.is_some() {
        return Err(Error::usage("--system needs the chat template, which --raw leaves out; give one of the two"));
    }
    let chosen = env_or(args.chat_template.clone(), "BRIM_CHAT_TEMPLATE")?;
    if raw && chosen.is_some() {
        return Err(Error::usage(
            "--chat-template contradicts --raw, which leaves the template out; give one of the two",
        ));
    }
    let n_predict = env_or(args.n_predict, "BRIM_N_PREDICT")?.map_or(usize::MAX, |n| n as usize);
    let workload = Workload { checkpoints: checkpoints(args.checkpoints, &settings)?, ..Workload::default() };
    let planned = Headers::read(&settings)?.of_text("run")?.plan(&workload)?;
    let metadata = planned.headers.files.metadata();
    let usual = sampling::defaults(&metadata, planned.headers.files.name(), usual);
    let sampler = Sampler::new(sampling_params(args, usual)?)?;
    let template = zygote.map(|zygote| template(&metadata, chosen.as_deref(), &settings, zygote));
    let template = template.transpose()?.flatten();
    template.as_ref().map_or(Ok(()), Renderer::check)?;
    if template.is_none() && (system.is_some() || prompt.is_none()) {
        return Err(Error::usage(
            "a chat needs a chat template, and this model has none (or --raw leaves it out): give a prompt with -p or -f",
        ));
    }
    signal::install().map_err(|e| Error::new(Exit::Unexpected, e))?;
    let mut base = Foundations::default();
    let running = planned.map()?.until_exit().start(&mut base, &Progress::default())?;
    let mapped = running.mapped;
    let scratch = vec![Candidate::default(); sampler.scratch_len(running.tokenizer.n_tokens() as usize)];
    let (engine, tokenizer) = (Engine::new(running.core), running.tokenizer);
    let (fed, stats) = (Vec::new(), Stats::default());
    let mut talk = Talk { engine, tokenizer, sampler, scratch, fed, n_predict, stats };
    match (prompt, &template) {
        (Some(prompt), None) => talk.answer_raw(&prompt, if plain { PromptForm::Raw } else { PromptForm::Chat })?,
        (Some(prompt), Some(template)) => {
            let mut messages: Vec<Message> =
                system.map(|content| Message::text(Role::System, content)).into_iter().collect();
            messages.push(Message::text(Role::User, prompt));
            talk.answer_chat(template, &messages)?;
        }
        (None, Some(template)) => talk.converse(template, system)?,
        (None, None) => unreachable!("refused above"),
    }
    let Stats { prompt_tokens, prompt_time, tokens, time } = talk.stats;
    note(&format!(
        "brim: prompt {prompt_tokens} tokens, {:.1} tokens/s; answer {tokens} tokens, {:.1} tokens/s; {mapped}, resident {}",
        prompt_tokens as f64 / prompt_time.as_secs_f64().max(1e-9),
        tokens as f64 / time.as_secs_f64().max(1e-9),
        Human(file::resident_bytes().unwrap_or(0)),
    ));
    Ok(())
}

/// The key of the model's own template; with a name behind it that of a further one.
pub const TEMPLATE_KEY: &str = "tokenizer.chat_template";

/// The chat template: a file, one that the model or brim has under this name, or the model's own. What comes with brim is
/// trusted.
pub fn template(
    metadata: &Metadata<'_>,
    chosen: Option<&str>,
    settings: &Settings,
    zygote: zygote::SharedZygote,
) -> Result<Option<Renderer>> {
    let key = chosen.map_or(TEMPLATE_KEY.to_owned(), |chosen| format!("{TEMPLATE_KEY}.{chosen}"));
    // An empty one is none.
    if let Some(source) = metadata.str(&key)?.filter(|source| !source.trim().is_empty()) {
        return Ok(Some(match settings.model {
            None => Renderer::trusted(source, chosen)?,
            Some(_) => Renderer::confined(source, chosen, zygote),
        }));
    }
    let Some(chosen) = chosen else { return Ok(None) };
    if let Some(source) = chat::own(chosen) {
        return Ok(Some(Renderer::trusted(source, Some(chosen))?));
    }
    let source = std::fs::read_to_string(chosen).map_err(|e| {
        let names = chat::own_names();
        Error::usage(format!(
            "--chat-template {chosen}: cannot read that file ({e}), and no template has this name; brim has {names}"
        ))
    })?;
    Ok(Some(Renderer::confined(&source, Some(chosen), zygote)))
}

/// The sampler's parameters: the options, and `default` for the others.
fn sampling_params(args: &Run, default: SamplingParams) -> Result<SamplingParams> {
    Ok(SamplingParams {
        temp: env_or(args.temp, "BRIM_TEMP")?.unwrap_or(default.temp),
        top_k: env_or(args.top_k, "BRIM_TOP_K")?.unwrap_or(default.top_k),
        top_p: env_or(args.top_p, "BRIM_TOP_P")?.unwrap_or(default.top_p),
        min_p: env_or(args.min_p, "BRIM_MIN_P")?.unwrap_or(default.min_p),
        repeat_penalty: env_or(args.repeat_penalty, "BRIM_REPEAT_PENALTY")?.unwrap_or(default.repeat_penalty),
        seed: env_or(args.seed, "BRIM_SEED")?.unwrap_or(default.seed),
        ..default
    })
}

/// The prompt from `-p`, `-f` or a pipe; `None` on a terminal.
fn prompt(args: &Run) -> Result<Option<String>> {
    let (prompt, path) = match (args.prompt.clone(), args.file.clone()) {
        // A flag beats what the environment says, in the other form as well.
        (None, None) => (env_or(None, "BRIM_PROMPT")?, env_or(None, "BRIM_FILE")?),
        given => given,
    };
    let unreadable = |e: &std::io::Error| Error::usage(format!("the prompt cannot be read: {e}; check the path of -f"));
    let text = |bytes: Vec<u8>, name: &str| {
        String::from_utf8(bytes)
            .map_err(|e| Error::usage(format!("not UTF-8 at byte {}", e.utf8_error().valid_up_to())).at(name))
    };
    let found = match (prompt, path) {
        (Some(_), Some(_)) => {
            return Err(Error::usage("-p and -f (or BRIM_PROMPT and BRIM_FILE) both give a prompt; give one of them"));
        }
        (Some(prompt), None) => prompt,
        (None, Some(path)) => text(std::fs::read(&path).map_err(|e| unreadable(&e).at(&path))?, &path)?,
        (None, None) if std::io::stdin().is_terminal() => return Ok(None),
        (None, None) => {
            let mut bytes = Vec::new();
            std::io::stdin().lock().read_to_end(&mut bytes).map_err(|e| Error::usage(e.to_string()).at("stdin"))?;
            text(bytes, "stdin")?
        }
    };
    match found.is_empty() {
        true => Err(Error::usage("the prompt is empty: give text with -p, -f or a pipe")),
        false => Ok(Some(found)),
    }
}

#[derive(Default)]
struct Stats {
    prompt_tokens: usize,
    prompt_time: Duration,
    tokens: usize,
    time: Duration,
}

/// A conversation with a loaded model.
struct Talk<'a> {
    engine: Engine<'a>,
    tokenizer: Tokenizer<'a>,
    sampler: Sampler,
    scratch: Vec<Candidate>,
    /// The tokens in the context.
    fed: Vec<u32>,
    n_predict: usize,
    stats: Stats,
}

impl Talk<'_> {
    fn answer_raw(&mut self, prompt: &str, form: PromptForm) -> Result<()> {
        let mut tokens = Vec::new();
        self.tokenizer.encode_prompt(prompt, form, &mut tokens);
        self.generate(&tokens).map(|_| ())
    }

    /// The answer; `None` where nobody reads it any more.
    fn answer_chat(&mut self, template: &Renderer, messages: &[Message]) -> Result<Option<String>> {
        let tokenizer = &self.tokenizer;
        let prompt = Prompt {
            messages,
            tools: &[],
            add_generation_prompt: true,
            bos: &tokenizer.template_text(tokenizer.bos()),
            eos: &tokenizer.template_text(tokenizer.eos()),
            now: Time::now(),
            variables: &[],
        };
        let prompt = template.render(&prompt.written())?;
        let mut tokens = Vec::new();
        tokenizer.encode_prompt(&prompt, PromptForm::Chat, &mut tokens);
        self.generate(&tokens)
    }

    /// A chat on the terminal: one line, one answer, until the end of input or Ctrl-C at the prompt.
    fn converse(&mut self, template: &Renderer, system: Option<String>) -> Result<()> {
        let mut messages: Vec<Message> =
            system.map(|content| Message::text(Role::System, content)).into_iter().collect();
        note("Ctrl-C stops an answer, Ctrl-D or Ctrl-C at the prompt ends the chat.");
        loop {
            let _ = put(&mut std::io::stderr(), "> ");
            let before = signal::interrupts().load(Ordering::Relaxed);
            let mut line = String::new();
            // A terminal hands over whole lines, so once it is readable the line is there; a signal ends the wait.
            let ready = term::wait_readable(std::io::stdin()) && signal::interrupts().load(Ordering::Relaxed) == before;
            if !ready || matches!(std::io::stdin().lock().read_line(&mut line), Ok(0) | Err(_)) {
                note("");
                return Ok(());
            }
            if line.trim().is_empty() {
                continue;
            }
            messages.push(Message::text(Role::User, line.trim()));
            match self.answer_chat(template, &messages) {
                Ok(Some(content)) => messages.push(Message::text(Role::Assistant, content)),
                Ok(None) => return Ok(()),
                // A full context ends the turn, not the program.
                Err(e) if e.exit() == Exit::Usage => {
                    note(&format!("brim: {e}"));
                    messages.pop();
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Feeds what is new of `tokens` and streams the answer; `None` where nobody reads it any more.
    fn generate(&mut self, tokens: &[u32]) -> Result<Option<String>> {
        let Talk { engine, tokenizer, sampler, scratch, fed, n_predict, stats } = self;
        // What the context holds already need not be fed again; the last token is, for its logits.
        let common = fed.iter().zip(tokens).take_while(|(a, b)| a == b).count().min(tokens.len().saturating_sub(1));
        let common = engine.rewind(common);
        fed.truncate(common);
        let interrupts = signal::interrupts().load(Ordering::Relaxed);
        let mut out = std::io::stdout().lock();
        let mut decoder = Decoder::new(false);
        let (mut answer, mut piece, mut is_read) = (String::new(), String::new(), true);
        let begun = Instant::now();
        let mut logits = engine.feed(&tokens[common..])?;
        fed.extend(&tokens[common..]);
        stats.prompt_tokens += tokens.len() - common;
        stats.prompt_time += begun.elapsed();
        tokens.iter().for_each(|&t| sampler.accept(t));
        let begun = Instant::now();
        for step in 0..*n_predict {
            let token = sampler.sample(logits, scratch)?;
            sampler.accept(token);
            if tokenizer.is_end_of_generation(token) {
                break;
            }
            stats.tokens += 1;
            piece.clear();
            decoder.push(tokenizer, token, &mut piece);
            answer.push_str(&piece);
            is_read = put(&mut out, &piece)?;
            if !is_read {
                break;
            }
            if signal::interrupts().load(Ordering::Relaxed) != interrupts || step + 1 == *n_predict {
                break;
            }
            if engine.position() == engine.ctx() {
                note(&format!(
                    "\nbrim: the context of {} tokens is full; a larger --ctx allows longer answers",
                    engine.ctx()
                ));
                break;
            }
            logits = engine.feed(&[token])?;
            fed.push(token);
        }
        stats.time += begun.elapsed();
        piece.clear();
        decoder.finish(&mut piece);
        piece.push('\n');
        is_read = is_read && put(&mut out, &piece)?;
        answer.push_str(piece.trim_end_matches('\n'));
        Ok(is_read.then_some(answer))
    }
}
