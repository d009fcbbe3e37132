//! Whether a prompt has what was said.

use serde_json::{Value, json};

use super::turn::{Part, Turn};
use crate::chat::Role;

/// A text that stands for a part of a message.
pub struct Mark {
    /// The message, by its number.
    pub turn: usize,
    /// The part.
    pub part: Part,
    /// The text.
    pub text: String,
}

/// The part that the text of a message is.
fn part(role: Role) -> Part {
    match role {
        Role::System | Role::Developer => Part::System,
        Role::User | Role::Assistant => Part::Text,
        Role::Tool => Part::Result,
    }
}

/// Texts that a message must leave in the prompt. Thoughts are not among them: templates leave those of earlier turns out,
/// as the models were trained.
fn pieces(turn: &Turn) -> Vec<(Part, &str)> {
    let message = &turn.message;
    let mut all = vec![(part(message.role), message.content.as_str())];
    for call in &message.tool_calls {
        all.push((Part::Call, &call.name));
        let texts = match &call.arguments {
            Value::Object(map) => map.values().filter_map(Value::as_str).collect(),
            other => other.as_str().into_iter().collect::<Vec<_>>(),
        };
        all.extend(texts.into_iter().map(|text| (Part::Call, text)));
    }
    all.retain(|(_, text)| !text.trim().is_empty());
    all
}

/// Without white space, which templates trim, add and change.
fn squeezed(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).collect()
}

/// Where `piece` ends in `text`, which is squeezed; templates write some parts as JSON.
fn find(text: &str, piece: &str) -> Option<usize> {
    let end = |piece: &str| text.find(piece).map(|at| at + piece.len());
    end(&squeezed(piece)).or_else(|| {
        let json = Value::from(piece).to_string();
        end(&squeezed(&json[1..json.len() - 1]))
    })
}

/// Whether all texts are there, one behind the other. Most prompts are like that, and then nothing is missing: what a text
/// shares with others is not taken for it.
pub fn all_in_order(turns: &[Turn], text: &str) -> bool {
    let text = squeezed(text);
    let mut from = 0;
    // Of several calls in a message some templates write the first, and of the others the names in front of the answers.
    turns.iter().all(|turn| turn.message.tool_calls.len() < 2)
        && turns.iter().flat_map(pieces).all(|(_, piece)| {
            let end = find(&text[from..], piece);
            from += end.unwrap_or(0);
            end.is_some()
        })
}

/// The first message with a text that is nowhere in the prompt.
pub fn left_out(turns: &[Turn], text: &str) -> Option<(usize, Part)> {
    let text = squeezed(text);
    turns.iter().enumerate().find_map(|(i, turn)| {
        let missing = pieces(turn).into_iter().find(|(_, piece)| find(&text, piece).is_none());
        missing.map(|(part, _)| (i, part))
    })
}

/// The same messages with marks in place of their texts: rendered, they tell which parts have a place, whatever a template
/// makes of the texts.
pub fn marked(turns: &[Turn]) -> (Vec<Turn>, Vec<Mark>) {
    let (mut marked, mut marks) = (turns.to_vec(), Vec::<Mark>::new());
    for (i, turn) in marked.iter_mut().enumerate() {
        let mut mark = |part| {
            let text = format!("zq{}qz", marks.len());
            marks.push(Mark { turn: i, part, text: text.clone() });
            text
        };
        let message = &mut turn.message;
        if !message.content.trim().is_empty() {
            message.content = mark(part(message.role));
        }
        for call in &mut message.tool_calls {
            call.name = mark(Part::Call);
            match call.arguments {
                Value::String(_) => call.arguments = mark(Part::Call).into(),
                _ => call.arguments = json!({"text": mark(Part::Call)}),
            }
        }
    }
    (marked, marks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::{Message, ToolCall};

    fn turn(role: Role, text: &str) -> Turn {
        Turn { at: String::new(), message: Message::text(role, text) }
    }

    #[test]
    fn what_is_there_in_order_is_found_as_templates_write_it() {
        let mut call = turn(Role::Assistant, "I look.\n");
        let arguments = json!({"path": "a\n\"b\"", "n": 3});
        call.message.tool_calls.push(ToolCall { id: "c".to_owned(), name: "read".to_owned(), arguments });
        let turns = [turn(Role::User, "  one\n\ntwo "), call, turn(Role::Tool, "ok"), turn(Role::User, " ")];
        let prompt = r#"<u>one two</u><a>I look.{"name": "read", "arguments": {"path": "a\n\"b\"", "n": 3}}</a><t>ok"#;
        assert!(all_in_order(&turns, prompt));
        assert!(!all_in_order(&turns, prompt.trim_end_matches("ok")));
        assert!(!all_in_order(&turns, &prompt.replace("\\\"b", "c")));
        assert_eq!(left_out(&turns, &prompt.replace("read", "")), Some((1, Part::Call)));
        assert_eq!(left_out(&turns, "onetwo"), Some((1, Part::Text)));
    }

    #[test]
    fn a_text_that_others_contain_is_not_taken_for_them() {
        let turns = [turn(Role::User, "look"), turn(Role::Tool, "ok"), turn(Role::User, "look again")];
        assert!(!all_in_order(&turns, "look look again"));
        assert!(all_in_order(&turns, "look ok look again"));
        let (marked, marks) = marked(&turns);
        assert_eq!((marked[1].message.content.as_str(), marks[1].part), ("zq1qz", Part::Result));
    }
}
