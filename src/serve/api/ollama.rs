//! Ollama's interface, as far as front ends need it to find a model and to talk to it: `/api/tags`, `/api/ps`, `/api/show`,
//! `/api/version`, `/api/chat`, `/api/generate`. Answers stream unless a request says otherwise, a JSON document a line.

use std::rc::Rc;

use serde_json::{Map, Value, json};

use super::super::app::App;
use super::super::conversation::Turn;
use super::super::error::ApiError;
use super::super::fields::{Fields, wrong};
use super::super::generate::{Batch, Generation, Reason, Usage};
use super::super::job::{Chat, Interface, Job, Options, OutputFormat, Thinking, ToolChoice};
use super::super::masks::Grammar;
use super::super::model::Served;
use super::super::models::Models;
use super::super::output::{Call, Delta, Expect};
use super::super::trace::Trace;
use super::super::unhonoured;
use super::common::{arguments, effort, role};
use super::infill::middle_prompt;
use super::{Answer, EventWriter, collect, stream_lines};
use crate::chat::{Message, Role, Time, ToolCall};
use crate::tokenizer::PromptForm;

/// The version of Ollama whose interface this is: front ends ask for a least one.
const VERSION: &str = "0.9.0";

/// `GET /api/version`.
pub fn version() -> Value {
    json!({"version": VERSION})
}

/// `GET /api/tags`: the models there are.
pub fn tags(models: &Models) -> Value {
    let models = models.all().iter().map(|served| {
        let mut model = summary(served);
        model["modified_at"] = timestamp(served.created).into();
        model
    });
    json!({"models": models.collect::<Vec<_>>()})
}

/// `GET /api/ps`: the models that are loaded.
pub fn ps(models: &Models) -> Value {
    let models = models.all().iter().map(|served| {
        let mut model = summary(served);
        // It stays: no time in the future is late enough for those who unload.
        model["expires_at"] = "9999-12-31T23:59:59Z".into();
        model["size_vram"] = 0.into();
        model["context_length"] = served.limits().ctx.into();
        model
    });
    json!({"models": models.collect::<Vec<_>>()})
}

/// `POST /api/show`: what a model is and can do.
///
/// # Errors
/// 404 for another model.
pub fn show(models: &Models, body: &Value) -> Result<Value, ApiError> {
    let fields = Fields::of(body)?;
    let asked = match fields.text("model")? {
        Some(name) => name,
        None => fields.need_text("name")?,
    };
    let served = models.called(asked).ok_or_else(|| models.unknown(asked))?;
    let about = &served.about;
    let architecture = &about.architecture;
    let template = served.template(false);
    let tools = served.template(true).is_some_and(|template| template.takes_tools);
    let vectors = served.limits().vectors;
    let abilities = [
        ("completion", vectors.is_none()),
        ("embedding", vectors.is_some_and(|vectors| !vectors.ranks())),
        ("tools", tools),
        ("thinking", template.is_some_and(|template| template.thinks)),
        ("insert", about.fim.is_some()),
    ];
    let abilities: Vec<&str> = abilities.into_iter().filter(|(_, can)| *can).map(|(name, _)| name).collect();
    Ok(json!({
        "modelfile": "",
        "parameters": format!("num_ctx {}", served.limits().ctx),
        "template": template.map_or("", |template| template.source()),
        "details": details(served),
        "model_info": {
            "general.architecture": architecture,
            "general.file_type": about.file_type,
            format!("{architecture}.context_length"): served.limits().ctx,
            format!("{architecture}.embedding_length"): served.limits().n_embd,
            "tokenizer.ggml.vocab_size": served.limits().n_vocab,
        },
        "capabilities": abilities,
        "modified_at": timestamp(served.created),
    }))
}

fn summary(served: &Served) -> Value {
    json!({
        "name": served.name,
        "model": served.name,
        "size": served.bytes,
        "digest": "",
        "details": details(served),
    })
}

fn details(served: &Served) -> Value {
    let about = &served.about;
    json!({
        "parent_model": "",
        "format": "gguf",
        "family": about.architecture,
        "families": [about.architecture],
        "parameter_size": about.size_label,
        "quantization_level": about.quantization(),
    })
}

fn timestamp(unix: u64) -> String {
    Time::from_unix(unix).format("%Y-%m-%dT%H:%M:%SZ")
}

/// `POST /api/chat`.
///
/// # Errors
/// What is wrong with it, or with the answer.
pub async fn chat(app: &App, served: &Rc<Served>, body: &Value, trace: Rc<Trace>) -> Result<Answer, ApiError> {
    let fields = Fields::of(body)?;
    refuse(&fields, &["template"])?;
    let turns = turns(&fields)?;
    if turns.is_empty() {
        return Ok(Answer::Document(loaded(served, Form::Chat)));
    }
    let options = options(&fields, served)?;
    let chat = Chat {
        turns,
        ending: None,
        field: "messages",
        tools: fields.list("tools")?.unwrap_or_default().to_vec(),
        choice: ToolChoice::Auto,
        parallel_calls: None,
        format: format(&fields)?,
        thinking: thinking(&fields)?,
        variables: Vec::new(),
    };
    let job = chat.into_job(served, options).await?;
    finish(app, served, (&fields, Form::Chat), job, trace).await
}

/// `POST /api/generate`: one prompt, by the chat template unless it is `raw`.
///
/// # Errors
/// What is wrong with it, or with the answer.
pub async fn generate(app: &App, served: &Rc<Served>, body: &Value, trace: Rc<Trace>) -> Result<Answer, ApiError> {
    let fields = Fields::of(body)?;
    refuse(&fields, &["template", "context"])?;
    no_images(&fields)?;
    let prompt = fields.text("prompt")?.unwrap_or_default();
    let suffix = fields.text("suffix")?.unwrap_or_default();
    if prompt.is_empty() && suffix.is_empty() {
        return Ok(Answer::Document(loaded(served, Form::Generate)));
    }
    let options = options(&fields, served)?;
    let format = format(&fields)?;
    let is_raw = fields.is_set("raw")?;
    let system = fields.text("system")?.filter(|system| !system.is_empty());
    let job = if is_raw || !suffix.is_empty() || served.template(false).is_none() {
        if system.is_some() {
            let text = "system: this prompt goes to the model without a chat template, which is where a system message \
                        would stand; say it in prompt";
            return Err(ApiError::field("system", text).code("unsupported_value"));
        }
        let tokens = match suffix {
            "" => served.prompt_tokens(prompt.to_owned(), PromptForm::Chat).await?,
            suffix => middle_prompt(served, "suffix", &[], (prompt, suffix)).await?,
        };
        let expect = Expect::text();
        let grammar = match format {
            OutputFormat::Grammar(grammar, param) => Some((grammar, param)),
            OutputFormat::Text => None,
        };
        Job::new(served, ("prompt", tokens), options, expect, grammar)?
    } else {
        let turn = |at: &str, role, text: &str| Turn { at: at.to_owned(), message: Message::text(role, text) };
        let mut turns = Vec::new();
        if let Some(system) = system {
            turns.push(turn("system", Role::System, system));
        }
        turns.push(turn("prompt", Role::User, prompt));
        let chat = Chat {
            turns,
            ending: None,
            field: "prompt",
            tools: Vec::new(),
            choice: ToolChoice::Auto,
            parallel_calls: None,
            format,
            thinking: thinking(&fields)?,
            variables: Vec::new(),
        };
        chat.into_job(served, options).await?
    };
    finish(app, served, (&fields, Form::Generate), job, trace).await
}

/// Refuses what would change the answer and is not honoured: the fields in `names`, unless they are empty, and logprobs.
fn refuse(fields: &Fields<'_>, names: &[&str]) -> Result<(), ApiError> {
    unhonoured::refuse(fields)?;
    let is_empty = |value: &Value| match value {
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Bool(false) => true,
        other => other.as_u64() == Some(0),
    };
    for name in names.iter().chain(&["logprobs", "top_logprobs"]) {
        if fields.get(name).is_some_and(|value| !is_empty(value)) {
            let instead = match *name {
                "template" => "start the server with another --chat-template",
                "context" => "send the whole conversation to /api/chat",
                _ => "ask /v1/chat/completions for them",
            };
            let text = format!("{name} is not supported here; {instead}");
            return Err(ApiError::field(*name, text).code("unsupported_value"));
        }
    }
    Ok(())
}

/// Generates, and sends the answer as the request wants it.
async fn finish(
    app: &App,
    served: &Rc<Served>,
    (fields, form): (&Fields<'_>, Form),
    job: Job,
    trace: Rc<Trace>,
) -> Result<Answer, ApiError> {
    let is_stream = fields.boolean("stream")?.unwrap_or(true);
    let generation = Generation::start(served, vec![job], app.config.limits.first_token_time).await?;
    let mut lines = Lines { served: Rc::clone(served), form, call: None, finish: None };
    if is_stream {
        return Ok(stream_lines(lines, generation, trace));
    }
    let (mut answers, usage) = collect(generation, 1, &trace).await?;
    let answer = answers.remove(0);
    lines.finish = answer.finish;
    let calls = answer.calls.iter().map(call_json).collect();
    Ok(Answer::Document(lines.last(Piece { content: &answer.content, thinking: &answer.reasoning, calls }, &usage)))
}

/// `messages`, as templates want them.
fn turns(fields: &Fields<'_>) -> Result<Vec<Turn>, ApiError> {
    let mut turns = Vec::new();
    for (i, message) in fields.list("messages")?.unwrap_or_default().iter().enumerate() {
        let at = format!("messages[{i}]");
        let message = Fields::at(message, at.as_str())?;
        no_images(&message)?;
        let mut tool_calls = Vec::new();
        for (j, call) in message.list("tool_calls")?.unwrap_or_default().iter().enumerate() {
            let call = Fields::at(call, format!("{}[{j}]", message.path("tool_calls")))?;
            let function = call.object("function")?.ok_or_else(|| call.missing("function"))?;
            tool_calls.push(ToolCall {
                id: call.text("id")?.unwrap_or_default().to_owned(),
                name: function.need_text("name")?.to_owned(),
                arguments: arguments(&function, "arguments")?,
            });
        }
        let name = match message.text("tool_name")? {
            Some(name) => Some(name),
            None => message.text("name")?,
        };
        let message = Message {
            reasoning_content: message.text("thinking")?.map(str::to_owned),
            tool_calls,
            tool_call_id: message.text("tool_call_id")?.map(str::to_owned),
            name: name.map(str::to_owned),
            ..Message::text(role(&message)?, message.text("content")?.unwrap_or_default())
        };
        turns.push(Turn { at, message });
    }
    Ok(turns)
}

fn no_images(fields: &Fields<'_>) -> Result<(), ApiError> {
    match fields.list("images")? {
        None | Some([]) => Ok(()),
        Some(_) => {
            let path = fields.path("images");
            Err(ApiError::field(&path, format!("{path}: this server takes text only")).code("unsupported_content"))
        }
    }
}

/// `options`, under the names that the other interfaces have for them. What is about the place and shape of the model in
/// memory means nothing here.
fn options(fields: &Fields<'_>, served: &Served) -> Result<Options, ApiError> {
    let mut found = Map::new();
    if let Some(options) = fields.object("options")? {
        unhonoured::refuse(&options)?;
        for name in [
            "temperature",
            "top_k",
            "top_p",
            "min_p",
            "seed",
            "repeat_penalty",
            "presence_penalty",
            "frequency_penalty",
            "stop",
        ] {
            found.extend(options.get(name).map(|value| (name.to_owned(), value.clone())));
        }
        // Below zero: until the end or as long as there is room.
        let most = options.integer("num_predict", -2, i64::MAX >> 1)?;
        found.extend(most.filter(|n| *n > 0).map(|n| ("max_tokens".to_owned(), n.into())));
    }
    Options::read(&Fields::at(&Value::Object(found), "options")?, served, Interface::Chat)
}

/// `format`: `"json"` or a schema.
fn format(fields: &Fields<'_>) -> Result<OutputFormat, ApiError> {
    let schema = match fields.get("format") {
        None => return Ok(OutputFormat::Text),
        Some(Value::String(word)) if word.is_empty() => return Ok(OutputFormat::Text),
        Some(Value::String(word)) if word == "json" => json!({"type": "object"}),
        Some(schema @ Value::Object(_)) => schema.clone(),
        Some(other) => return Err(wrong("format", other, "\"json\" or a JSON schema")),
    };
    Ok(OutputFormat::Grammar(Grammar::Schema(schema), "format"))
}

/// `think`: yes, no, or how much.
fn thinking(fields: &Fields<'_>) -> Result<Thinking, ApiError> {
    let (enabled, effort) = match fields.get("think") {
        None => (None, None),
        Some(Value::Bool(think)) => (Some(*think), None),
        Some(Value::String(_)) => (Some(true), effort(fields, "think")?),
        Some(other) => return Err(wrong("think", other, "a boolean or a word")),
    };
    Ok(Thinking { enabled, effort, tokens: None })
}

#[derive(Clone, Copy, PartialEq)]
enum Form {
    Chat,
    Generate,
}

/// A part of an answer.
#[derive(Default)]
struct Piece<'a> {
    content: &'a str,
    thinking: &'a str,
    calls: Vec<Value>,
}

/// What is said of a request without a prompt, which asks for the model to be loaded.
fn loaded(served: &Served, form: Form) -> Value {
    let mut line = line(served, form, Piece::default());
    line["done"] = true.into();
    line["done_reason"] = "load".into();
    line
}

fn line(served: &Served, form: Form, piece: Piece<'_>) -> Value {
    let mut line = json!({"model": served.name, "created_at": timestamp(super::unix_time()), "done": false});
    match form {
        Form::Chat => {
            let mut message = json!({"role": "assistant", "content": piece.content});
            if !piece.thinking.is_empty() {
                message["thinking"] = piece.thinking.into();
            }
            if !piece.calls.is_empty() {
                message["tool_calls"] = piece.calls.into();
            }
            line["message"] = message;
        }
        Form::Generate => {
            line["response"] = piece.content.into();
            if !piece.thinking.is_empty() {
                line["thinking"] = piece.thinking.into();
            }
        }
    }
    line
}

fn call_json(call: &Call) -> Value {
    let arguments = serde_json::from_str(&call.arguments).ok().filter(Value::is_object);
    json!({"function": {"name": call.name, "arguments": arguments.unwrap_or_else(|| json!({}))}})
}

/// The answer in lines.
struct Lines {
    served: Rc<Served>,
    form: Form,
    /// The call that is being written: a line has whole ones.
    call: Option<Call>,
    finish: Option<Reason>,
}

impl Lines {
    fn send(&self, piece: Piece<'_>, out: &mut Vec<u8>) {
        put(&line(&self.served, self.form, piece), out);
    }

    fn send_call(&mut self, out: &mut Vec<u8>) {
        if let Some(call) = self.call.take() {
            self.send(Piece { calls: vec![call_json(&call)], ..Piece::default() }, out);
        }
    }

    fn last(&self, piece: Piece<'_>, usage: &Usage) -> Value {
        let mut line = line(&self.served, self.form, piece);
        let timings = &usage.timings;
        let nanos = |time: std::time::Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let members = json!({
            "done": true,
            "done_reason": if self.finish == Some(Reason::Length) { "length" } else { "stop" },
            "total_duration": nanos(timings.queued + timings.prefill + timings.decode),
            "load_duration": 0,
            "prompt_eval_count": usage.prompt,
            "prompt_eval_duration": nanos(timings.prefill),
            "eval_count": usage.completion,
            "eval_duration": nanos(timings.decode),
        });
        if let (Some(line), Value::Object(members)) = (line.as_object_mut(), members) {
            line.extend(members);
        }
        line
    }
}

fn put(line: &Value, out: &mut Vec<u8>) {
    // A document of strings and numbers always serialises.
    let _ = serde_json::to_writer(&mut *out, line);
    out.push(b'\n');
}

impl EventWriter for Lines {
    fn begin(&mut self, _out: &mut Vec<u8>) {}

    fn batch(&mut self, batch: Batch, out: &mut Vec<u8>) {
        for delta in batch.deltas {
            match delta {
                Delta::Content(text) => self.send(Piece { content: &text, ..Piece::default() }, out),
                Delta::Reasoning(text) => self.send(Piece { thinking: &text, ..Piece::default() }, out),
                Delta::Call(name) => {
                    self.send_call(out);
                    self.call = Some(Call { name, arguments: String::new() });
                }
                Delta::Arguments(piece) => {
                    if let Some(call) = &mut self.call {
                        call.arguments.push_str(&piece);
                    }
                }
            }
        }
        if batch.finish.is_some() {
            self.send_call(out);
        }
        self.finish = batch.finish.or(self.finish.take());
    }

    fn end(&mut self, usage: &Usage, out: &mut Vec<u8>) {
        put(&self.last(Piece::default(), usage), out);
    }

    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        put(&error.ollama(), out);
    }

    /// Lines have no comments: a piece without text.
    fn ping(&mut self, out: &mut Vec<u8>) {
        self.send(Piece::default(), out);
    }
}
