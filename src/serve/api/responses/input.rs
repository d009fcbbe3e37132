//! What `POST /v1/responses` is given, as messages: items of many kinds, of which some are what only another server knows.

use serde_json::{Map, Value};

use crate::chat::{Message, Role, ToolCall};
use crate::serve::api::common::{arguments, content, role};
use crate::serve::conversation::{Ending, Turn};
use crate::serve::error::ApiError;
use crate::serve::fields::{Fields, wrong};

/// `instructions` and `input`, on their way to messages.
pub struct Input<'w> {
    turns: Vec<Turn>,
    /// A thought whose message has not come yet, and where it stands.
    thought: Option<(String, String)>,
    /// What was read last is a call that another server has answered: nothing that the model would go on with.
    is_done: bool,
    warnings: &'w mut Vec<String>,
}

/// Types of parts that are text.
const TEXTS: [&str; 6] = ["input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text"];

impl Input<'_> {
    /// The messages, what the prompt has to end with where they do not say, and in `warnings` what is left out.
    ///
    /// # Errors
    /// 400 with the field.
    pub fn read(fields: &Fields<'_>, warnings: &mut Vec<String>) -> Result<(Vec<Turn>, Option<Ending>), ApiError> {
        let mut input = Input { turns: Vec::new(), thought: None, is_done: false, warnings };
        if let Some(text) = fields.text("instructions")?.filter(|text| !text.is_empty()) {
            input.push("instructions", Message::text(Role::System, text));
        }
        match fields.get("input").ok_or_else(|| fields.missing("input"))? {
            Value::String(text) => input.push("input", Message::text(Role::User, text.clone())),
            Value::Array(items) => {
                for (i, item) in items.iter().enumerate() {
                    let at = format!("input[{i}]");
                    input.take(&Fields::at(item, at.as_str())?, &at)?;
                }
            }
            other => return Err(wrong("input", other, "a string or an array of items")),
        }
        input.end_thought();
        Ok((input.turns, input.is_done.then_some(Ending::Opened)))
    }

    fn push(&mut self, at: &str, message: Message) {
        self.turns.push(Turn { at: at.to_owned(), message });
        self.is_done = false;
    }

    /// A thought that no message of the model follows is a message of its own.
    fn end_thought(&mut self) {
        if let Some((at, thought)) = self.thought.take() {
            let message = Message { reasoning_content: Some(thought), ..Message::text(Role::Assistant, "") };
            self.push(&at, message);
        }
    }

    fn take(&mut self, item: &Fields<'_>, at: &str) -> Result<(), ApiError> {
        match item.text("type")?.unwrap_or("message") {
            "message" => {
                let role = role(item)?;
                if role != Role::Assistant {
                    self.end_thought();
                }
                let reasoning_content = self.thought.take().map(|(_, thought)| thought);
                let text = content(item, "content", &TEXTS)?;
                self.push(at, Message { reasoning_content, ..Message::text(role, text) });
            }
            "reasoning" => {
                let text = content(item, "content", &TEXTS)?;
                let text = if text.is_empty() { content(item, "summary", &TEXTS)? } else { text };
                if !text.is_empty() {
                    self.end_thought();
                    self.thought = Some((at.to_owned(), text));
                }
            }
            kind if kind.ends_with("_call") => self.call(item, kind, at)?,
            kind if kind.ends_with("_output") => {
                let text = match item.get("output") {
                    Some(object @ Value::Object(_)) => object.to_string(),
                    _ => content(item, "output", &TEXTS)?,
                };
                self.end_thought();
                let tool_call_id = Some(item.need_text("call_id")?.to_owned());
                self.push(at, Message { tool_call_id, ..Message::text(Role::Tool, text) });
            }
            kind @ ("item_reference" | "compaction" | "compaction_summary" | "context_compaction") => {
                let why = "refers to what another server has stored or encrypted";
                self.warnings.push(format!("{at}: an item of type {kind:?} {why}; it was left out"));
            }
            other => {
                let path = item.path("type");
                let text = format!(
                    "{path} is {other:?}; this server takes messages, reasoning, calls of tools (.._call) and what they \
                     answered (.._output)"
                );
                return Err(ApiError::field(path, text).code("unsupported_content"));
            }
        }
        Ok(())
    }

    /// A call of any tool: what other tools than functions are called with has names of its own.
    fn call(&mut self, item: &Fields<'_>, kind: &str, at: &str) -> Result<(), ApiError> {
        let thought = self.thought.take().map(|(_, thought)| thought);
        let Some(id) = item.text("call_id")? else {
            // A tool of the server that was asked then: what it found is part of the item.
            let shown = item.iter().filter(|(name, _)| !matches!(name.as_str(), "id" | "encrypted_content"));
            let shown = Value::Object(shown.map(|(name, value)| (name.clone(), value.clone())).collect());
            let message = Message::text(Role::Assistant, shown.to_string());
            self.push(at, Message { reasoning_content: thought, ..message });
            self.is_done = true;
            return Ok(());
        };
        let mut called_with = Map::new();
        for name in ["input", "action", "operation"] {
            called_with.extend(item.get(name).map(|value| (name.to_owned(), value.clone())));
        }
        let arguments = if called_with.is_empty() { arguments(item, "arguments")? } else { called_with.into() };
        let name = item.text("name")?.unwrap_or_else(|| kind.trim_end_matches("_call")).to_owned();
        let call = ToolCall { id: id.to_owned(), name, arguments };
        // Calls belong to the message before them, if that is the model's.
        if !self.turns.last().is_some_and(|turn| turn.message.role == Role::Assistant) {
            self.push(at, Message::text(Role::Assistant, ""));
        }
        if let Some(Turn { message, .. }) = self.turns.last_mut() {
            message.tool_calls.push(call);
            if let Some(thought) = thought {
                let before = message.reasoning_content.take().map(|before| before + "\n").unwrap_or_default();
                message.reasoning_content = Some(before + &thought);
            }
        }
        Ok(())
    }
}
