//! Tools for templates that have no place for them: described in a system message, and calls and their answers as text, in
//! the form that most open models have seen.

use serde_json::{Value as Json, json};

use super::turn::Turn;
use crate::chat::{Message, Role};

/// The chat with tools, calls and what tools answered as text. Without `has_system` the template knows no system message,
/// and the first of the user says it.
pub fn tools_as_text(turns: Vec<Turn>, tools: &[Json], has_system: bool) -> Vec<Turn> {
    let mut out: Vec<Turn> = Vec::with_capacity(turns.len() + 1);
    for mut turn in turns {
        let message = &mut turn.message;
        let calls = std::mem::take(&mut message.tool_calls);
        for call in &calls {
            let call = json!({"name": call.name, "arguments": call.arguments});
            append(&mut message.content, &format!("<tool_call>\n{call}\n</tool_call>"));
        }
        if message.role == Role::Tool {
            message.role = Role::User;
            message.content = format!("<tool_response>\n{}\n</tool_response>", message.content);
            (message.tool_call_id, message.name) = (None, None);
        }
        // Several answers of tools, and what the user says to them, are one message: many templates want turns.
        match out.last_mut().map(|last| &mut last.message) {
            Some(last)
                if last.role == Role::User && message.role == Role::User && (is_answer(last) || is_answer(message)) =>
            {
                append(&mut last.content, &message.content);
            }
            _ => out.push(turn),
        }
    }
    if !tools.is_empty() {
        describe(tools, has_system, &mut out);
    }
    out
}

fn is_answer(message: &Message) -> bool {
    message.content.starts_with("<tool_response>")
}

fn append(text: &mut String, more: &str) {
    if !text.is_empty() {
        text.push('\n');
    }
    text.push_str(more);
}

/// Tells of the tools in the first message that may say so.
fn describe(tools: &[Json], has_system: bool, turns: &mut Vec<Turn>) {
    let mut text = String::from("You can call tools. These are there, each described by a line of JSON:\n");
    for tool in tools {
        text += &format!("{}\n", tool.get("function").unwrap_or(tool));
    }
    text += "\nTo call one, write JSON with its name and its arguments between these marks:\n\
             <tool_call>\n{\"name\": NAME, \"arguments\": {KEY: VALUE}}\n</tool_call>\n\
             For several calls write several of these. What a tool answers comes to you between <tool_response> and \
             </tool_response>. Where no tool is needed, answer without one.";
    let host = if has_system { Role::System } else { Role::User };
    let system = [Role::System, Role::Developer];
    match turns.first_mut().map(|turn| &mut turn.message) {
        Some(first) if first.role == host || (has_system && system.contains(&first.role)) => {
            first.content = if first.content.is_empty() { text } else { format!("{}\n\n{text}", first.content) };
        }
        _ => turns.insert(0, Turn { at: "tools".to_owned(), message: Message::text(host, text) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::ToolCall;

    fn tools_as_text(messages: &[Message], tools: &[Json], has_system: bool) -> Vec<Message> {
        let turns = messages.iter().map(|message| Turn { at: String::new(), message: message.clone() });
        super::tools_as_text(turns.collect(), tools, has_system).into_iter().map(|turn| turn.message).collect()
    }

    fn call(name: &str) -> Message {
        let call = ToolCall { id: "1".to_owned(), name: name.to_owned(), arguments: json!({"x": 1}) };
        Message { tool_calls: vec![call], ..Message::text(Role::Assistant, "I look.") }
    }

    fn answer(text: &str) -> Message {
        Message { tool_call_id: Some("1".to_owned()), ..Message::text(Role::Tool, text) }
    }

    #[test]
    fn all_of_a_chat_with_tools_is_text() {
        let tools = [json!({"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}})];
        let chat = [
            Message::text(Role::User, "Hi"),
            call("look"),
            answer("one"),
            answer("two"),
            Message::text(Role::User, "And?"),
        ];
        let out = tools_as_text(&chat, &tools, true);
        let roles: Vec<Role> = out.iter().map(|message| message.role).collect();
        assert_eq!(roles, [Role::System, Role::User, Role::Assistant, Role::User]);
        assert!(
            out[0].content.contains("{\"name\":\"look\",\"parameters\":{\"type\":\"object\"}}"),
            "{}",
            out[0].content
        );
        let said = "I look.\n<tool_call>\n{\"name\":\"look\",\"arguments\":{\"x\":1}}\n</tool_call>";
        assert_eq!((out[2].content.as_str(), out[2].tool_calls.len()), (said, 0));
        let answers = "<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response>\nAnd?";
        assert_eq!((out[3].content.as_str(), &out[3].tool_call_id), (answers, &None));
    }

    #[test]
    fn tools_are_told_of_where_the_template_lets_them() {
        let tools = [json!({"type": "function", "function": {"name": "look"}})];
        let chat = [Message::text(Role::System, "Be brief."), Message::text(Role::User, "Hi")];
        let out = tools_as_text(&chat, &tools, true);
        assert!(out.len() == 2 && out[0].content.starts_with("Be brief.\n\nYou can call tools."), "{out:?}");
        let out = tools_as_text(&chat[1..], &tools, false);
        assert!(out.len() == 1 && out[0].role == Role::User && out[0].content.starts_with("Hi\n\nYou can"), "{out:?}");
        let chat = [Message::text(Role::User, "a"), Message::text(Role::User, "b")];
        assert_eq!(tools_as_text(&chat, &[], true), chat);
    }
}
