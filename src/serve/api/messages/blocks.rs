//! Messages of `POST /v1/messages`, which are blocks of many kinds.

use serde_json::Value;

use crate::chat::{Message, Role, ToolCall};
use crate::serve::api::common::{arguments, content};
use crate::serve::error::ApiError;
use crate::serve::fields::{Fields, wrong};

/// One message: results of tools become messages of their own, as templates have them, and all stays in its order.
///
/// # Errors
/// 400 with the field.
pub fn take_message(message: &Fields<'_>, out: &mut Vec<Message>) -> Result<(), ApiError> {
    let path = message.path("role");
    let role = match message.need_text("role")? {
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "system" => Role::System,
        other => {
            let text = format!("{path} is {other:?}; expected user, assistant or system");
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
    let mut part = Part::new(role);
    for (i, block) in blocks.iter().enumerate() {
        let block = Fields::at(block, format!("{path}[{i}]"))?;
        match block.need_text("type")? {
            "thinking" => part.thoughts.push(block.need_text("thinking")?),
            // Encrypted.
            "redacted_thinking" => {}
            "tool_use" | "server_tool_use" | "mcp_tool_use" => part.calls.push(ToolCall {
                id: block.text("id")?.unwrap_or_default().to_owned(),
                name: block.need_text("name")?.to_owned(),
                arguments: arguments(&block, "input")?,
            }),
            kind if kind.ends_with("tool_result") => {
                // Also tools that a server has run answer here, in the model's own message.
                std::mem::replace(&mut part, Part::new(role)).end(false, out);
                let mut text = result(&block)?;
                if block.is_set("is_error")? {
                    text.insert_str(0, "Error: ");
                }
                let tool_call_id = Some(block.need_text("tool_use_id")?.to_owned());
                out.push(Message { tool_call_id, ..Message::text(Role::Tool, text) });
            }
            _ => part.texts.push(text_of(&block)?),
        }
    }
    part.end(out.is_empty(), out);
    Ok(())
}

/// Blocks between results of tools.
struct Part<'a> {
    role: Role,
    texts: Vec<String>,
    thoughts: Vec<&'a str>,
    calls: Vec<ToolCall>,
}

impl Part<'_> {
    fn new(role: Role) -> Self {
        Part { role, texts: Vec::new(), thoughts: Vec::new(), calls: Vec::new() }
    }

    /// They are a message, if they say something, or are `all` there is.
    fn end(self, all: bool, out: &mut Vec<Message>) {
        let has_text = self.texts.iter().any(|text| all || !text.is_empty());
        if !has_text && self.thoughts.is_empty() && self.calls.is_empty() {
            return;
        }
        let mut message = Message::text(self.role, self.texts.join("\n"));
        message.reasoning_content = (!self.thoughts.is_empty()).then(|| self.thoughts.join("\n"));
        message.tool_calls = self.calls;
        out.push(message);
    }
}

/// What a tool answers: text, blocks of it, or the JSON of tools that servers have.
fn result(block: &Fields<'_>) -> Result<String, ApiError> {
    let path = block.path("content");
    match block.get("content") {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Array(blocks)) => {
            let texts = blocks.iter().enumerate().map(|(i, block)| {
                let block = Fields::at(block, format!("{path}[{i}]"))?;
                text_of(&block)
            });
            Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
        }
        Some(object @ Value::Object(_)) => Ok(object.to_string()),
        Some(other) => Err(wrong(&path, other, "a string or an array of blocks")),
    }
}

/// The text of a block that is nothing but text.
fn text_of(block: &Fields<'_>) -> Result<String, ApiError> {
    let kind = block.need_text("type")?;
    let titled = |text: String| -> Result<String, ApiError> {
        let heads = [block.text("title")?, block.text("context")?, block.text("source").ok().flatten()];
        let heads: Vec<&str> = heads.into_iter().flatten().collect();
        Ok(if heads.is_empty() { text } else { format!("{}\n{text}", heads.join("\n")) })
    };
    match kind {
        "text" => Ok(block.need_text("text")?.to_owned()),
        "compaction" => Ok(block.text("content")?.unwrap_or_default().to_owned()),
        "tool_reference" => Ok(block.need_text("tool_name")?.to_owned()),
        "search_result" => titled(content(block, "content", &["text"])?),
        "document" => {
            let source = block.object("source")?.ok_or_else(|| block.missing("source"))?;
            match source.need_text("type")? {
                "text" => titled(source.need_text("data")?.to_owned()),
                "content" => titled(content(&source, "content", &["text"])?),
                other => {
                    let path = source.path("type");
                    let text = format!("{path} is {other:?}; this server takes documents as text only (text, content)");
                    Err(ApiError::field(path, text).code("unsupported_content"))
                }
            }
        }
        // What tools of a server have found; encrypted for that server alone is a part of it.
        kind if kind.ends_with("_result") => {
            let known = block.iter().filter(|(name, _)| !name.starts_with("encrypted"));
            Ok(Value::Object(known.map(|(name, value)| (name.clone(), value.clone())).collect()).to_string())
        }
        other => {
            let path = block.path("type");
            let text = format!(
                "{path} is {other:?}; this server takes text, thinking, tool_use, tool_result, search_result and \
                 documents that are text"
            );
            Err(ApiError::field(path, text).code("unsupported_content"))
        }
    }
}
