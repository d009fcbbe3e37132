//! `POST /v1/chat/completions`.

use std::rc::Rc;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::super::app::App;
use super::super::conversation::{Ending, Turn};
use super::super::error::ApiError;
use super::super::fields::Fields;
use super::super::generate::{Batch, Generation, Progress, Reason, TokenInfo, Usage};
use super::super::job::{Chat, Interface, Options, ToolChoice};
use super::super::model::Served;
use super::super::output::{Call, Delta};
use super::super::trace::Trace;
use super::common::{
    allowed, arguments, choice_word, content, counted, function_choice, no_function, role, streaming, thinking,
    timings_json, usage_json, warn, whole_text,
};
use super::format::format;
use super::{Answer, ChunkHead, EventWriter, FINGERPRINT, collect, event, fresh_id, logprobs_json, stream};
use crate::chat::{Message, Role, ToolCall};

/// Answers a request.
///
/// # Errors
/// What is wrong with it, or with the answer.
pub async fn answer(app: &App, served: &Rc<Served>, body: &Value, trace: Rc<Trace>) -> Result<Answer, ApiError> {
    let fields = Fields::of(body)?;
    let options = Options::read(&fields, served, Interface::Chat)?;
    let (chat, warnings) = chat(&fields)?;
    let (is_stream, include_usage) = streaming(&fields)?;
    let (n, with_timings) = (options.n, options.wants_timings);
    let job = chat.into_job(served, options).await?;
    let verbose = fields.is_set("verbose")?.then(|| whole_text(served, &job.prompt));
    let generation = Generation::start(served, vec![job], app.config.limits.first_token_time).await?;
    let chunk = ChunkHead::new(served, "chatcmpl-", "chat.completion.chunk", include_usage);
    let with_tokens = fields.is_set("logprobs")?;
    let mut form = Chunks { chunk, n, n_calls: vec![0; n], with_tokens, with_timings, warnings };
    if is_stream {
        return Ok(stream(form, generation, trace));
    }
    let (answers, usage) = collect(generation, n, &trace).await?;
    let choices: Vec<Value> = answers
        .into_iter()
        .enumerate()
        .map(|(index, answer)| {
            let mut message = Map::new();
            message.insert("role".to_owned(), "assistant".into());
            let no_content = answer.content.is_empty() && !answer.calls.is_empty();
            message.insert("content".to_owned(), if no_content { Value::Null } else { answer.content.into() });
            if !answer.reasoning.is_empty() {
                message.insert("reasoning_content".to_owned(), answer.reasoning.into());
            }
            message.insert("refusal".to_owned(), Value::Null);
            if !answer.calls.is_empty() {
                let calls = answer.calls.iter().map(|call| call_json(call, &fresh_id(served, "call_")));
                message.insert("tool_calls".to_owned(), calls.collect());
            }
            let logprobs = form.with_tokens.then(|| tokens_json(served, &answer.tokens));
            json!({"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason(answer.finish.as_ref())})
        })
        .collect();
    let mut document = json!({
        "id": form.chunk.id,
        "object": "chat.completion",
        "created": form.chunk.created,
        "model": served.name,
        "choices": choices,
        "usage": usage_json(&usage),
        "timings": timings_json(&usage.timings),
        "system_fingerprint": FINGERPRINT,
    });
    if let Some(prompt) = verbose {
        document["__verbose"] = json!({"prompt": prompt});
    }
    warn(&mut document, std::mem::take(&mut form.warnings));
    Ok(Answer::Document(document))
}

/// What is to be answered, and what of it is left out.
fn chat(fields: &Fields<'_>) -> Result<(Chat, Vec<String>), ApiError> {
    let (turns, (tools, warnings)) = (messages(fields)?, tools(fields)?);
    let chat = Chat {
        ending: ending(fields, &turns)?,
        turns,
        field: "messages",
        tools,
        choice: tool_choice(fields)?,
        parallel_calls: fields.boolean("parallel_tool_calls")?,
        format: format(fields)?,
        thinking: thinking(fields)?,
        variables: variables(fields)?,
    };
    Ok((chat, warnings))
}

/// `POST /apply-template`: the prompt of a chat.
///
/// # Errors
/// What is wrong with the request.
pub async fn apply_template(served: &Served, body: &Value) -> Result<Value, ApiError> {
    let rendered = chat(&Fields::of(body)?)?.0.rendered(served).await?;
    Ok(json!({"prompt": rendered.text}))
}

/// `POST /v1/chat/completions/input_tokens`: how many tokens a chat has.
///
/// # Errors
/// What is wrong with the request.
pub async fn count_tokens(served: &Served, body: &Value) -> Result<Value, ApiError> {
    counted(chat(&Fields::of(body)?)?.0, served).await
}

fn reason(reason: Option<&Reason>) -> Option<&'static str> {
    reason.map(|reason| match reason {
        Reason::Stop | Reason::StopText(_) => "stop",
        Reason::Length => "length",
        Reason::Calls => "tool_calls",
    })
}

fn call_json(call: &Call, id: &str) -> Value {
    json!({"id": id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}})
}

/// Logprobs as chats have them.
fn tokens_json(served: &Served, tokens: &[TokenInfo]) -> Value {
    json!({"content": logprobs_json(served, tokens), "refusal": null})
}

/// `messages`, as templates want them.
fn messages(fields: &Fields<'_>) -> Result<Vec<Turn>, ApiError> {
    let list = fields.list("messages")?.ok_or_else(|| fields.missing("messages"))?;
    list.iter()
        .enumerate()
        .map(|(i, message)| {
            let at = format!("messages[{i}]");
            let message = Fields::at(message, at.as_str())?;
            let mut thought = None;
            for name in ["reasoning_content", "reasoning", "thinking"] {
                thought = thought.or(message.text(name)?);
            }
            if message.get("audio").is_some() {
                let path = message.path("audio");
                let text = format!(
                    "{path}: this server takes text only, and has no audio stored; send its transcript as content"
                );
                return Err(ApiError::field(path, text).code("unsupported_content"));
            }
            let mut said = content(&message, "content", &["text", "refusal"])?;
            if said.is_empty() {
                // Where a model has refused, this is what it said.
                said.push_str(message.text("refusal")?.unwrap_or_default());
            }
            let message = Message {
                role: role(&message)?,
                content: said,
                reasoning_content: thought.filter(|thought| !thought.is_empty()).map(str::to_owned),
                tool_calls: calls(&message)?,
                tool_call_id: message.text("tool_call_id")?.map(str::to_owned),
                name: message.text("name")?.map(str::to_owned),
            };
            Ok(Turn { at, message })
        })
        .collect()
}

/// `tool_calls` of a message, and the one of `function_call` as it once was.
fn calls(message: &Fields<'_>) -> Result<Vec<ToolCall>, ApiError> {
    let mut calls = Vec::new();
    for (i, call) in message.list("tool_calls")?.unwrap_or_default().iter().enumerate() {
        let call = Fields::at(call, format!("{}[{i}]", message.path("tool_calls")))?;
        let (name, arguments) = match call.text("type")? {
            Some("custom") => {
                let custom = call.object("custom")?.ok_or_else(|| call.missing("custom"))?;
                (custom.need_text("name")?, json!({"input": custom.text("input")?.unwrap_or_default()}))
            }
            _ => {
                let function = call.object("function")?.ok_or_else(|| call.missing("function"))?;
                (function.need_text("name")?, arguments(&function, "arguments")?)
            }
        };
        calls.push(ToolCall { id: call.text("id")?.unwrap_or_default().to_owned(), name: name.to_owned(), arguments });
    }
    if let Some(function) = message.object("function_call")? {
        let name = function.need_text("name")?.to_owned();
        calls.push(ToolCall { id: String::new(), name, arguments: arguments(&function, "arguments")? });
    }
    Ok(calls)
}

/// `continue_final_message` and `add_generation_prompt`.
fn ending(fields: &Fields<'_>, turns: &[Turn]) -> Result<Option<Ending>, ApiError> {
    let is_answered = turns.last().is_some_and(|turn| turn.message.role == Role::Assistant);
    let flags = (fields.boolean("continue_final_message")?, fields.boolean("add_generation_prompt")?);
    Ok(match flags {
        (Some(true), Some(true)) => {
            let text =
                "continue_final_message: the last message goes on, or add_generation_prompt opens a new one; not both";
            return Err(ApiError::field("continue_final_message", text).code("invalid_value"));
        }
        (Some(true), _) => Some(Ending::Continued),
        (_, Some(true)) | (Some(false), None) => Some(Ending::Opened),
        (Some(false), Some(false)) => Some(Ending::Bare),
        (None, Some(false)) if !is_answered => Some(Ending::Bare),
        // The last message goes on if it can.
        (None, Some(false)) | (None, None) => None,
    })
}

/// `tools`, and what is said of those that are no functions, which are left out.
fn tools(fields: &Fields<'_>) -> Result<(Vec<Value>, Vec<String>), ApiError> {
    let (mut tools, mut warnings) = (Vec::new(), Vec::new());
    for (i, tool) in fields.list("tools")?.unwrap_or_default().iter().enumerate() {
        match no_function(&Fields::at(tool, format!("tools[{i}]"))?)? {
            Some(warning) => warnings.push(warning),
            None => tools.push(tool.clone()),
        }
    }
    Ok((tools, warnings))
}

fn tool_choice(fields: &Fields<'_>) -> Result<ToolChoice, ApiError> {
    match fields.get("tool_choice") {
        None => Ok(ToolChoice::Auto),
        Some(Value::String(word)) => choice_word(word),
        Some(object) => {
            let choice = Fields::at(object, "tool_choice")?;
            if function_choice(&choice)? == "allowed_tools" {
                // Some leave the layer between out.
                return allowed(&choice.object("allowed_tools")?.unwrap_or(choice));
            }
            let function = choice.object("function")?.ok_or_else(|| choice.missing("function"))?;
            Ok(ToolChoice::Named(function.need_text("name")?.to_owned()))
        }
    }
}

/// Variables for the template: `chat_template_kwargs`.
fn variables(fields: &Fields<'_>) -> Result<Vec<(String, Value)>, ApiError> {
    let further = fields.object("chat_template_kwargs")?;
    let pairs = further.iter().flat_map(Fields::iter);
    Ok(pairs.map(|(name, value)| (name.clone(), value.clone())).collect())
}

/// The answer in events.
struct Chunks {
    chunk: ChunkHead,
    n: usize,
    n_calls: Vec<usize>,
    with_tokens: bool,
    with_timings: bool,
    /// For the first event.
    warnings: Vec<String>,
}

impl Chunks {
    fn delta(&self, index: usize, delta: Value, tokens: Option<Value>, finish: Option<&Reason>, out: &mut Vec<u8>) {
        let choice = json!([{"index": index, "delta": delta, "logprobs": tokens, "finish_reason": reason(finish)}]);
        self.chunk.send(&choice, None, out);
    }
}

impl EventWriter for Chunks {
    fn begin(&mut self, out: &mut Vec<u8>) {
        if !self.warnings.is_empty() {
            let delta = json!({"role": "assistant", "content": ""});
            let mut chunk =
                self.chunk.chunk(&json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": null}]));
            warn(&mut chunk, std::mem::take(&mut self.warnings));
            event(&chunk, out);
        }
        for index in 0..self.n {
            self.delta(index, json!({"role": "assistant", "content": ""}), None, None, out);
        }
    }

    fn batch(&mut self, batch: Batch, out: &mut Vec<u8>) {
        let served = &self.chunk.served;
        let mut tokens = (self.with_tokens && !batch.tokens.is_empty()).then(|| tokens_json(served, &batch.tokens));
        for delta in batch.deltas {
            self.chunk.took(batch.timings.filter(|_| self.with_timings));
            let n_calls = &mut self.n_calls[batch.index];
            let delta = match delta {
                Delta::Reasoning(text) => json!({"reasoning_content": text}),
                Delta::Content(text) => json!({"content": text}),
                Delta::Call(name) => {
                    let call = Call { name, arguments: String::new() };
                    let mut call = call_json(&call, &fresh_id(&self.chunk.served, "call_"));
                    call["index"] = (*n_calls).into();
                    *n_calls += 1;
                    json!({"tool_calls": [call]})
                }
                Delta::Arguments(piece) => {
                    json!({"tool_calls": [{"index": n_calls.saturating_sub(1), "function": {"arguments": piece}}]})
                }
            };
            self.delta(batch.index, delta, tokens.take(), None, out);
        }
        self.chunk.took(batch.timings.filter(|_| batch.finish.is_some()));
        if tokens.is_some() || batch.finish.is_some() {
            self.delta(batch.index, json!({}), tokens, batch.finish.as_ref(), out);
        }
    }

    fn progress(&mut self, progress: &Progress, elapsed: Duration, out: &mut Vec<u8>) {
        let delta = json!({"role": "assistant", "content": null});
        let choice = json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": null}]);
        self.chunk.send_progress(&choice, progress, elapsed, out);
    }

    fn end(&mut self, usage: &Usage, out: &mut Vec<u8>) {
        self.chunk.end(usage, out);
    }

    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        event(&error.openai(), out);
    }
}
