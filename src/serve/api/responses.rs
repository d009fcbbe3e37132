//! `POST /v1/responses`: OpenAI's newer form, for text and function tools. Nothing is stored.

mod input;

use std::rc::Rc;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::super::app::App;
use super::super::error::ApiError;
use super::super::fields::Fields;
use super::super::generate::{Batch, Generation, Progress, Reason, Usage};
use super::super::job::{Chat, Interface, Options, OutputFormat, ToolChoice};
use super::super::masks::Grammar;
use super::super::model::{Served, unix_time};
use super::super::output::Delta;
use super::super::trace::Trace;
use super::common::{
    allowed, choice_word, counted, function_choice, no_function, schema, thinking, timings_json, warn,
};
use super::{Answer, EventWriter, add_progress, collect, fresh_id, named_event, stream};
use crate::engine::{TOP_LOGPROBS_MAX, Timings};
use input::Input;

/// Answers a request.
///
/// # Errors
/// What is wrong with it, or with the answer.
pub async fn answer(app: &App, served: &Rc<Served>, body: &Value, trace: Rc<Trace>) -> Result<Answer, ApiError> {
    let fields = Fields::of(body)?;
    refuse_stored(&fields)?;
    let options = Options::read(&fields, served, Interface::Responses)?;
    let is_stream = fields.is_set("stream")?;
    let mut warnings = Vec::new();
    let (chat, described) = chat(&fields, &mut warnings)?;
    let (sampling, with_timings) = (options.sampling, options.wants_timings);
    let max_tokens = options.max_tokens;
    let job = chat.into_job(served, options).await?;
    let generation = Generation::start(served, vec![job], app.config.limits.first_token_time).await?;
    let mut shell = json!({
        "id": fresh_id(served, "resp_"),
        "object": "response",
        "created_at": unix_time(),
        "status": "in_progress",
        "error": null,
        "incomplete_details": null,
        "instructions": fields.text("instructions")?,
        "max_output_tokens": max_tokens,
        "model": served.name,
        "output": [],
        "parallel_tool_calls": true,
        "previous_response_id": null,
        "store": false,
        "temperature": sampling.temp,
        "top_p": sampling.top_p,
        "text": fields.get("text").cloned().unwrap_or_else(|| json!({"format": {"type": "text"}})),
        "tool_choice": fields.get("tool_choice").cloned().unwrap_or_else(|| "auto".into()),
        "tools": described,
        "truncation": "disabled",
        "usage": null,
        "reasoning": fields.get("reasoning").cloned().unwrap_or_else(|| json!({"effort": null, "summary": null})),
        "metadata": fields.get("metadata").cloned().unwrap_or_else(|| json!({})),
    });
    warn(&mut shell, warnings);
    let mut events = Events {
        shell,
        served: Rc::clone(served),
        items: Vec::new(),
        open: None,
        sequence: 0,
        finish: None,
        timings: None,
        with_timings,
    };
    if is_stream {
        return Ok(stream(events, generation, trace));
    }
    let (mut answers, usage) = collect(generation, 1, &trace).await?;
    let whole = answers.remove(0);
    // The same events, of which only the last is kept.
    let mut nowhere = Vec::new();
    let mut deltas = Vec::new();
    for (text, kind) in [(whole.reasoning, Delta::Reasoning as fn(String) -> Delta), (whole.content, Delta::Content)] {
        if !text.is_empty() {
            deltas.push(kind(text));
        }
    }
    deltas.extend(whole.calls.into_iter().flat_map(|call| [Delta::Call(call.name), Delta::Arguments(call.arguments)]));
    events.batch(Batch { deltas, finish: whole.finish, ..Batch::new(0) }, &mut nowhere);
    events.close(&mut nowhere);
    Ok(Answer::Document(events.finished(&usage)))
}

/// `POST /v1/responses/input_tokens`: how many tokens a request has.
///
/// # Errors
/// What is wrong with the request.
pub async fn count_tokens(served: &Served, body: &Value) -> Result<Value, ApiError> {
    let (chat, _) = chat(&Fields::of(body)?, &mut Vec::new())?;
    counted(chat, served).await
}

/// What is to be answered, and its tools as this interface describes them.
fn chat(fields: &Fields<'_>, warnings: &mut Vec<String>) -> Result<(Chat, Vec<Value>), ApiError> {
    let (tools, described) = tools(fields, warnings)?;
    let (turns, ending) = Input::read(fields, warnings)?;
    let chat = Chat {
        turns,
        ending,
        field: "input",
        tools,
        choice: tool_choice(fields)?,
        parallel_calls: fields.boolean("parallel_tool_calls")?,
        format: format(fields)?,
        thinking: thinking(fields)?,
        variables: Vec::new(),
    };
    Ok((chat, described))
}

/// Refuses what refers to another server's store, and logprobs, of which this interface has none here.
fn refuse_stored(fields: &Fields<'_>) -> Result<(), ApiError> {
    let refused =
        |name: &str, text: &str| Err(ApiError::field(name, format!("{name}: {text}")).code("unsupported_parameter"));
    for name in ["previous_response_id", "conversation"] {
        if fields.get(name).is_some() {
            return refused(name, "this server stores no answers; send the whole conversation as input");
        }
    }
    if fields.get("prompt").is_some_and(Value::is_object) {
        return refused("prompt", "this server stores no prompts; send their text as instructions and input");
    }
    let logprobs = "this interface has no logprobs here; ask /v1/chat/completions for them";
    if fields.size("top_logprobs", 0, TOP_LOGPROBS_MAX)?.is_some_and(|n| n > 0) {
        return refused("top_logprobs", logprobs);
    }
    let included = fields.list("include")?.unwrap_or_default();
    match included.iter().position(|what| *what == "message.output_text.logprobs") {
        Some(at) => refused(&format!("include[{at}]"), logprobs),
        None => Ok(()),
    }
}

/// `tools`, as chats describe them, and as this interface does. Those that are no functions are left out, with a warning.
fn tools(fields: &Fields<'_>, warnings: &mut Vec<String>) -> Result<(Vec<Value>, Vec<Value>), ApiError> {
    let (mut tools, mut described) = (Vec::new(), Vec::new());
    for (i, value) in fields.list("tools")?.unwrap_or_default().iter().enumerate() {
        let tool = Fields::at(value, format!("tools[{i}]"))?;
        tool.need_text("type")?;
        if let Some(warning) = no_function(&tool)? {
            warnings.push(warning);
            continue;
        }
        let mut function = Map::new();
        function.insert("name".to_owned(), tool.need_text("name")?.into());
        if let Some(description) = tool.text("description")? {
            function.insert("description".to_owned(), description.into());
        }
        if tool.object("parameters")?.is_some() {
            function.insert("parameters".to_owned(), value["parameters"].clone());
        }
        tools.push(json!({"type": "function", "function": function}));
        let mut value = value.clone();
        value["strict"] = value.get("strict").cloned().unwrap_or(Value::Bool(false));
        described.push(value);
    }
    Ok((tools, described))
}

fn tool_choice(fields: &Fields<'_>) -> Result<ToolChoice, ApiError> {
    match fields.get("tool_choice") {
        None => Ok(ToolChoice::Auto),
        Some(Value::String(word)) => choice_word(word),
        Some(object) => {
            let choice = Fields::at(object, "tool_choice")?;
            match function_choice(&choice)? {
                "allowed_tools" => allowed(&choice),
                _ => Ok(ToolChoice::Named(choice.need_text("name")?.to_owned())),
            }
        }
    }
}

fn format(fields: &Fields<'_>) -> Result<OutputFormat, ApiError> {
    let Some(text) = fields.object("text")? else { return Ok(OutputFormat::Text) };
    let Some(format) = text.object("format")? else { return Ok(OutputFormat::Text) };
    match format.need_text("type")? {
        "text" => Ok(OutputFormat::Text),
        "json_object" => Ok(OutputFormat::Grammar(Grammar::Schema(json!({"type": "object"})), "text")),
        "json_schema" => schema(&format, "schema"),
        other => {
            let text = format!("text.format.type is {other:?}; expected text, json_object or json_schema");
            Err(ApiError::field("text.format.type", text).code("invalid_value"))
        }
    }
}

/// What an item is.
#[derive(Clone, PartialEq)]
enum Kind {
    Message,
    Reasoning,
    Call { name: String, call_id: String },
}

/// An item that is being written.
struct Open {
    id: String,
    kind: Kind,
    text: String,
}

/// The answer in events.
struct Events {
    shell: Value,
    served: Rc<Served>,
    items: Vec<Value>,
    open: Option<Open>,
    sequence: usize,
    finish: Option<Reason>,
    /// For the next event.
    timings: Option<Timings>,
    /// Every piece has them.
    with_timings: bool,
}

impl Events {
    fn send(&mut self, mut event: Value, out: &mut Vec<u8>) {
        event["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        if let Some(timings) = self.timings.take() {
            event["timings"] = timings_json(&timings);
        }
        named_event(&event, out);
    }

    fn start(&mut self, kind: Kind, out: &mut Vec<u8>) {
        self.close(out);
        let prefix = match &kind {
            Kind::Message => "msg_",
            Kind::Reasoning => "rs_",
            Kind::Call { .. } => "fc_",
        };
        let open = Open { id: fresh_id(&self.served, prefix), kind, text: String::new() };
        let index = self.items.len();
        let item = open.item("in_progress", None);
        self.send(json!({"type": "response.output_item.added", "output_index": index, "item": item}), out);
        if let Some(part) = open.part() {
            let added = json!({"type": "response.content_part.added", "part": part});
            self.send(open.at(index, added), out);
        }
        self.open = Some(open);
    }

    fn text(&mut self, is_reasoning: bool, text: &str, out: &mut Vec<u8>) {
        let kind = if is_reasoning { Kind::Reasoning } else { Kind::Message };
        if self.open.as_ref().is_none_or(|open| open.kind != kind) {
            self.start(kind, out);
        }
        self.piece(text, out);
    }

    /// Adds to the item that is open.
    fn piece(&mut self, text: &str, out: &mut Vec<u8>) {
        let Some(open) = &mut self.open else { return };
        open.text.push_str(text);
        let event = match open.kind {
            Kind::Message => json!({"type": "response.output_text.delta", "delta": text, "logprobs": []}),
            Kind::Reasoning => json!({"type": "response.reasoning_text.delta", "delta": text}),
            Kind::Call { .. } => json!({"type": "response.function_call_arguments.delta", "delta": text}),
        };
        let event = open.at(self.items.len(), event);
        self.send(event, out);
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        let Some(open) = self.open.take() else { return };
        let index = self.items.len();
        let done = match &open.kind {
            Kind::Message => json!({"type": "response.output_text.done", "text": open.text, "logprobs": []}),
            Kind::Reasoning => json!({"type": "response.reasoning_text.done", "text": open.text}),
            Kind::Call { name, .. } => {
                json!({"type": "response.function_call_arguments.done", "name": name, "arguments": open.text})
            }
        };
        self.send(open.at(index, done), out);
        let part = open.part();
        if let Some(part) = &part {
            self.send(open.at(index, json!({"type": "response.content_part.done", "part": part})), out);
        }
        // Only the last item is closed when it is known why the answer ended.
        let status = if self.finish == Some(Reason::Length) { "incomplete" } else { "completed" };
        let item = open.item(status, part);
        self.send(json!({"type": "response.output_item.done", "output_index": index, "item": item}), out);
        self.items.push(item);
    }

    /// The whole response.
    fn finished(&self, usage: &Usage) -> Value {
        let mut response = self.shell.clone();
        let is_cut = self.finish == Some(Reason::Length);
        response["status"] = if is_cut { "incomplete" } else { "completed" }.into();
        if is_cut {
            response["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        response["output"] = self.items.clone().into();
        response["usage"] = json!({
            "input_tokens": usage.prompt,
            "input_tokens_details": {"cached_tokens": usage.cached},
            "output_tokens": usage.completion,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning},
            "total_tokens": usage.prompt + usage.completion,
        });
        response
    }
}

impl Open {
    /// The item, without its part as long as it is not done.
    fn item(&self, status: &str, part: Option<Value>) -> Value {
        let parts: Vec<Value> = part.into_iter().collect();
        match &self.kind {
            Kind::Message => {
                json!({"type": "message", "id": self.id, "role": "assistant", "content": parts, "status": status})
            }
            Kind::Reasoning => {
                json!({"type": "reasoning", "id": self.id, "summary": [], "content": parts, "status": status})
            }
            Kind::Call { name, call_id } => {
                json!({"type": "function_call", "id": self.id, "call_id": call_id, "name": name, "arguments": self.text,
                    "status": status})
            }
        }
    }

    /// Its one part; calls have none.
    fn part(&self) -> Option<Value> {
        match self.kind {
            Kind::Message => Some(json!({"type": "output_text", "text": self.text, "annotations": [], "logprobs": []})),
            Kind::Reasoning => Some(json!({"type": "reasoning_text", "text": self.text})),
            Kind::Call { .. } => None,
        }
    }

    /// An event with its place in the response.
    fn at(&self, index: usize, mut event: Value) -> Value {
        event["item_id"] = self.id.clone().into();
        event["output_index"] = index.into();
        if !matches!(self.kind, Kind::Call { .. }) {
            event["content_index"] = 0.into();
        }
        event
    }
}

impl EventWriter for Events {
    fn begin(&mut self, out: &mut Vec<u8>) {
        for kind in ["response.created", "response.in_progress"] {
            let event = json!({"type": kind, "response": self.shell});
            self.send(event, out);
        }
    }

    fn progress(&mut self, progress: &Progress, elapsed: Duration, out: &mut Vec<u8>) {
        let mut event = json!({"type": "response.in_progress", "response": self.shell});
        add_progress(&mut event, progress, elapsed);
        self.send(event, out);
    }

    fn batch(&mut self, batch: Batch, out: &mut Vec<u8>) {
        for delta in batch.deltas {
            self.timings = batch.timings.filter(|_| self.with_timings);
            match delta {
                Delta::Reasoning(text) => self.text(true, &text, out),
                Delta::Content(text) => self.text(false, &text, out),
                Delta::Call(name) => {
                    let call_id = fresh_id(&self.served, "call_");
                    self.start(Kind::Call { name, call_id }, out);
                }
                Delta::Arguments(piece) => self.piece(&piece, out),
            }
        }
        self.finish = batch.finish.or(self.finish.take());
    }

    fn end(&mut self, usage: &Usage, out: &mut Vec<u8>) {
        self.close(out);
        let response = self.finished(usage);
        self.timings = Some(usage.timings);
        let kind = if self.finish == Some(Reason::Length) { "response.incomplete" } else { "response.completed" };
        self.send(json!({"type": kind, "response": response}), out);
    }

    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        let mut response = self.shell.clone();
        response["status"] = "failed".into();
        response["error"] = json!({"code": "server_error", "message": error.message});
        self.send(json!({"type": "response.failed", "response": response}), out);
    }
}
