//! `POST /infill`, as editors ask llama.cpp's server: what belongs between two texts.

use std::rc::Rc;

use serde_json::{Value, json};

use super::super::app::App;
use super::super::error::ApiError;
use super::super::fields::Fields;
use super::super::generate::{Batch, Generation, Reason, Usage};
use super::super::job::{Interface, Job, Options};
use super::super::model::Served;
use super::super::output::{Delta, Expect};
use super::super::trace::Trace;
use super::common::timings_json;
use super::{Answer, EventWriter, collect, event, stream};

/// Answers a request.
///
/// # Errors
/// What is wrong with it, or with the answer.
pub async fn answer(app: &App, served: &Rc<Served>, body: &Value, trace: Rc<Trace>) -> Result<Answer, ApiError> {
    let fields = Fields::of(body)?;
    let mut options = Options::read(&fields, served, Interface::Completions)?;
    options.max_tokens = match fields.integer("n_predict", -1, i64::MAX >> 1)? {
        Some(n) => usize::try_from(n).ok().map(|n| n.min(served.limits().ctx)),
        None if fields.get("max_tokens").is_some() => options.max_tokens,
        None => None,
    };
    if options.n != 1 {
        return Err(ApiError::field("n", "n: this route gives one answer").code("out_of_range"));
    }
    let before = fields.need_text("input_prefix")?.to_owned() + fields.text("prompt")?.unwrap_or_default();
    let behind = fields.need_text("input_suffix")?;
    let mut others = Vec::new();
    for (i, other) in fields.list("input_extra")?.unwrap_or_default().iter().enumerate() {
        let other = Fields::at(other, format!("input_extra[{i}]"))?;
        others.push((other.text("filename")?.unwrap_or("file"), other.need_text("text")?));
    }
    let tokens = middle_prompt(served, "input_prefix", &others, (&before, behind)).await?;
    let expect = Expect::text();
    let job = Job::new(served, ("input_prefix", tokens), options, expect, None)?;
    let generation = Generation::start(served, vec![job], app.config.limits.first_token_time).await?;
    let mut form = Pieces { model: served.name.clone(), finish: None };
    if fields.is_set("stream")? {
        return Ok(stream(form, generation, trace));
    }
    let (mut answers, usage) = collect(generation, 1, &trace).await?;
    let answer = answers.remove(0);
    form.finish = answer.finish;
    Ok(Answer::Document(form.last(&answer.content, &usage)))
}

/// The prompt whose answer belongs between two texts; other files may come before it.
///
/// # Errors
/// 400 for a model that has no tokens for it.
pub async fn middle_prompt(
    served: &Served,
    field: &str,
    others: &[(&str, &str)],
    (before, behind): (&str, &str),
) -> Result<Vec<u32>, ApiError> {
    let Some(fim) = served.about.fim else {
        let text =
            format!("{field}: this model was not made to fill gaps: it has no tokens for prefix, suffix and middle");
        return Err(ApiError::field(field, text).code("infill_not_supported"));
    };
    let mut tokens: Vec<u32> = served.tokenizer.bos().filter(|_| served.tokenizer.add_bos()).into_iter().collect();
    let plain = async |text: &str| served.text_tokens(text.to_owned(), false).await;
    if let (Some(repository), false) = (fim.repository, others.is_empty()) {
        tokens.push(repository);
        tokens.extend(plain("project\n").await?);
    }
    for (name, text) in others {
        match fim.file {
            Some(file) => {
                tokens.push(file);
                tokens.extend(plain(&format!("{name}\n{text}\n")).await?);
            }
            None => tokens.extend(plain(&format!("{text}\n")).await?),
        }
    }
    if let (Some(file), false) = (fim.file, others.is_empty()) {
        tokens.push(file);
        tokens.extend(plain("this\n").await?);
    }
    for (mark, text) in [(fim.prefix, before), (fim.suffix, behind)] {
        tokens.push(mark);
        tokens.extend(plain(text).await?);
    }
    tokens.push(fim.middle);
    Ok(tokens)
}

/// The answer in events, and its end.
struct Pieces {
    model: String,
    finish: Option<Reason>,
}

impl Pieces {
    fn last(&self, content: &str, usage: &Usage) -> Value {
        let (stop_type, word) = match &self.finish {
            Some(Reason::Length) => ("limit", ""),
            Some(Reason::StopText(text)) => ("word", text.as_str()),
            _ => ("eos", ""),
        };
        json!({
            "index": 0,
            "content": content,
            "model": self.model,
            "stop": true,
            "stop_type": stop_type,
            "stopping_word": word,
            "truncated": false,
            "tokens_cached": usage.cached,
            "tokens_evaluated": usage.prompt,
            "tokens_predicted": usage.completion,
            "timings": timings_json(&usage.timings),
        })
    }
}

impl EventWriter for Pieces {
    fn begin(&mut self, _out: &mut Vec<u8>) {}

    fn batch(&mut self, batch: Batch, out: &mut Vec<u8>) {
        for delta in batch.deltas {
            if let Delta::Content(text) = delta {
                event(&json!({"index": 0, "content": text, "stop": false}), out);
            }
        }
        self.finish = batch.finish.or(self.finish.take());
    }

    fn end(&mut self, usage: &Usage, out: &mut Vec<u8>) {
        event(&self.last("", usage), out);
    }

    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        event(&error.openai(), out);
    }
}
