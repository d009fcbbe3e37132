//! `POST /v1/messages`: Anthropic's form.

use std::rc::Rc;

use serde_json::{Value, json};

use super::super::app::App;
use super::super::error::ApiError;
use super::super::fields::{Fields, wrong};
use super::super::generate::{Batch, Generation, Reason, Usage};
use super::super::job::{Chat, Interface, Options, OutputFormat, ToolChoice};
use super::super::model::Served;
use super::super::output::{Call, Delta};
use super::super::trace::Trace;
use super::{Answer, EventWriter, collect, fresh_id, named_event, stream};
use crate::chat::{Message, Role, ToolCall};

/// Answers a request.
///
/// # Errors
/// What is wrong with it, or with the answer.
pub async fn answer(app: &App, served: &Rc<Served>, body: &Value, trace: Rc<Trace>) -> Result<Answer, ApiError> {
    let fields = Fields::of(body)?;
    let options = Options::read(&fields, served, Interface::Messages)?;
    let is_stream = fields.is_set("stream")?;
    let job = chat(&fields)?.into_job(served, options).await?;
    let n_prompt = job.prompt.len();
    let generation = Generation::start(served, &[job], app.config.limits.first_token_time).await?;
    let id = fresh_id(served, "msg_");
    if is_stream {
        let events = Events { id, served: Rc::clone(served), n_prompt, open: None, n_blocks: 0, finish: None };
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
    Ok(Answer::Document(json!({
        "id": id,
        "type": "message",
        "role": "assistant",
        "model": served.name,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": stop_sequence,
        "usage": usage_json(&usage),
    })))
}

/// `POST /v1/messages/count_tokens`.
///
/// # Errors
/// What is wrong with the request.
pub async fn count_tokens(served: &Rc<Served>, body: &Value) -> Result<Value, ApiError> {
    let fields = Fields::of(body)?;
    let options = Options::read(&fields, served, Interface::CountTokens)?;
    let job = chat(&fields)?.into_job(served, options).await?;
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

fn chat(fields: &Fields<'_>) -> Result<Chat, ApiError> {
    let mut messages = Vec::new();
    let system = super::common::content(fields, "system", &["text"])?;
    if !system.is_empty() {
        messages.push(Message::text(Role::System, system));
    }
    let list = fields.list("messages")?.ok_or_else(|| fields.missing("messages"))?;
    for (i, message) in list.iter().enumerate() {
        take_message(&Fields::at(message, format!("messages[{i}]"))?, &mut messages)?;
    }
    let mut tools = Vec::new();
    for (i, tool) in fields.list("tools")?.unwrap_or_default().iter().enumerate() {
        let tool = Fields::at(tool, format!("tools[{i}]"))?;
        let name = tool.need_text("name")?;
        let schema = tool.object("input_schema")?.ok_or_else(|| tool.missing("input_schema"))?;
        let parameters = Value::Object(schema.iter().map(|(key, value)| (key.clone(), value.clone())).collect());
        let mut function = json!({"name": name, "parameters": parameters});
        if let Some(description) = tool.text("description")? {
            function["description"] = description.into();
        }
        tools.push(json!({"type": "function", "function": function}));
    }
    let choice = match fields.object("tool_choice")? {
        None => ToolChoice::Auto,
        Some(choice) => match choice.need_text("type")? {
            "auto" => ToolChoice::Auto,
            "any" => ToolChoice::Required,
            "none" => ToolChoice::None,
            "tool" => ToolChoice::Named(choice.need_text("name")?.to_owned()),
            other => {
                let text = format!("tool_choice.type is {other:?}; expected auto, any, tool or none");
                return Err(ApiError::field("tool_choice.type", text).code("invalid_value"));
            }
        },
    };
    let mut variables = Vec::new();
    if let Some(thinking) = fields.object("thinking")? {
        let enabled = thinking.need_text("type")? != "disabled";
        variables.push(("enable_thinking".to_owned(), enabled.into()));
    }
    let parallel_calls = match fields.object("tool_choice")? {
        Some(choice) => choice.boolean("disable_parallel_tool_use")?.map(|is_disabled| !is_disabled),
        None => None,
    };
    Ok(Chat { messages, field: "messages", tools, choice, parallel_calls, format: format(fields)?, variables })
}

/// `output_config.format`: a JSON schema.
fn format(fields: &Fields<'_>) -> Result<OutputFormat, ApiError> {
    let Some(config) = fields.object("output_config")? else { return Ok(OutputFormat::Text) };
    let Some(format) = config.object("format")? else { return Ok(OutputFormat::Text) };
    match format.need_text("type")? {
        "json_schema" => super::common::schema(&format, "schema"),
        other => {
            let path = format.path("type");
            let text = format!("{path} is {other:?}; expected json_schema");
            Err(ApiError::field(path, text).code("invalid_value"))
        }
    }
}

/// One message: results of tools become messages of their own, as templates have them.
fn take_message(message: &Fields<'_>, out: &mut Vec<Message>) -> Result<(), ApiError> {
    let path = message.path("role");
    let role = match message.need_text("role")? {
        "user" => Role::User,
        "assistant" => Role::Assistant,
        other => {
            let text = format!("{path} is {other:?}; expected user or assistant (system is a field of its own)");
            return Err(ApiError::field(path, text).code("invalid_value"));
        }
    };
    let path = message.path("content");
    let blocks = match message.get("content") {
        None => return Err(message.missing("content")),
        Some(Value::String(text)) => {
            out.push(Message::text(role, text.clone()));
            return Ok(());
        }
        Some(Value::Array(blocks)) => blocks,
        Some(other) => return Err(wrong(&path, other, "a string or an array of blocks")),
    };
    let mut whole = Message::text(role, "");
    let mut is_empty = true;
    for (i, block) in blocks.iter().enumerate() {
        let block = Fields::at(block, format!("{path}[{i}]"))?;
        match block.need_text("type")? {
            "text" => {
                whole.content.push_str(block.need_text("text")?);
                is_empty = false;
            }
            "thinking" => {
                whole.reasoning_content.get_or_insert_default().push_str(block.need_text("thinking")?);
                is_empty = false;
            }
            "redacted_thinking" => {}
            "tool_use" => {
                whole.tool_calls.push(ToolCall {
                    id: block.text("id")?.unwrap_or_default().to_owned(),
                    name: block.need_text("name")?.to_owned(),
                    arguments: super::common::arguments(&block, "input")?,
                });
                is_empty = false;
            }
            "tool_result" => {
                let mut text = super::common::content(&block, "content", &["text"])?;
                if block.is_set("is_error")? {
                    text.insert_str(0, "Error: ");
                }
                let id = block.need_text("tool_use_id")?.to_owned();
                let calls = out.iter().flat_map(|message: &Message| &message.tool_calls);
                let name = calls.rev().find(|call| call.id == id).map(|call| call.name.clone());
                out.push(Message { tool_call_id: Some(id), name, ..Message::text(Role::Tool, text) });
            }
            other => {
                let path = block.path("type");
                let text = format!("{path} is {other:?}; this server takes text, thinking, tool_use and tool_result");
                return Err(ApiError::field(path, text).code("unsupported_content"));
            }
        }
    }
    if !is_empty {
        out.push(whole);
    }
    Ok(())
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
        let message = json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.served.name,
            "content": [],
            "stop_reason": null,
            "stop_sequence": null,
            "usage": {"input_tokens": self.n_prompt, "output_tokens": 0},
        });
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

    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        named_event(&error.anthropic(), out);
    }
}
