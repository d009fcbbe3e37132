//! Tools for templates that have no place for them, in the form that most open models have seen.

use serde_json::Value;

use super::turn::Turn;
use crate::chat::{Message, Role};

/// Tells of the tools at the beginning, as the system.
pub fn tell_of_tools(tools: &[Value], turns: &mut Vec<Turn>) {
    let text = described(tools);
    match turns.first_mut().map(|turn| &mut turn.message) {
        Some(first) if matches!(first.role, Role::System | Role::Developer) && !first.content.is_empty() => {
            first.content = format!("{}\n\n{text}", first.content);
        }
        _ => turns.insert(0, Turn { at: "tools".to_owned(), message: Message::text(Role::System, text) }),
    }
}

/// What a model is told of tools.
fn described(tools: &[Value]) -> String {
    let mut text = String::from("You can call tools. These are there, each described by a line of JSON:\n");
    for tool in tools {
        text += &format!("{}\n", tool.get("function").unwrap_or(tool));
    }
    text + "\nTo call one, write JSON with its name and its arguments between these marks:\n\
            <tool_call>\n{\"name\": NAME, \"arguments\": {KEY: VALUE}}\n</tool_call>\n\
            For several calls write several of these. What a tool answers comes to you between <tool_response> and \
            </tool_response>. Where no tool is needed, answer without one."
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_tool_is_a_line() {
        let tool = |name: &str| json!({"type": "function", "function": {"name": name}});
        let text = described(&[tool("look"), tool("go")]);
        assert!(text.contains("\n{\"name\":\"look\"}\n{\"name\":\"go\"}\n") && text.contains("<tool_call>"), "{text}");
    }
}
