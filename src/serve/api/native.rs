//! `POST /completion` and `/infill`, as clients of llama.cpp's server ask: text goes on, or what belongs between two texts is
//! filled in.

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
use super::common::{timings_json, whole_text};
use super::completions::{Prompt, check_n_answers, prompts};
use super::format::format;
use super::infill::gap;
use super::{Answer, EventWriter, add_progress, collect, event, logprobs_json, stream};
use crate::engine::Timings;
use crate::sampling::{BAN_BIAS, SamplingParams};

/// Answers a request to go on.
///
/// # Errors
/// What is wrong with it, or with the answer.
pub async fn completion(app: &App, served: &Rc<Served>, body: &Value, trace: Rc<Trace>) -> Result<Answer, ApiError> {
    let fields = Fields::of(body)?;
    let prompts = prompts(&fields, served).await?;
    answer(app, served, &fields, ("prompt", prompts), trace).await
}

/// Answers a request to fill a gap.
///
/// # Errors
/// What is wrong with it, or with the answer.
pub async fn infill(app: &App, served: &Rc<Served>, body: &Value, trace: Rc<Trace>) -> Result<Answer, ApiError> {
    let fields = Fields::of(body)?;
    let tokens = gap(&fields, served).await?;
    answer(app, served, &fields, ("input_prefix", vec![Prompt { tokens, text: String::new() }]), trace).await
}

async fn answer(
    app: &App,
    served: &Rc<Served>,
    fields: &Fields<'_>,
    (field, prompts): (&'static str, Vec<Prompt>),
    trace: Rc<Trace>,
) -> Result<Answer, ApiError> {
    let mut options = Options::read(fields, served, Interface::Native)?;
    check_n_answers(prompts.len(), options.n)?;
    let is_stream = fields.is_set("stream")?;
    options.wants_tokens = is_stream || fields.is_set("return_tokens")?;
    if options.ignore_eos {
        // They are never drawn here, as llama.cpp has it: nothing of what follows one would make sense.
        let ends = (0..served.tokenizer.n_tokens()).filter(|&id| served.tokenizer.is_end_of_generation(id));
        options.logit_bias.extend(ends.map(|id| (id, BAN_BIAS)));
    }
    let grammar = match format(fields)? {
        OutputFormat::Text => None,
        OutputFormat::Grammar(grammar, name) => Some((grammar, name)),
    };
    let mut form = Pieces {
        served: Rc::clone(served),
        settings: settings(&options),
        has_logprobs: options.n_top_logprobs.is_some(),
        has_tokens: options.wants_tokens,
        has_timings: options.wants_timings,
        fields: response_fields(fields)?,
        choices: Vec::new(),
    };
    let mut jobs = Vec::new();
    for Prompt { tokens, .. } in prompts {
        let job = Job::new(served, (field, tokens), options.clone(), Expect::text(), grammar.clone())?;
        let is_cut = options.max_tokens.is_none_or(|most| most > job.max_tokens);
        form.choices.extend((0..options.n).map(|_| Choice {
            prompt: Rc::clone(&job.prompt),
            is_cut,
            has_line: false,
            n: 0,
        }));
        jobs.push(job);
    }
    let generation = Generation::start(served, jobs, app.config.limits.first_token_time).await?;
    if is_stream {
        return Ok(stream(form, generation, trace));
    }
    let (answers, _) = collect(generation, form.choices.len(), &trace).await?;
    let answers = answers.into_iter().enumerate().map(|(index, whole)| {
        form.choices[index].has_line = whole.content.contains('\n');
        let mut last = form.last(index, &whole.content, &whole.tokens, whole.finish.as_ref(), &whole.timings);
        if form.has_logprobs {
            last["completion_probabilities"] = logprobs_json(served, &whole.tokens).into();
        }
        form.chosen(last)
    });
    let mut answers: Vec<Value> = answers.collect();
    // Several have a list around them.
    Ok(Answer::Document(if answers.len() == 1 { answers.remove(0) } else { answers.into() }))
}

/// `response_fields`: which are wanted, `a/b` for `b` of `a`; all if there are none.
fn response_fields(fields: &Fields<'_>) -> Result<Vec<String>, ApiError> {
    let list = fields.list("response_fields")?.unwrap_or_default().iter().enumerate();
    let name = |(i, name): (usize, &Value)| {
        name.as_str().map(str::to_owned).ok_or_else(|| wrong(&format!("response_fields[{i}]"), name, "a string"))
    };
    list.map(name).collect()
}

/// How tokens are drawn, as `/props` tells it of requests that do not say.
pub fn sampling_json(sampling: &SamplingParams) -> Value {
    // What there is not, as if it were off.
    const OFF: &str = r#"{"dynatemp_range":0.0,"dynatemp_exponent":1.0,"top_n_sigma":-1.0,"xtc_probability":0.0,"xtc_threshold":0.1,
        "typical_p":1.0,"dry_multiplier":0.0,"mirostat":0,"adaptive_target":-1.0,"adaptive_decay":0.9,"n_keep":0,"n_discard":0,
        "min_keep":0,"lora":[],"samplers":["penalties","top_k","top_p","min_p","temperature"],"n_predict":-1,"max_tokens":-1,
        "repeat_last_n":64}"#;
    let mut all: Value = serde_json::from_str(OFF).unwrap_or_default();
    let numbers = [
        ("temperature", sampling.temp),
        ("top_p", sampling.top_p),
        ("min_p", sampling.min_p),
        ("repeat_penalty", sampling.repeat_penalty),
        ("presence_penalty", sampling.presence_penalty),
        ("frequency_penalty", sampling.frequency_penalty),
    ];
    numbers.into_iter().for_each(|(name, number)| all[name] = number.into());
    all["top_k"] = sampling.top_k.into();
    all["seed"] = sampling.seed.into();
    all
}

/// `generation_settings`: what was asked for, with what was not.
fn settings(options: &Options) -> Value {
    let mut all = sampling_json(&options.sampling);
    // JSON has no infinity: what is never drawn has null.
    let bias = |&(token, bias): &(u32, f32)| json!({"token": token, "bias": (bias > BAN_BIAS).then_some(bias)});
    let most = options.max_tokens.map_or(Value::from(-1), Value::from);
    (all["n_predict"], all["max_tokens"]) = (most.clone(), most);
    all["n_probs"] = options.n_top_logprobs.unwrap_or(0).into();
    all["stop"] = options.stop.clone().into();
    all["ignore_eos"] = options.ignore_eos.into();
    all["logit_bias"] = options.logit_bias.iter().map(bias).collect();
    all
}

/// One answer on its way.
struct Choice {
    prompt: Rc<Vec<u32>>,
    /// Its limit is the context.
    is_cut: bool,
    has_line: bool,
    /// Tokens so far.
    n: usize,
}

/// The answers in events, and their ends.
struct Pieces {
    served: Rc<Served>,
    settings: Value,
    has_logprobs: bool,
    has_tokens: bool,
    has_timings: bool,
    /// Of the ends; all if there are none.
    fields: Vec<String>,
    choices: Vec<Choice>,
}

impl Pieces {
    fn last(
        &self,
        index: usize,
        content: &str,
        tokens: &[TokenInfo],
        finish: Option<&Reason>,
        took: &Timings,
    ) -> Value {
        let (stop_type, word) = match finish {
            Some(Reason::Length) => ("limit", ""),
            Some(Reason::StopText(text)) => ("word", text.as_str()),
            _ => ("eos", ""),
        };
        let choice = &self.choices[index];
        let ids: Vec<u32> = tokens.iter().filter(|_| self.has_tokens).map(|info| info.token).collect();
        let wants_prompt = self.fields.is_empty() || self.fields.iter().any(|name| name == "prompt");
        json!({
            "index": index,
            "content": content,
            "tokens": ids,
            "model": self.served.name,
            "stop": true,
            "stop_type": stop_type,
            "stopping_word": word,
            "truncated": finish == Some(&Reason::Length) && choice.is_cut,
            "has_new_line": choice.has_line,
            "tokens_cached": took.reused_tokens,
            "tokens_evaluated": choice.prompt.len(),
            "tokens_predicted": took.generated_tokens,
            "generation_settings": self.settings,
            "prompt": wants_prompt.then(|| whole_text(&self.served, &choice.prompt)),
            "timings": timings_json(took),
        })
    }

    /// What is wanted of an end; what is not there is left out.
    fn chosen(&self, last: Value) -> Value {
        if self.fields.is_empty() {
            return last;
        }
        let found = self.fields.iter().filter_map(|name| {
            let value = name.split('/').try_fold(&last, |value, part| value.get(part))?;
            Some((name.clone(), value.clone()))
        });
        Value::Object(found.collect::<Map<_, _>>())
    }

    /// An event with a piece of an answer.
    fn piece(&mut self, index: usize, content: &str, tokens: &[TokenInfo]) -> Value {
        let choice = &mut self.choices[index];
        choice.has_line |= content.contains('\n');
        choice.n += tokens.len();
        let ids: Vec<u32> = tokens.iter().map(|info| info.token).collect();
        let mut piece = json!({"index": index, "content": content, "tokens": ids, "stop": false,
            "tokens_predicted": choice.n, "tokens_evaluated": choice.prompt.len()});
        if self.has_logprobs && !tokens.is_empty() {
            piece["completion_probabilities"] = logprobs_json(&self.served, tokens).into();
        }
        piece
    }
}

impl EventWriter for Pieces {
    fn begin(&mut self, _out: &mut Vec<u8>) {}

    /// A token has an event of its own, as far as it is known what text is its.
    fn batch(&mut self, batch: Batch, out: &mut Vec<u8>) {
        let texts: Vec<String> = batch.deltas.into_iter().filter_map(said).collect();
        let n_events = texts.len().min(batch.tokens.len()).max(1);
        for i in 0..n_events {
            let is_last = i + 1 == n_events;
            let content = if is_last { texts.get(i..).unwrap_or_default().concat() } else { texts[i].clone() };
            let tokens = batch.tokens.get(i..if is_last { batch.tokens.len() } else { i + 1 }).unwrap_or_default();
            if content.is_empty() && tokens.is_empty() {
                continue;
            }
            let mut piece = self.piece(batch.index, &content, tokens);
            if let Some(timings) = batch.timings.as_ref().filter(|_| self.has_timings) {
                piece["timings"] = timings_json(timings);
            }
            event(&piece, out);
        }
        if batch.finish.is_some() {
            let last = self.last(batch.index, "", &[], batch.finish.as_ref(), &batch.timings.unwrap_or_default());
            event(&self.chosen(last), out);
        }
    }

    fn progress(&mut self, progress: &Progress, elapsed: Duration, out: &mut Vec<u8>) {
        let mut piece = self.piece(0, "", &[]);
        add_progress(&mut piece, progress, elapsed);
        event(&piece, out);
    }

    fn end(&mut self, _usage: &Usage, _out: &mut Vec<u8>) {}

    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        event(&error.openai(), out);
    }
}

fn said(delta: Delta) -> Option<String> {
    match delta {
        Delta::Content(text) => Some(text),
        _ => None,
    }
}
