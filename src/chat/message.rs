//! What a chat consists of, in the shape that templates expect.

use serde_json::Value;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Who says how to behave.
    System,
    /// The same, as newer models call it.
    Developer,
    /// Who asks.
    User,
    /// The model.
    Assistant,
    /// A tool that the model called.
    Tool,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::Developer => "developer",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }
}

/// One message of a chat.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What was said; may be empty where tools are called.
    pub content: String,
    /// What the model thought before it answered.
    pub reasoning_content: Option<String>,
    /// The tools that the model calls.
    pub tool_calls: Vec<ToolCall>,
    /// Of a tool's message: the call it answers.
    pub tool_call_id: Option<String>,
    /// Of a tool's message: the tool.
    pub name: Option<String>,
}

impl Message {
    /// A message that is only text.
    pub fn text(role: Role, content: impl Into<String>) -> Self {
        Message {
            role,
            content: content.into(),
            reasoning_content: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
            name: None,
        }
    }

    /// It as templates see it, without what it has not.
    pub(super) fn json(&self) -> Value {
        let text = |text: &Option<String>| text.as_deref().map(Value::from);
        let calls = || self.tool_calls.iter().map(ToolCall::json).collect();
        let fields = [
            ("role", Some(self.role.name().into())),
            ("content", Some(self.content.as_str().into())),
            // Templates read them under one of these names.
            ("reasoning_content", text(&self.reasoning_content)),
            ("reasoning", text(&self.reasoning_content)),
            ("thinking", text(&self.reasoning_content)),
            ("tool_calls", (!self.tool_calls.is_empty()).then(calls)),
            ("tool_call_id", text(&self.tool_call_id)),
            ("name", text(&self.name)),
        ];
        fields.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

/// A call of a tool by the model.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolCall {
    /// Names the call for its answer.
    pub id: String,
    /// The tool.
    pub name: String,
    /// Its arguments: an object, whose order templates keep. Text is what was cut off before it was one.
    pub arguments: Value,
}

impl ToolCall {
    /// As the OpenAI interface has it, but for the arguments, which templates want as an object and not as text.
    fn json(&self) -> Value {
        let function = [("name", self.name.as_str().into()), ("arguments", self.arguments.clone())];
        let function: Value = function.into_iter().collect();
        let fields = [("id", self.id.as_str().into()), ("type", "function".into()), ("function", function)];
        fields.into_iter().collect()
    }
}
