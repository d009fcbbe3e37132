//! `POST /v1/completions`: text goes on, without a template.

use std::rc::Rc;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::super::app::App;
use super::super::error::ApiError;
use super::super::fields::{Fields, wrong};
use super::super::generate::{Batch, Generation, Progress, Reason, TokenInfo, Usage};
use super::super::job::{Interface, Job, Options, OutputFormat};
use super::super::model::Served;
use super::super::output::{Delta, Expect};
use super::super::trace::Trace;
use super::common::{streaming, timings_json, usage_json, whole_text};
use super::format::format;
use super::infill::middle_prompt;
use super::{Answer, ChunkHead, EventWriter, FINGERPRINT, collect, event, stream, token_text};
use crate::tokenizer::{Decoder, PromptForm};

/// Most answers of one request, to all its prompts together; the engine has a few of them at a time.
const ANSWERS_MAX: usize = 128;

/// Answers a request.
///
/// # Errors
/// What is wrong with it, or with the answer.
pub async fn answer(app: &App, served: &Rc<Served>, body: &Value, trace: Rc<Trace>) -> Result<Answer, ApiError> {
    let fields = Fields::of(body)?;
    let options = Options::read(&fields, served, Interface::Completions)?;
    let prompts = prompts(&fields, served).await?;
    check_n_answers(prompts.len(), options.n)?;
    if fields.size("best_of", 1, ANSWERS_MAX)?.is_some_and(|best_of| best_of > options.n) {
        let text = "best_of: answers are not ranked; ask for n of them and choose";
        return Err(ApiError::field("best_of", text).code("unsupported_value"));
    }
    let grammar = match format(&fields)? {
        OutputFormat::Text => None,
        OutputFormat::Grammar(grammar, name) => Some((grammar, name)),
    };
    let echo = fields.is_set("echo")?;
    let expect = Expect::text();
    let (is_stream, include_usage) = streaming(&fields)?;
    let with_tokens = options.n_top_logprobs.is_some();
    let mut choices = Vec::new();
    let mut jobs = Vec::new();
    for Prompt { tokens, text } in prompts {
        let mut job = Job::new(served, ("prompt", tokens), options.clone(), expect.clone(), grammar.clone())?;
        (job.scores_prompt, job.reports_end) = (echo && with_tokens, with_tokens);
        let echo = echo.then(|| Rc::<str>::from(text));
        choices.extend((0..options.n).map(|_| Choice::new(&job, echo.clone(), with_tokens)));
        jobs.push(job);
    }
    let generation = Generation::start(served, jobs, app.config.limits.first_token_time).await?;
    let chunk = ChunkHead::new(served, "cmpl-", "text_completion", include_usage);
    if is_stream {
        return Ok(stream(Chunks { chunk, choices }, generation, trace));
    }
    let (answers, usage) = collect(generation, choices.len(), &trace).await?;
    let choices: Vec<Value> = answers
        .into_iter()
        .zip(&mut choices)
        .enumerate()
        .map(|(index, (answer, choice))| {
            let (text, logprobs) = choice.part(served, &answer.scored, &answer.tokens, &answer.content);
            json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason(answer.finish.as_ref())})
        })
        .collect();
    Ok(Answer::Document(json!({
        "id": chunk.id,
        "object": "text_completion",
        "created": chunk.created,
        "model": served.name,
        "choices": choices,
        "usage": usage_json(&usage),
        "timings": timings_json(&usage.timings),
        "system_fingerprint": FINGERPRINT,
    })))
}

fn reason(reason: Option<&Reason>) -> Option<&'static str> {
    reason.map(|reason| if *reason == Reason::Length { "length" } else { "stop" })
}

/// Refuses more answers than one request may have.
///
/// # Errors
/// 400 with the limit.
pub fn check_n_answers(n_prompts: usize, n: usize) -> Result<(), ApiError> {
    if n_prompts * n > ANSWERS_MAX {
        let text = format!("{n_prompts} prompts with n = {n}: the limit is {ANSWERS_MAX} answers");
        return Err(ApiError::field("n", text).code("out_of_range"));
    }
    Ok(())
}

/// A prompt, and what is echoed of it.
pub struct Prompt {
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Its text.
    pub text: String,
}

const PROMPT_NEED: &str = "a string, an array of token ids and strings, or an array of either";

/// `prompt`: a text, tokens, or several of either. Control tokens in a text are read as such unless `parse_special` is false;
/// with a `suffix` the answer is what comes between the two. A list with a number in it is one prompt, in which texts may
/// stand, too.
///
/// # Errors
/// 400 with what is wrong.
pub async fn prompts(fields: &Fields<'_>, served: &Served) -> Result<Vec<Prompt>, ApiError> {
    let prompt = fields.get("prompt").ok_or_else(|| fields.missing("prompt"))?;
    let suffix = fields.text("suffix")?.filter(|suffix| !suffix.is_empty());
    if suffix.is_some() && fields.is_set("echo")? {
        return Err(ApiError::field(
            "echo",
            "echo: with a suffix the answer is not the end of the text; leave out one",
        ));
    }
    let form = if fields.boolean("parse_special")?.unwrap_or(true) { PromptForm::Chat } else { PromptForm::Raw };
    match prompt {
        Value::Array(list) if list.is_empty() => Err(ApiError::field("prompt", "prompt is empty")),
        Value::Array(list) if list.iter().any(Value::is_number) => {
            Ok(vec![one_prompt(served, prompt, "prompt", suffix, form).await?])
        }
        Value::Array(list) if list.len() > ANSWERS_MAX => {
            Err(ApiError::field("prompt", format!("{} prompts; the limit is {ANSWERS_MAX}", list.len())))
        }
        Value::Array(list) => {
            let mut prompts = Vec::new();
            for (i, one) in list.iter().enumerate() {
                prompts.push(one_prompt(served, one, &format!("prompt[{i}]"), suffix, form).await?);
            }
            Ok(prompts)
        }
        one => Ok(vec![one_prompt(served, one, "prompt", suffix, form).await?]),
    }
}

/// A prompt at `path`: a text, tokens and texts, or llama.cpp's object with a text.
async fn one_prompt(
    served: &Served,
    prompt: &Value,
    path: &str,
    suffix: Option<&str>,
    form: PromptForm,
) -> Result<Prompt, ApiError> {
    let object = prompt.is_object().then(|| Fields::at(prompt, path)).transpose()?;
    let text = match &object {
        None => prompt.as_str(),
        Some(object) if object.list("multimodal_data")?.is_some_and(|list| !list.is_empty()) => {
            let path = object.path("multimodal_data");
            return Err(
                ApiError::field(&path, format!("{path}: this server takes text only")).code("unsupported_content")
            );
        }
        Some(object) => Some(object.need_text("prompt_string")?),
    };
    if let Some(text) = text {
        let tokens = match suffix {
            None => served.prompt_tokens(text.to_owned(), form).await?,
            Some(suffix) => middle_prompt(served, "suffix", &[], (text, suffix)).await?,
        };
        return Ok(Prompt { tokens, text: text.to_owned() });
    }
    let list = prompt.as_array().ok_or_else(|| wrong(path, prompt, PROMPT_NEED))?;
    if suffix.is_some() {
        return Err(ApiError::field(path, format!("{path}: a suffix needs a prompt that is text, not token ids")));
    }
    let n_tokens = served.tokenizer.n_tokens();
    let mut tokens = Vec::with_capacity(list.len());
    for (i, part) in list.iter().enumerate() {
        if part.is_string() {
            // Texts take time; others have their turn between them.
            tokio::task::yield_now().await;
        }
        match (part, part.as_u64()) {
            // What a text begins with, this one begins with as well.
            (Value::String(text), _) if i == 0 => tokens = served.prompt_tokens(text.clone(), form).await?,
            (Value::String(text), _) => {
                tokens.extend(served.text_tokens(text.clone(), form == PromptForm::Chat).await?)
            }
            (_, Some(id)) if id < u64::from(n_tokens) => tokens.push(id as u32),
            _ => return Err(ApiError::field(path, format!("{path}: expected token ids below {n_tokens}"))),
        }
    }
    Ok(Prompt { text: whole_text(served, &tokens), tokens })
}

/// Logprobs as completions have them: four lists of the same length.
#[derive(Default)]
struct Logprobs {
    tokens: Vec<String>,
    logprobs: Vec<Value>,
    tops: Vec<Value>,
    offsets: Vec<usize>,
}

impl Logprobs {
    /// A token that nothing is known of: the first of a prompt follows nothing.
    fn push_first(&mut self, served: &Served, token: u32) {
        self.tokens.push(token_text(served, token).0);
        self.logprobs.push(Value::Null);
        self.tops.push(Value::Null);
        self.offsets.push(0);
    }

    fn push(&mut self, served: &Served, info: &TokenInfo, offset: usize) {
        // JSON has no infinity.
        let value = |logprob: f32| json!(logprob.max(-9999.0));
        let mut top = Map::new();
        // The token itself is among them, also where others are likelier. Of tokens with the same text the likeliest counts.
        for &(token, logprob) in info.top.iter().chain(&[(info.token, info.logprob)]) {
            top.entry(token_text(served, token).0).or_insert_with(|| value(logprob));
        }
        self.tokens.push(token_text(served, info.token).0);
        self.logprobs.push(value(info.logprob));
        self.tops.push(Value::Object(top));
        self.offsets.push(offset);
    }

    fn json(self) -> Value {
        json!({"tokens": self.tokens, "token_logprobs": self.logprobs, "top_logprobs": self.tops,
            "text_offset": self.offsets})
    }
}

/// One answer on its way.
struct Choice {
    prompt: Rc<Vec<u32>>,
    /// What is sent before the answer.
    echo: Option<Rc<str>>,
    with_tokens: bool,
    decoder: Decoder,
    /// Characters of the text so far.
    n_chars: usize,
}

impl Choice {
    fn new(job: &Job, echo: Option<Rc<str>>, with_tokens: bool) -> Choice {
        Choice { prompt: Rc::clone(&job.prompt), echo, with_tokens, decoder: Decoder::new(false), n_chars: 0 }
    }

    /// The next part of the text and its logprobs; the first begins with what is echoed.
    fn part(
        &mut self,
        served: &Served,
        scored: &[TokenInfo],
        tokens: &[TokenInfo],
        content: &str,
    ) -> (String, Option<Value>) {
        let mut logprobs = Logprobs::default();
        let echo = self.echo.take().unwrap_or_default();
        if self.with_tokens && !echo.is_empty() {
            self.push_prompt(served, &echo, scored, &mut logprobs);
        }
        for info in tokens {
            logprobs.push(served, info, self.n_chars);
            let mut text = String::new();
            if !served.tokenizer.is_control(info.token) {
                self.decoder.push(served.tokenizer, info.token, &mut text);
            }
            self.n_chars += text.chars().count();
        }
        (echo.to_string() + content, self.with_tokens.then(|| logprobs.json()))
    }

    /// The tokens of the prompt, in the text that is echoed.
    fn push_prompt(&mut self, served: &Served, echo: &str, scored: &[TokenInfo], logprobs: &mut Logprobs) {
        let Some(&first) = self.prompt.first() else { return };
        let mut decoder = Decoder::whole(served.tokenizer, true);
        let mut text = String::new();
        logprobs.push_first(served, first);
        // The text does not have what was put in front of it.
        let is_added = Some(first) == served.tokenizer.bos() && !echo.starts_with(&token_text(served, first).0);
        if !is_added {
            decoder.push(served.tokenizer, first, &mut text);
        }
        for info in scored {
            self.n_chars += text.chars().count();
            text.clear();
            logprobs.push(served, info, self.n_chars);
            decoder.push(served.tokenizer, info.token, &mut text);
        }
        self.n_chars = echo.chars().count();
    }
}

struct Chunks {
    chunk: ChunkHead,
    choices: Vec<Choice>,
}

impl EventWriter for Chunks {
    fn begin(&mut self, out: &mut Vec<u8>) {
        for (index, choice) in self.choices.iter_mut().enumerate().filter(|(_, choice)| !choice.with_tokens) {
            let Some(echo) = choice.echo.take().filter(|echo| !echo.is_empty()) else { continue };
            let choice = json!([{"index": index, "text": &*echo, "logprobs": null, "finish_reason": null}]);
            self.chunk.send(&choice, None, out);
        }
    }

    fn batch(&mut self, batch: Batch, out: &mut Vec<u8>) {
        let index = batch.index;
        let content: String = batch
            .deltas
            .into_iter()
            .map(|delta| match delta {
                Delta::Content(text) | Delta::Reasoning(text) | Delta::Arguments(text) => text,
                Delta::Call(_) => String::new(),
            })
            .collect();
        let served = Rc::clone(&self.chunk.served);
        let (text, logprobs) = self.choices[index].part(&served, &batch.scored, &batch.tokens, &content);
        let finish = reason(batch.finish.as_ref());
        self.chunk.took(batch.timings);
        let choice = json!([{"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}]);
        self.chunk.send(&choice, None, out);
    }

    fn progress(&mut self, progress: &Progress, elapsed: Duration, out: &mut Vec<u8>) {
        let choice = json!([{"index": 0, "text": "", "logprobs": null, "finish_reason": null}]);
        self.chunk.send_progress(&choice, progress, elapsed, out);
    }

    fn end(&mut self, usage: &Usage, out: &mut Vec<u8>) {
        self.chunk.end(usage, out);
    }

    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        event(&error.openai(), out);
    }
}
