//! `POST /v1/messages`: Anthropic's form.

mod blocks;

use std::rc::Rc;

use serde_json::{Value, json};

use super::super::app::App;
use super::super::conversation::Turn;
use super::super::error::ApiError;
use super::super::fields::Fields;
use super::super::generate::{Batch, Generation, Reason, Usage};
use super::super::job::{Chat, Interface, Options, OutputFormat, ToolChoice};
use super::super::model::Served;
use super::super::output::{Call, Delta};
use super::super::trace::Trace;
use super::common::{content, thinking, warn};
use super::{Answer, EventWriter, collect, fresh_id, named_event, stream};
use crate::chat::{Message, Role};
use blocks::take_message;

/// Answers a request.
///
/// # Errors
/// What is wrong with it, or with the answer.
pub async fn answer(app: &App, served: &Rc<Served>, body: &Value, trace: Rc<Trace>) -> Result<Answer, ApiError> {
    let fields = Fields::of(body)?;
    let options = Options::read(&fields, served, Interface::Messages)?;
    let is_stream = fields.is_set("stream")?;
    let (chat, warnings) = chat(&fields)?;
    let job = chat.into_job(served, options).await?;
    let n_prompt = job.prompt.len();
    let generation = Generation::start(served, vec![job], app.config.limits.first_token_time).await?;
    let id = fresh_id(served, "msg_");
    if is_stream {
        let served = Rc::clone(served);
        let events = Events { id, served, n_prompt, warnings, open: None, n_blocks: 0, finish: None };
        return Ok(stream(events, generation, trace));
    }
    let (mut answers, usage) = collect(generation, 1, &trace).await?;
    let answer = answers.remove(0);
    let mut content = Vec::new();
    if !answer.reasoning.is_empty() {
        content.push(json!({"type": "thinking", "thinking": answer.reasoning, "signature": ""}));
    }
    if !answer.content.is_empty() || answer.calls.is_empty() {
        content.push(json!({"type": "text", "text": answer.content}));
    }
    for call in &answer.calls {
        content.push(tool_use(&call.name, &fresh_id(served, "toolu_"), input(call)));
    }
    let (stop_reason, stop_sequence) = stop(answer.finish.as_ref());
    let mut message = json!({
        "id": id,
        "type": "message",
        "role": "assistant",
        "model": served.name,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": stop_sequence,
        "usage": usage_json(&usage),
    });
    warn(&mut message, warnings);
    Ok(Answer::Document(message))
}

/// `POST /v1/messages/count_tokens`.
///
/// # Errors
/// What is wrong with the request.
pub async fn count_tokens(served: &Rc<Served>, body: &Value) -> Result<Value, ApiError> {
    let fields = Fields::of(body)?;
    let options = Options::read(&fields, served, Interface::CountTokens)?;
    let (chat, _) = chat(&fields)?;
    let job = chat.into_job(served, options).await?;
    Ok(json!({"input_tokens": job.prompt.len()}))
}

fn usage_json(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt - usage.cached.min(usage.prompt),
        "cache_read_input_tokens": usage.cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion,
    })
}

fn stop(reason: Option<&Reason>) -> (Option<&'static str>, Option<&str>) {
    match reason {
        None => (None, None),
        Some(Reason::Stop) => (Some("end_turn"), None),
        Some(Reason::StopText(text)) => (Some("stop_sequence"), Some(text)),
        Some(Reason::Length) => (Some("max_tokens"), None),
        Some(Reason::Calls) => (Some("tool_use"), None),
    }
}

fn input(call: &Call) -> Value {
    serde_json::from_str(&call.arguments).ok().filter(Value::is_object).unwrap_or_else(|| json!({}))
}

fn tool_use(name: &str, id: &str, input: Value) -> Value {
    json!({"type": "tool_use", "id": id, "name": name, "input": input})
}

/// The chat, and what of the request it leaves out.
fn chat(fields: &Fields<'_>) -> Result<(Chat, Vec<String>), ApiError> {
    let mut turns = Vec::new();
    let system = system(fields)?;
    if !system.is_empty() {
        turns.push(Turn { at: "system".to_owned(), message: Message::text(Role::System, system) });
    }
    let list = fields.list("messages")?.ok_or_else(|| fields.missing("messages"))?;
    for (i, message) in list.iter().enumerate() {
        let at = format!("messages[{i}]");
        let mut messages = Vec::new();
        take_message(&Fields::at(message, at.as_str())?, &mut messages)?;
        turns.extend(messages.into_iter().map(|message| Turn { at: at.clone(), message }));
    }
    let (tools, warnings) = tools(fields)?;
    let chat = Chat {
        turns,
        ending: None,
        field: "messages",
        tools,
        parallel_calls: parallel_calls(fields)?,
        choice: tool_choice(fields)?,
        format: format(fields)?,
        thinking: thinking(fields)?,
        variables: Vec::new(),
    };
    Ok((chat, warnings))
}

/// What Claude Code puts before its system prompt: a line for the bill, which may differ with each request. Nobody is
/// billed here, and prompts keep their beginning without it.
const BILLING: &str = "x-anthropic-";

/// `system`.
fn system(fields: &Fields<'_>) -> Result<String, ApiError> {
    let text = content(fields, "system", &["text"])?;
    let n_billing = match fields.get("system") {
        _ if !text.starts_with(BILLING) => 0,
        Some(Value::Array(blocks)) => blocks.first().and_then(|block| block["text"].as_str()).map_or(0, str::len),
        _ => text.find('\n').unwrap_or(text.len()),
    };
    let rest = &text[n_billing..];
    Ok(rest.strip_prefix('\n').filter(|_| n_billing > 0).unwrap_or(rest).to_owned())
}

/// `tools`, as chats describe them, and what is said of those that are not taken.
fn tools(fields: &Fields<'_>) -> Result<(Vec<Value>, Vec<String>), ApiError> {
    let (mut tools, mut warnings) = (Vec::new(), Vec::new());
    for (i, tool) in fields.list("tools")?.unwrap_or_default().iter().enumerate() {
        let tool = Fields::at(tool, format!("tools[{i}]"))?;
        let kind = tool.text("type")?.unwrap_or("custom");
        let Some(schema) = tool.object("input_schema")? else {
            if kind == "custom" {
                return Err(tool.missing("input_schema"));
            }
            let path = tool.path("type");
            warnings.push(format!("{path} is {kind:?}, which this server does not have: the model is not offered it"));
            continue;
        };
        let parameters = Value::Object(schema.iter().map(|(key, value)| (key.clone(), value.clone())).collect());
        let mut function = json!({"name": tool.need_text("name")?, "parameters": parameters});
        if let Some(description) = tool.text("description")? {
            function["description"] = description.into();
        }
        tools.push(json!({"type": "function", "function": function}));
    }
    Ok((tools, warnings))
}

fn tool_choice(fields: &Fields<'_>) -> Result<ToolChoice, ApiError> {
    let Some(choice) = fields.object("tool_choice")? else { return Ok(ToolChoice::Auto) };
    Ok(match choice.need_text("type")? {
        "auto" => ToolChoice::Auto,
        "any" => ToolChoice::Required,
        "none" => ToolChoice::None,
        "tool" => ToolChoice::Named(choice.need_text("name")?.to_owned()),
        other => {
            let text = format!("tool_choice.type is {other:?}; expected auto, any, tool or none");
            return Err(ApiError::field("tool_choice.type", text).code("invalid_value"));
        }
    })
}

/// Whether several tools may be called at once, if the request says.
fn parallel_calls(fields: &Fields<'_>) -> Result<Option<bool>, ApiError> {
    let Some(choice) = fields.object("tool_choice")? else { return Ok(None) };
    Ok(choice.boolean("disable_parallel_tool_use")?.map(|is_disabled| !is_disabled))
}

/// `output_config.format`, or `output_format` as it was called at first: a JSON schema.
fn format(fields: &Fields<'_>) -> Result<OutputFormat, ApiError> {
    let config = fields.object("output_config")?;
    let format = config.map(|config| config.object("format")).transpose()?.flatten();
    let format = match (format, fields.object("output_format")?) {
        (Some(_), Some(_)) => {
            let text = "output_format and output_config.format both constrain the answer; give one";
            return Err(ApiError::field("output_format", text).code("invalid_value"));
        }
        (Some(format), None) | (None, Some(format)) => format,
        (None, None) => return Ok(OutputFormat::Text),
    };
    match format.need_text("type")? {
        "json_schema" => super::common::schema(&format, "schema"),
        other => {
            let path = format.path("type");
            let text = format!("{path} is {other:?}; expected json_schema");
            Err(ApiError::field(path, text).code("invalid_value"))
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Block {
    Text,
    Thinking,
    Call,
}

/// The answer in events.
struct Events {
    id: String,
    served: Rc<Served>,
    n_prompt: usize,
    warnings: Vec<String>,
    /// The block that is being written.
    open: Option<Block>,
    n_blocks: usize,
    finish: Option<Reason>,
}

impl Events {
    fn close(&mut self, out: &mut Vec<u8>) {
        if self.open.take().is_some() {
            named_event(&json!({"type": "content_block_stop", "index": self.n_blocks - 1}), out);
        }
    }

    fn start(&mut self, block: Value, out: &mut Vec<u8>) {
        self.close(out);
        named_event(&json!({"type": "content_block_start", "index": self.n_blocks, "content_block": block}), out);
        self.n_blocks += 1;
    }

    fn delta(&self, delta: Value, out: &mut Vec<u8>) {
        named_event(&json!({"type": "content_block_delta", "index": self.n_blocks - 1, "delta": delta}), out);
    }
}

impl EventWriter for Events {
    fn begin(&mut self, out: &mut Vec<u8>) {
        let mut message = json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.served.name,
            "content": [],
            "stop_reason": null,
            "stop_sequence": null,
            "usage": {"input_tokens": self.n_prompt, "output_tokens": 0},
        });
        warn(&mut message, std::mem::take(&mut self.warnings));
        named_event(&json!({"type": "message_start", "message": message}), out);
    }

    fn batch(&mut self, batch: Batch, out: &mut Vec<u8>) {
        for delta in batch.deltas {
            match delta {
                Delta::Reasoning(text) => {
                    if self.open != Some(Block::Thinking) {
                        self.start(json!({"type": "thinking", "thinking": "", "signature": ""}), out);
                        self.open = Some(Block::Thinking);
                    }
                    self.delta(json!({"type": "thinking_delta", "thinking": text}), out);
                }
                Delta::Content(text) => {
                    if self.open != Some(Block::Text) {
                        self.start(json!({"type": "text", "text": ""}), out);
                        self.open = Some(Block::Text);
                    }
                    self.delta(json!({"type": "text_delta", "text": text}), out);
                }
                Delta::Call(name) => {
                    let id = fresh_id(&self.served, "toolu_");
                    self.start(tool_use(&name, &id, json!({})), out);
                    self.open = Some(Block::Call);
                }
                Delta::Arguments(piece) => {
                    self.delta(json!({"type": "input_json_delta", "partial_json": piece}), out);
                }
            }
        }
        self.finish = batch.finish.or(self.finish.take());
    }

    fn end(&mut self, usage: &Usage, out: &mut Vec<u8>) {
        self.close(out);
        let (stop_reason, stop_sequence) = stop(self.finish.as_ref());
        let delta = json!({"stop_reason": stop_reason, "stop_sequence": stop_sequence});
        named_event(&json!({"type": "message_delta", "delta": delta, "usage": usage_json(usage)}), out);
        named_event(&json!({"type": "message_stop"}), out);
    }

    fn ping(&mut self, out: &mut Vec<u8>) {
        named_event(&json!({"type": "ping"}), out);
    }

    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        named_event(&error.anthropic(), out);
    }
}
