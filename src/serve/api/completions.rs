//! `POST /v1/completions`: text goes on, without a template.

use std::rc::Rc;

use serde_json::{Map, Value, json};

use super::super::app::App;
use super::super::error::ApiError;
use super::super::fields::{Fields, wrong};
use super::super::generate::{Batch, Generation, Reason, TokenInfo, Usage};
use super::super::job::{Interface, Job, Options, OutputFormat};
use super::super::model::{Served, unix_time};
use super::super::output::{Delta, Expect, Family};
use super::super::trace::Trace;
use super::common::{streaming, usage_json};
use super::format::format;
use super::{Answer, ChunkHead, EventWriter, FINGERPRINT, collect, event, fresh_id, stream, token_text};
use crate::tokenizer::PromptForm;

/// Most prompts of one request, and most answers to all of them.
const PROMPTS_MAX: usize = 8;

/// Answers a request.
///
/// # Errors
/// What is wrong with it, or with the answer.
pub async fn answer(app: &App, served: &Rc<Served>, body: &Value, trace: Rc<Trace>) -> Result<Answer, ApiError> {
    let fields = Fields::of(body)?;
    let options = Options::read(&fields, served, Interface::Completions)?;
    if fields.text("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
        let text = "suffix is not supported; write the model's fill-in-the-middle tokens into the prompt";
        return Err(ApiError::field("suffix", text));
    }
    let prompts = prompts(&fields, served).await?;
    if prompts.len() * options.n > PROMPTS_MAX {
        let text = format!("{} prompts with n = {}: the limit is {PROMPTS_MAX} answers", prompts.len(), options.n);
        return Err(ApiError::field("n", text).code("out_of_range"));
    }
    let grammar = match format(&fields)? {
        OutputFormat::Text => None,
        OutputFormat::Grammar(grammar, name) => Some((grammar, name)),
    };
    let echo = fields.is_set("echo")?;
    let expect =
        Expect { family: Family::Plain, tools: Rc::default(), thinks: false, thinking: false, one_call: false };
    let (is_stream, include_usage) = streaming(&fields)?;
    let with_tokens = options.n_top_logprobs.is_some();
    let mut echoes = Vec::new();
    let mut jobs = Vec::new();
    for (tokens, text) in prompts {
        echoes.extend((0..options.n).map(|_| if echo { text.clone() } else { String::new() }));
        jobs.push(Job::new(served, ("prompt", tokens), options.clone(), expect.clone(), grammar.clone())?);
    }
    let n = echoes.len();
    let generation = Generation::start(served, &jobs, app.config.limits.first_token_time).await?;
    let chunk = ChunkHead {
        id: fresh_id(served, "cmpl-"),
        object: "text_completion",
        created: unix_time(),
        served: Rc::clone(served),
        include_usage,
    };
    let form = Chunks { chunk, offsets: echoes.iter().map(String::len).collect(), echoes, with_tokens };
    if is_stream {
        return Ok(stream(form, generation, trace));
    }
    let (answers, usage) = collect(generation, n, &trace).await?;
    let choices: Vec<Value> = answers
        .into_iter()
        .enumerate()
        .map(|(index, answer)| {
            let logprobs = with_tokens.then(|| tokens_json(served, &answer.tokens, form.offsets[index]));
            let text = form.echoes[index].clone() + &answer.content;
            json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason(answer.finish.as_ref())})
        })
        .collect();
    Ok(Answer::Document(json!({
        "id": form.chunk.id,
        "object": "text_completion",
        "created": form.chunk.created,
        "model": served.name,
        "choices": choices,
        "usage": usage_json(&usage),
        "system_fingerprint": FINGERPRINT,
    })))
}

fn reason(reason: Option<&Reason>) -> Option<&'static str> {
    reason.map(|reason| if *reason == Reason::Length { "length" } else { "stop" })
}

/// `prompt`: a text, tokens, or several of either; with the text of each.
async fn prompts(fields: &Fields<'_>, served: &Served) -> Result<Vec<(Vec<u32>, String)>, ApiError> {
    let prompt = fields.get("prompt").ok_or_else(|| fields.missing("prompt"))?;
    let need = "a string, an array of token ids, or an array of either";
    let text = async |text: &str| {
        served.prompt_tokens(text.to_owned(), PromptForm::Raw).await.map(|tokens| (tokens, text.to_owned()))
    };
    let ids = |list: &[Value], path: &str| {
        let ids = list.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()));
        let ids: Option<Vec<u32>> = ids.collect();
        let ids = ids.ok_or_else(|| ApiError::field(path, format!("{path}: expected token ids")))?;
        let mut decoder = crate::tokenizer::Decoder::new(true);
        let mut text = String::new();
        ids.iter().for_each(|&id| decoder.push(served.tokenizer, id, &mut text));
        decoder.finish(&mut text);
        Ok((ids, text))
    };
    match prompt {
        Value::String(one) => Ok(vec![text(one).await?]),
        Value::Array(list) if list.is_empty() => Err(ApiError::field("prompt", "prompt is empty")),
        Value::Array(list) if list[0].is_number() => Ok(vec![ids(list, "prompt")?]),
        Value::Array(list) if list.len() > PROMPTS_MAX => {
            Err(ApiError::field("prompt", format!("{} prompts; the limit is {PROMPTS_MAX}", list.len())))
        }
        Value::Array(list) => {
            let mut prompts = Vec::new();
            for (i, one) in list.iter().enumerate() {
                prompts.push(match one {
                    Value::String(one) => text(one).await?,
                    Value::Array(list) => ids(list, &format!("prompt[{i}]"))?,
                    other => return Err(wrong(&format!("prompt[{i}]"), other, need)),
                });
            }
            Ok(prompts)
        }
        other => Err(wrong("prompt", other, need)),
    }
}

/// Logprobs as completions have them; `offset` is where the text of the first token begins.
fn tokens_json(served: &Served, tokens: &[TokenInfo], mut offset: usize) -> Value {
    let (mut texts, mut logprobs, mut tops, mut offsets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for info in tokens {
        let (text, bytes) = token_text(served, info.token);
        texts.push(text);
        logprobs.push(info.logprob.max(-9999.0));
        let top = info.top.iter().map(|(token, logprob)| (token_text(served, *token).0, json!(logprob.max(-9999.0))));
        tops.push(Value::Object(top.collect::<Map<_, _>>()));
        offsets.push(offset);
        offset += bytes.len();
    }
    json!({"tokens": texts, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets})
}

struct Chunks {
    chunk: ChunkHead,
    echoes: Vec<String>,
    offsets: Vec<usize>,
    with_tokens: bool,
}

impl EventWriter for Chunks {
    fn begin(&mut self, out: &mut Vec<u8>) {
        for (index, echo) in self.echoes.iter().enumerate().filter(|(_, echo)| !echo.is_empty()) {
            let choice = json!([{"index": index, "text": echo, "logprobs": null, "finish_reason": null}]);
            self.chunk.send(&choice, None, out);
        }
    }

    fn batch(&mut self, batch: Batch, out: &mut Vec<u8>) {
        let index = batch.index;
        let text: String = batch
            .deltas
            .into_iter()
            .map(|delta| match delta {
                Delta::Content(text) | Delta::Reasoning(text) | Delta::Arguments(text) => text,
                Delta::Call(_) => String::new(),
            })
            .collect();
        let logprobs = self.with_tokens.then(|| tokens_json(&self.chunk.served, &batch.tokens, self.offsets[index]));
        self.offsets[index] += text.len();
        let finish = reason(batch.finish.as_ref());
        let choice = json!([{"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}]);
        self.chunk.send(&choice, None, out);
    }

    fn end(&mut self, usage: &Usage, out: &mut Vec<u8>) {
        self.chunk.end(usage, out);
    }

    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        event(&error.openai(), out);
    }
}
