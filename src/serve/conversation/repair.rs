//! Other forms for what a template leaves out or refuses, the ones that change least first.

use serde_json::{Map, Value, json};

use super::turn::{Part, Turn, Unrendered};
use crate::chat::{Message, Role};

/// Another form for some messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Thoughts before a call are part of the text beside it.
    ThoughtsInContent,
    /// Arguments that are no JSON stand in an object.
    ArgumentsInObjects,
    /// System messages at the beginning are one.
    SystemsJoined,
    /// Later ones are part of what the user says there, so that prompts keep their beginning.
    LaterSystemsAsUser,
    /// A message has one call, which its answer follows.
    OneCallEach,
    /// Text beside calls is a message before them.
    TextBeforeCalls,
    /// Messages of one role that follow each other are one.
    TurnsJoined,
    /// The first system message is part of what the user says first.
    SystemAsUser,
    /// Arguments are JSON text, which some templates add to other text.
    ArgumentsAsText,
    /// Calls and answers of tools are text.
    CallsAsText,
}

impl Repair {
    /// All of them, in the order in which they are tried.
    pub const ALL: [Repair; 10] = [
        Repair::ThoughtsInContent,
        Repair::ArgumentsInObjects,
        Repair::SystemsJoined,
        Repair::LaterSystemsAsUser,
        Repair::OneCallEach,
        Repair::TextBeforeCalls,
        Repair::TurnsJoined,
        Repair::SystemAsUser,
        Repair::ArgumentsAsText,
        Repair::CallsAsText,
    ];

    /// Whether it may help against this. Why a template refuses a chat is not known, so anything may.
    pub fn helps(self, failure: &Unrendered) -> bool {
        let part = match failure {
            Unrendered::Template(e) => return e.is_refusal() && self != Repair::TextBeforeCalls,
            Unrendered::LeftOut(_, part) => *part,
            Unrendered::NotContinued(_) => return self == Repair::TurnsJoined,
        };
        match self {
            Repair::ThoughtsInContent | Repair::ArgumentsInObjects | Repair::ArgumentsAsText => false,
            Repair::SystemsJoined | Repair::LaterSystemsAsUser | Repair::SystemAsUser => part == Part::System,
            Repair::OneCallEach => matches!(part, Part::Call | Part::Result),
            Repair::TextBeforeCalls | Repair::TurnsJoined => part == Part::Text,
            Repair::CallsAsText => part != Part::System,
        }
    }

    /// Changes the messages; false if there is nothing to change.
    pub fn apply(self, turns: &mut Vec<Turn>) -> bool {
        let before = turns.clone();
        let n_first = turns.iter().take_while(|turn| is_system(turn)).count();
        match self {
            Repair::ThoughtsInContent => turns.iter_mut().for_each(|turn| thought_in_content(&mut turn.message)),
            Repair::ArgumentsInObjects => {
                let calls = turns.iter_mut().flat_map(|turn| &mut turn.message.tool_calls);
                calls.for_each(|call| call.arguments = object_of(std::mem::take(&mut call.arguments)).into());
            }
            Repair::SystemsJoined => {
                let first: Vec<Turn> = turns.drain(..n_first).collect();
                turns.splice(..0, joined(first, is_system));
            }
            Repair::LaterSystemsAsUser => as_user(turns, n_first),
            Repair::OneCallEach => one_call_each(turns),
            Repair::TextBeforeCalls => text_before_calls(turns),
            Repair::TurnsJoined => *turns = joined(std::mem::take(turns), is_plain),
            Repair::ArgumentsAsText => {
                let calls = turns.iter_mut().flat_map(|turn| &mut turn.message.tool_calls);
                let objects = calls.filter(|call| call.arguments.is_object());
                objects.for_each(|call| call.arguments = call.arguments.to_string().into());
            }
            Repair::SystemAsUser => as_user(turns, 0),
            Repair::CallsAsText => calls_as_text(turns),
        }
        *turns != before
    }
}

/// The arguments of a call, which are an object wherever they are no JSON that was cut off.
fn object_of(arguments: Value) -> Map<String, Value> {
    match arguments {
        Value::Object(map) => map,
        other => Map::from_iter([("arguments".to_owned(), other)]),
    }
}

fn is_system(turn: &Turn) -> bool {
    matches!(turn.message.role, Role::System | Role::Developer)
}

/// Whether it is text of user or model, and no more.
fn is_plain(turn: &Turn) -> bool {
    matches!(turn.message.role, Role::User | Role::Assistant) && turn.message.tool_calls.is_empty()
}

fn is_user(turn: &Turn) -> bool {
    turn.message.role == Role::User
}

/// Adds a text to another.
fn add(text: &mut String, more: &str) {
    if !(text.is_empty() || more.is_empty()) {
        text.push_str("\n\n");
    }
    text.push_str(more);
}

/// What follows a message of the same role is part of it, where both are `joinable`.
fn joined(turns: Vec<Turn>, joinable: impl Fn(&Turn) -> bool) -> Vec<Turn> {
    let mut out: Vec<Turn> = Vec::new();
    for turn in turns {
        let last = out.last_mut().filter(|last| joinable(last) && joinable(&turn));
        match last.filter(|last| last.message.role == turn.message.role || (is_system(last) && is_system(&turn))) {
            None => out.push(turn),
            Some(last) => {
                add(&mut last.message.content, &turn.message.content);
                if let Some(thought) = &turn.message.reasoning_content {
                    add(last.message.reasoning_content.get_or_insert_default(), thought);
                }
            }
        }
    }
    out
}

/// System messages from the one numbered `from` on become what the user says there: at the end of the user's message
/// before, else at the beginning of the one behind, else a message.
fn as_user(turns: &mut Vec<Turn>, from: usize) {
    let mut out: Vec<Turn> = Vec::new();
    let mut opens = String::new();
    let (mut opened_at, n) = (None, turns.len());
    for (i, mut turn) in std::mem::take(turns).into_iter().enumerate() {
        if is_system(&turn) && i >= from {
            match out.last_mut().filter(|last| is_user(last)) {
                Some(last) => add(&mut last.message.content, &turn.message.content),
                None => {
                    opened_at.get_or_insert(turn.at);
                    add(&mut opens, &turn.message.content);
                    if i + 1 < n {
                        continue;
                    }
                    let at = opened_at.take().unwrap_or_default();
                    out.push(Turn { at, message: Message::text(Role::User, std::mem::take(&mut opens)) });
                }
            }
            continue;
        }
        if let Some(at) = opened_at.take() {
            let text = std::mem::take(&mut opens);
            if is_user(&turn) {
                let said = std::mem::replace(&mut turn.message.content, text);
                add(&mut turn.message.content, &said);
            } else {
                out.push(Turn { at, message: Message::text(Role::User, text) });
            }
        }
        out.push(turn);
    }
    *turns = out;
}

fn thought_in_content(message: &mut Message) {
    if message.tool_calls.is_empty() || message.content.is_empty() {
        return;
    }
    if let Some(mut thought) = message.reasoning_content.take() {
        add(&mut thought, &message.content);
        message.content = thought;
    }
}

/// Several calls in one message become messages of one call each, with their answers between them.
fn one_call_each(turns: &mut Vec<Turn>) {
    let mut out = Vec::new();
    let mut rest = std::mem::take(turns).into_iter().peekable();
    while let Some(mut turn) = rest.next() {
        if turn.message.tool_calls.len() < 2 {
            out.push(turn);
            continue;
        }
        let mut answers = Vec::new();
        while let Some(answer) = rest.next_if(|next| next.message.role == Role::Tool) {
            answers.push(answer);
        }
        let calls = std::mem::take(&mut turn.message.tool_calls);
        for call in calls {
            let id = call.id.clone();
            turn.message.tool_calls = vec![call];
            out.push(turn.clone());
            out.extend(answers.extract_if(.., |answer| answer.message.tool_call_id.as_deref() == Some(&id)));
            turn.message = Message::text(Role::Assistant, "");
        }
        out.extend(answers);
    }
    *turns = out;
}

/// A message with text and calls becomes two.
fn text_before_calls(turns: &mut Vec<Turn>) {
    let both = |turn: &Turn| !(turn.message.tool_calls.is_empty() || turn.message.content.is_empty());
    *turns = std::mem::take(turns)
        .into_iter()
        .flat_map(|mut turn| {
            let text = both(&turn).then(|| Message::text(turn.message.role, std::mem::take(&mut turn.message.content)));
            let text = text.map(|message| Turn { at: turn.at.clone(), message });
            text.into_iter().chain([turn])
        })
        .collect();
}

/// Calls and answers as most models have seen them: between tags, the answers in the user's turn.
fn calls_as_text(turns: &mut Vec<Turn>) {
    for Turn { message, .. } in turns.iter_mut() {
        for call in std::mem::take(&mut message.tool_calls) {
            let arguments = call.arguments.as_str().and_then(|text| serde_json::from_str(text).ok());
            let text = match arguments.unwrap_or(call.arguments) {
                Value::String(cut) => format!("{{\"name\":{},\"arguments\":{cut}", Value::from(call.name)),
                arguments => json!({"name": call.name, "arguments": arguments}).to_string(),
            };
            add(&mut message.content, &format!("<tool_call>\n{text}\n</tool_call>"));
        }
        if message.role == Role::Tool {
            let text = format!("<tool_response>\n{}\n</tool_response>", message.content);
            *message = Message::text(Role::User, text);
        }
    }
    *turns = joined(std::mem::take(turns), is_plain);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::ToolCall;

    fn turns(said: &[(Role, &str)]) -> Vec<Turn> {
        let turn = |(i, (role, text)): (usize, &(Role, &str))| {
            let mut message = Message::text(*role, if *role == Role::Assistant { "" } else { *text });
            if *role == Role::Assistant {
                let call = |name: &str| ToolCall { id: name.to_owned(), name: name.to_owned(), arguments: json!({}) };
                message.tool_calls = text.split(' ').map(call).collect();
            }
            message.tool_call_id = (*role == Role::Tool).then(|| (*text).to_owned());
            Turn { at: format!("messages[{i}]"), message }
        };
        said.iter().enumerate().map(turn).collect()
    }

    fn shown(turns: &[Turn]) -> Vec<String> {
        let calls =
            |turn: &Turn| turn.message.tool_calls.iter().map(|call| format!(" {}()", call.name)).collect::<String>();
        let one = |turn: &Turn| format!("{:?}: {}{}", turn.message.role, turn.message.content, calls(turn));
        turns.iter().map(one).collect()
    }

    #[track_caller]
    fn check(repair: Repair, said: &[(Role, &str)], want: &[&str]) {
        let mut turns = turns(said);
        assert!(repair.apply(&mut turns));
        assert_eq!(shown(&turns), want);
        assert!(!repair.apply(&mut turns), "once is enough: {turns:?}");
    }

    #[test]
    fn systems_find_a_place() {
        use Role::{Assistant, System, Tool, User};
        check(
            Repair::SystemsJoined,
            &[(System, "a"), (Role::Developer, "b"), (User, "c"), (System, "d")],
            &["System: a\n\nb", "User: c", "System: d"],
        );
        check(
            Repair::LaterSystemsAsUser,
            &[(System, "a"), (User, "b"), (System, "c"), (Assistant, "f"), (System, "d")],
            &["System: a", "User: b\n\nc", "Assistant:  f()", "User: d"],
        );
        check(
            Repair::LaterSystemsAsUser,
            &[(Tool, "r"), (System, "a"), (System, "b"), (User, "c")],
            &["Tool: r", "User: a\n\nb\n\nc"],
        );
        check(
            Repair::SystemAsUser,
            &[(System, "a"), (Assistant, "f"), (User, "b")],
            &["User: a", "Assistant:  f()", "User: b"],
        );
    }

    #[test]
    fn calls_find_a_place() {
        use Role::{Assistant, Tool, User};
        let said = [(User, "a"), (Assistant, "f g"), (Tool, "g"), (Tool, "f"), (Tool, "x")];
        check(
            Repair::OneCallEach,
            &said,
            &["User: a", "Assistant:  f()", "Tool: f", "Assistant:  g()", "Tool: g", "Tool: x"],
        );
        check(
            Repair::CallsAsText,
            &said[..4],
            &[
                "User: a",
                "Assistant: <tool_call>\n{\"name\":\"f\",\"arguments\":{}}\n</tool_call>\n\n\
             <tool_call>\n{\"name\":\"g\",\"arguments\":{}}\n</tool_call>",
                "User: <tool_response>\ng\n</tool_response>\n\n<tool_response>\nf\n</tool_response>",
            ],
        );
        let mut both = turns(&[(User, "a"), (Assistant, "f")]);
        both[1].message.content = "b".to_owned();
        assert!(Repair::TextBeforeCalls.apply(&mut both));
        assert_eq!(shown(&both), ["User: a", "Assistant: b", "Assistant:  f()"]);
        check(Repair::TurnsJoined, &[(User, "a"), (User, "b"), (Assistant, "f")], &["User: a\n\nb", "Assistant:  f()"]);
    }
}
