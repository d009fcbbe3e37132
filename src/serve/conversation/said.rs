//! Whether a prompt has what was said.

use std::borrow::Cow;

use serde_json::Value;

use super::turn::{Part, Turn};
use crate::chat::Role;

/// Stands for a part of a message.
pub struct Mark {
    /// The message, by its number.
    pub turn: usize,
    /// The part.
    pub part: Part,
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
fn pieces(turn: &Turn) -> Vec<(Part, Cow<'_, str>)> {
    let message = &turn.message;
    let mut all = vec![(part(message.role), Cow::from(&message.content))];
    for call in &message.tool_calls {
        all.push((Part::Call, Cow::from(&call.name)));
        pieces_of(&call.arguments, &mut all);
    }
    all.retain(|(_, text)| !text.trim().is_empty());
    all
}

/// Keys, texts and whole numbers of arguments; of the rest templates have forms of their own.
fn pieces_of<'a>(value: &'a Value, all: &mut Vec<(Part, Cow<'a, str>)>) {
    match value {
        Value::String(text) => all.push((Part::Call, text.into())),
        Value::Number(number) if !number.is_f64() => all.push((Part::Call, number.to_string().into())),
        Value::Array(list) => list.iter().for_each(|value| pieces_of(value, all)),
        Value::Object(map) => {
            for (key, value) in map {
                all.push((Part::Call, key.into()));
                pieces_of(value, all);
            }
        }
        _ => {}
    }
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
/// shares with others is not taken for it. Calls may be anywhere, and have names that are words of templates (`start`), so
/// that a prompt with one is never known to be whole from this.
pub fn all_in_order(turns: &[Turn], text: &str) -> bool {
    let text = squeezed(text);
    let mut from = 0;
    turns.iter().all(|turn| turn.message.tool_calls.is_empty())
        && turns.iter().flat_map(pieces).all(|(_, piece)| {
            let end = find(&text[from..], &piece);
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

/// Marks are this and their number in six digits, which are more than a request has values.
const MARK: &str = "739";
const MARK_DIGITS: usize = 6;

/// The same messages with marks in place of their texts: rendered, they tell which parts have a place, whatever a template
/// makes of the texts. The marks are in the order of their numbers.
pub fn marked(turns: &[Turn]) -> (Vec<Turn>, Vec<Mark>) {
    let (mut turns, mut marks) = (turns.to_vec(), Vec::<Mark>::new());
    for (i, turn) in turns.iter_mut().enumerate() {
        let mut mark = |part| {
            let number = format!("{MARK}{:0MARK_DIGITS$}", marks.len());
            marks.push(Mark { turn: i, part });
            number
        };
        let message = &mut turn.message;
        if !message.content.trim().is_empty() {
            message.content = word(&mark(part(message.role)));
        }
        for call in &mut message.tool_calls {
            call.name = word(&mark(Part::Call));
            mark_value(&mut call.arguments, &mut || mark(Part::Call));
        }
    }
    (turns, marks)
}

/// A mark where a text stands.
fn word(number: &str) -> String {
    format!("zq{number}qz")
}

/// Arguments of the same shape; truths and nothing stay as they are, under keys that are marks.
fn mark_value(value: &mut Value, mark: &mut impl FnMut() -> String) {
    match value {
        Value::String(text) if !text.trim().is_empty() => *text = word(&mark()),
        Value::Number(number) => *number = mark().parse::<u32>().unwrap_or_default().into(),
        Value::Array(list) => list.iter_mut().for_each(|value| mark_value(value, mark)),
        Value::Object(map) => {
            for (_, mut value) in std::mem::take(map) {
                let key = word(&mark());
                mark_value(&mut value, mark);
                map.insert(key, value);
            }
        }
        _ => {}
    }
}

/// The first of the marks that `text` does not have.
pub fn lost(marks: &[Mark], text: &str) -> Option<(usize, Part)> {
    let mut found = vec![false; marks.len()];
    for (at, _) in text.match_indices(MARK) {
        let digits = text.get(at + MARK.len()..at + MARK.len() + MARK_DIGITS);
        let number = digits.and_then(|digits| digits.parse::<usize>().ok());
        if let Some(found) = number.and_then(|number| found.get_mut(number)) {
            *found = true;
        }
    }
    let at = found.iter().position(|found| !found)?;
    Some((marks[at].turn, marks[at].part))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::{Message, ToolCall};
    use serde_json::json;

    fn turn(role: Role, text: &str) -> Turn {
        Turn { at: String::new(), message: Message::text(role, text) }
    }

    fn call(name: &str, arguments: Value) -> Turn {
        let mut turn = turn(Role::Assistant, "I look.\n");
        turn.message.tool_calls.push(ToolCall { id: "c".to_owned(), name: name.to_owned(), arguments });
        turn
    }

    #[test]
    fn what_is_there_in_order_is_found_as_templates_write_it() {
        let turns = [turn(Role::User, "  one\n\ntwo "), turn(Role::Tool, "ok \"a\""), turn(Role::User, " ")];
        let prompt = r#"<u>one two</u><t>ok \"a\""#;
        assert!(all_in_order(&turns, prompt));
        assert!(!all_in_order(&turns, prompt.trim_end_matches("\\\"")));
        assert!(!all_in_order(&turns, &prompt.replace("\\\"a", "c")));
        let calls = [turns[0].clone(), call("read", json!({"path": "a\n\"b\"", "n": [{"deep": 31}]}))];
        let prompt = r#"<u>one two</u><a>I look.{"name": "read", {"path": "a\n\"b\"", "n": [{"deep": 31}]}}</a>"#;
        assert!(!all_in_order(&calls, prompt), "a call may be anywhere");
        assert_eq!(left_out(&calls, prompt), None);
        for word in ["read", "path", "\\\"b", "deep", "31"] {
            assert_eq!(left_out(&calls, &prompt.replace(word, "")), Some((1, Part::Call)), "{word}");
        }
        assert_eq!(left_out(&calls, "onetwo"), Some((1, Part::Text)));
    }

    #[test]
    fn a_text_that_others_contain_is_not_taken_for_them() {
        let turns = [turn(Role::User, "look"), turn(Role::Tool, "ok"), turn(Role::User, "look again")];
        assert!(!all_in_order(&turns, "look look again"));
        assert!(all_in_order(&turns, "look ok look again"));
        let (marked, marks) = marked(&turns);
        assert_eq!((marked[1].message.content.as_str(), marks[1].part), ("zq739000001qz", Part::Result));
    }

    #[test]
    fn each_part_of_a_call_has_its_mark() {
        let arguments = json!({"port": 8080, "deep": {"on": true, "list": ["x", 1.5]}, "none": {}});
        let (marked, marks) = marked(&[call("start", arguments)]);
        let call = &marked[0].message.tool_calls[0];
        let text = format!("{} {} {}", marked[0].message.content, call.name, call.arguments);
        assert_eq!((lost(&marks, &text), marks.len()), (None, 10));
        for at in 0..marks.len() {
            let part = if at == 0 { Part::Text } else { Part::Call };
            assert_eq!(lost(&marks, &text.replace(&format!("739{at:06}"), "")), Some((0, part)), "{at}: {text}");
        }
        assert!(text.contains("\"zq739000009qz\":{}"), "{text}");
    }
}
