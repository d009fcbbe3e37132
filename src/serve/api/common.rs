//! Fields and parts of answers that several interfaces have.

use serde_json::{Map, Value, json};

use crate::chat::Role;
use crate::serve::error::ApiError;
use crate::serve::fields::{Fields, wrong};
use crate::serve::generate::Usage;
use crate::serve::job::{OutputFormat, ToolChoice};
use crate::serve::masks::Grammar;

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

/// The arguments of a call: an object, or JSON text of one.
pub fn arguments(function: &Fields<'_>, name: &str) -> Result<Value, ApiError> {
    match function.get(name) {
        None => Ok(Value::Object(Map::new())),
        Some(Value::String(text)) if text.trim().is_empty() => Ok(Value::Object(Map::new())),
        Some(Value::String(text)) => {
            let parsed = serde_json::from_str::<Value>(text).ok().filter(Value::is_object);
            let path = function.path(name);
            parsed.ok_or_else(|| ApiError::field(&path, format!("{path}: expected a JSON object in a string")))
        }
        Some(object @ Value::Object(_)) => Ok(object.clone()),
        Some(other) => Err(wrong(&function.path(name), other, "a string that holds a JSON object")),
    }
}

/// A content that is text, or parts that are; `kinds` are the types of text parts.
pub fn content(message: &Fields<'_>, name: &str, kinds: &[&str]) -> Result<String, ApiError> {
    let path = message.path(name);
    match message.get(name) {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Array(parts)) => {
            let mut out = String::new();
            for (i, part) in parts.iter().enumerate() {
                let part = Fields::at(part, format!("{path}[{i}]"))?;
                let kind = part.need_text("type")?;
                if !kinds.contains(&kind) {
                    let path = part.path("type");
                    let text = format!("{path} is {kind:?}; this server takes text only ({})", kinds.join(", "));
                    return Err(ApiError::field(path, text).code("unsupported_content"));
                }
                out.push_str(part.need_text("text")?);
            }
            Ok(out)
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
