//! Fields and parts of answers that several interfaces have.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::chat::Role;
use crate::engine::Timings;
use crate::serve::error::ApiError;
use crate::serve::fields::{Fields, wrong};
use crate::serve::generate::Usage;
use crate::serve::job::{Chat, OutputFormat, Thinking, ToolChoice};
use crate::serve::masks::Grammar;
use crate::serve::model::Served;
use crate::tokenizer::{Decoder, PromptForm};

/// `stream` and `stream_options.include_usage`.
pub fn streaming(fields: &Fields<'_>) -> Result<(bool, bool), ApiError> {
    let options = fields.object("stream_options")?;
    let include_usage = options.map(|options| options.is_set("include_usage")).transpose()?.unwrap_or(false);
    Ok((fields.is_set("stream")?, include_usage))
}

/// Tokens in and out.
pub fn usage_json(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    })
}

/// Where the time went: tokens of the prompt that were in the cache, those that were read, those that were generated.
pub fn timings_json(timings: &Timings) -> Value {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let ratio = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
    let read = timings.prompt_tokens.saturating_sub(timings.reused_tokens);
    let (prompt_ms, predicted_ms) = (ms(timings.prefill), ms(timings.decode));
    // The first token comes with the prompt.
    let (prompt, predicted) = (f64::from(read), f64::from(timings.generated_tokens.saturating_sub(1)));
    json!({
        "cache_n": timings.reused_tokens,
        "prompt_n": read,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": ratio(prompt_ms, prompt),
        "prompt_per_second": ratio(prompt * 1e3, prompt_ms),
        "predicted_n": timings.generated_tokens,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": ratio(predicted_ms, predicted),
        "predicted_per_second": ratio(predicted * 1e3, predicted_ms),
    })
}

/// The answer to how many tokens a chat has.
pub async fn counted(chat: Chat, served: &Served) -> Result<Value, ApiError> {
    let text = chat.rendered(served).await?.text;
    let n_tokens = served.prompt_tokens(text, PromptForm::Chat).await?.len();
    Ok(json!({"object": "response.input_tokens", "input_tokens": n_tokens}))
}

/// The text of tokens, control tokens included.
pub fn whole_text(served: &Served, tokens: &[u32]) -> String {
    let mut decoder = Decoder::whole(served.tokenizer, true);
    let mut text = String::new();
    tokens.iter().for_each(|&id| decoder.push(served.tokenizer, id, &mut text));
    decoder.finish(&mut text);
    text
}

/// The role of a message.
pub fn role(message: &Fields<'_>) -> Result<Role, ApiError> {
    match message.need_text("role")? {
        "system" => Ok(Role::System),
        "developer" => Ok(Role::Developer),
        "user" => Ok(Role::User),
        "assistant" => Ok(Role::Assistant),
        "tool" | "function" => Ok(Role::Tool),
        other => {
            let path = message.path("role");
            let text = format!("{path} is {other:?}; expected system, developer, user, assistant or tool");
            Err(ApiError::field(path, text).code("invalid_value"))
        }
    }
}

/// The arguments of a call: an object, or JSON text of one. Text that is none was cut off by a limit, and stays as it is.
pub fn arguments(function: &Fields<'_>, name: &str) -> Result<Value, ApiError> {
    match function.get(name) {
        None => Ok(Value::Object(Map::new())),
        Some(Value::String(text)) if text.trim().is_empty() => Ok(Value::Object(Map::new())),
        Some(Value::String(text)) => {
            let parsed = serde_json::from_str::<Value>(text).ok().filter(Value::is_object);
            Ok(parsed.unwrap_or_else(|| text.as_str().into()))
        }
        Some(object @ Value::Object(_)) => Ok(object.clone()),
        Some(other) => Err(wrong(&function.path(name), other, "a string that holds a JSON object")),
    }
}

/// A content that is text, or parts that are, joined by newlines; `kinds` are the types of text parts.
pub fn content(message: &Fields<'_>, name: &str, kinds: &[&str]) -> Result<String, ApiError> {
    let path = message.path(name);
    match message.get(name) {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Array(parts)) => {
            let mut texts = Vec::new();
            for (i, part) in parts.iter().enumerate() {
                let part = Fields::at(part, format!("{path}[{i}]"))?;
                let kind = part.need_text("type")?;
                if !kinds.contains(&kind) {
                    let path = part.path("type");
                    let text = format!("{path} is {kind:?}; this server takes text only ({})", kinds.join(", "));
                    return Err(ApiError::field(path, text).code("unsupported_content"));
                }
                texts.push(part.need_text(if kind == "refusal" { "refusal" } else { "text" })?);
            }
            Ok(texts.join("\n"))
        }
        Some(other) => Err(wrong(&path, other, "a string or an array of parts")),
    }
}

/// `auto`, `none` or `required`.
pub fn choice_word(word: &str) -> Result<ToolChoice, ApiError> {
    match word {
        "auto" => Ok(ToolChoice::Auto),
        "none" => Ok(ToolChoice::None),
        "required" => Ok(ToolChoice::Required),
        other => {
            let text = format!("tool_choice is {other:?}; expected auto, none, required, or an object with a function");
            Err(ApiError::field("tool_choice", text).code("invalid_value"))
        }
    }
}

/// `allowed_tools`: which of the tools may be called; all of them stay in the prompt.
pub fn allowed(choice: &Fields<'_>) -> Result<ToolChoice, ApiError> {
    let path = choice.path("mode");
    match choice.text("mode")?.unwrap_or("auto") {
        "auto" => {}
        other => {
            let text = format!("{path} is {other:?}; expected auto: name one tool to force its call");
            return Err(ApiError::field(path, text).code("unsupported_value"));
        }
    }
    let tools = choice.list("tools")?.ok_or_else(|| choice.missing("tools"))?;
    let names = tools.iter().enumerate().map(|(i, tool)| {
        let tool = Fields::at(tool, format!("{}[{i}]", choice.path("tools")))?;
        let function = tool.object("function")?.unwrap_or(tool);
        Ok(function.text("name")?.unwrap_or_default().to_owned())
    });
    Ok(ToolChoice::Allowed(names.collect::<Result<_, ApiError>>()?))
}

/// The type of a `tool_choice` that is an object: `function` or `allowed_tools`.
pub fn function_choice<'a>(choice: &Fields<'a>) -> Result<&'a str, ApiError> {
    match choice.text("type")?.unwrap_or("function") {
        kind @ ("function" | "allowed_tools") => Ok(kind),
        other => {
            let path = choice.path("type");
            let text = format!(
                "{path} is {other:?}; expected function or allowed_tools: tools that are no functions are not offered to the \
                 model"
            );
            Err(ApiError::field(path, text).code("unsupported_value"))
        }
    }
}

/// What is said of a tool that is no function, which the model is not offered.
pub fn no_function(tool: &Fields<'_>) -> Result<Option<String>, ApiError> {
    let Some(kind) = tool.text("type")?.filter(|kind| *kind != "function") else { return Ok(None) };
    let inner = tool.get(kind).and_then(|inner| inner.get("name")).and_then(Value::as_str);
    let name = tool.text("name")?.or(inner).map(|name| format!(" ({name})")).unwrap_or_default();
    let path = tool.path("type");
    Ok(Some(format!("{path} is {kind:?}{name}, no function: the model is not offered it")))
}

/// A JSON schema in the field `name`.
pub fn schema(fields: &Fields<'_>, name: &str) -> Result<OutputFormat, ApiError> {
    let path = fields.path(name);
    match fields.get(name) {
        Some(schema @ (Value::Object(_) | Value::Bool(_))) => {
            Ok(OutputFormat::Grammar(Grammar::Schema(schema.clone()), "response_format"))
        }
        Some(other) => Err(wrong(&path, other, "a JSON schema")),
        None => Err(fields.missing(name)),
    }
}

/// How the model is to think, under all names that clients have for it.
pub fn thinking(fields: &Fields<'_>) -> Result<Thinking, ApiError> {
    let mut found = Thinking { effort: effort(fields, "reasoning_effort")?, ..Thinking::default() };
    for name in ["thinking_budget_tokens", "thinking_budget", "reasoning_budget"] {
        tokens(fields, name, &mut found)?;
    }
    for (object, word, limit) in
        [("reasoning", "effort", "max_tokens"), ("output_config", "effort", ""), ("thinking", "", "budget_tokens")]
    {
        let Some(object) = fields.object(object)? else { continue };
        let word = effort(&object, word)?;
        found.effort = found.effort.or(word);
        tokens(&object, limit, &mut found)?;
    }
    if let Some(thinking) = fields.object("thinking")? {
        found.enabled = Some(match thinking.need_text("type")? {
            "disabled" => false,
            "enabled" | "adaptive" => true,
            other => {
                let path = thinking.path("type");
                let text = format!("{path} is {other:?}; expected enabled, adaptive or disabled");
                return Err(ApiError::field(path, text).code("invalid_value"));
            }
        });
    }
    Ok(found)
}

/// How much a model is to think, in the words that clients and templates have for it.
pub fn effort(fields: &Fields<'_>, name: &str) -> Result<Option<String>, ApiError> {
    let Some(word) = fields.text(name)? else { return Ok(None) };
    if ["none", "minimal", "low", "medium", "high", "xhigh", "max"].contains(&word) {
        return Ok(Some(word.to_owned()));
    }
    let path = fields.path(name);
    let text = format!(
        "{path} is {word:?}; expected none, minimal, low, medium, high, xhigh or max (other words of a template: \
         chat_template_kwargs)"
    );
    Err(ApiError::field(path, text).code("invalid_value"))
}

/// A budget of tokens, -1 for none.
fn tokens(fields: &Fields<'_>, name: &str, found: &mut Thinking) -> Result<(), ApiError> {
    let tokens = fields.integer(name, -1, i64::from(u32::MAX))?;
    found.tokens = found.tokens.or(tokens.and_then(|tokens| usize::try_from(tokens).ok()));
    Ok(())
}

/// Says in an answer what of the request was left out.
pub fn warn(answer: &mut Value, warnings: Vec<String>) {
    if !warnings.is_empty() {
        answer["warnings"] = warnings.into();
    }
}
