//! Chat templates against Python's jinja2.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use brim::chat::{ChatTemplate, Message, Prompt, Role, Time, ToolCall};
use serde::Deserialize;
use serde_json::Value;

/// What `tools/goldens_templates.py` writes.
#[derive(Deserialize)]
struct Rendered {
    now: u64,
    chats: BTreeMap<String, Chat>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Chat {
    messages: Vec<Value>,
    #[serde(default)]
    tools: Vec<Value>,
    #[serde(default = "yes")]
    add_generation_prompt: bool,
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
struct Case {
    name: String,
    /// The source, of templates made by others; our own are in the tree.
    template: Option<String>,
    /// By chat: the text, or `{"refused": message}`, or `{"failed": message}` if jinja2 cannot render it either.
    rendered: BTreeMap<String, Value>,
}

fn message(value: &Value) -> Message {
    let text = |key: &str| value[key].as_str().map(str::to_owned);
    let role = match value["role"].as_str().unwrap() {
        "system" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" => Role::Tool,
        other => panic!("{other}"),
    };
    let calls = value["tool_calls"].as_array().cloned().unwrap_or_default();
    let call = |call: &Value| ToolCall {
        id: call["id"].as_str().unwrap().to_owned(),
        name: call["function"]["name"].as_str().unwrap().to_owned(),
        arguments: call["function"]["arguments"].clone(),
    };
    Message {
        role,
        content: text("content").unwrap(),
        reasoning_content: text("reasoning_content"),
        tool_calls: calls.iter().map(call).collect(),
        tool_call_id: text("tool_call_id"),
        name: text("name"),
    }
}

/// One line for each template that differs, and how many texts were held against jinja2's.
fn differences(rendered: &Rendered, source: impl Fn(&Case) -> String) -> (Vec<String>, usize) {
    let (mut all, mut compared) = (Vec::new(), 0);
    for case in &rendered.cases {
        let mut found = Vec::new();
        let template = ChatTemplate::compile(&source(case), Some(&case.name));
        for (name, want) in &case.rendered {
            let chat = &rendered.chats[name];
            let prompt = Prompt {
                messages: &chat.messages.iter().map(message).collect::<Vec<_>>(),
                tools: &chat.tools,
                add_generation_prompt: chat.add_generation_prompt,
                bos: "<s>",
                eos: "</s>",
                now: Time::from_unix(rendered.now),
                variables: &[],
            };
            let got = template.as_ref().map_err(ToString::to_string);
            let got = got.and_then(|template| template.render(&prompt).map_err(|e| e.to_string()));
            let refusal = want["refused"].as_str();
            compared += usize::from(want["failed"].is_null());
            match (&got, want.as_str(), refusal) {
                (Ok(got), Some(want), _) if got == want => {}
                (Err(got), _, Some(refusal)) if got.contains(refusal) => {}
                (Ok(got), Some(want), _) => {
                    let same = got.chars().zip(want.chars()).take_while(|(a, b)| a == b).count();
                    let around = |text: &str| text.chars().skip(same.saturating_sub(30)).take(90).collect::<String>();
                    found.push(format!("{}, {name}: {:?} for {:?}", case.name, around(got), around(want)));
                }
                (_, None, None) => {} // jinja2 fails
                (got, _, _) => found.push(format!("{}, {name}: {got:?} for {want}", case.name)),
            }
        }
        if let Some(first) = found.first() {
            all.push(format!("{} of {}, first {first:.400}", found.len(), case.rendered.len()));
        }
    }
    (all, compared)
}

fn read(path: &Path) -> Rendered {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn our_templates_render_as_jinja2_does() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let goldens = root.join("tests/golden/templates");
    let rendered = read(&goldens.join("rendered.json"));
    let source = |case: &Case| {
        let there = [goldens.join(&case.name), root.join("src/chat/templates").join(&case.name)];
        std::fs::read_to_string(there.iter().find(|path| path.exists()).unwrap()).unwrap()
    };
    let (found, compared) = differences(&rendered, source);
    assert!(compared >= 8 * 6, "{compared}");
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
#[ignore = "run by tools/goldens_templates.py, which writes the file that BRIM_TEMPLATES names"]
fn templates_made_by_others() {
    let rendered = read(Path::new(&std::env::var("BRIM_TEMPLATES").unwrap()));
    let (found, compared) = differences(&rendered, |case| case.template.clone().unwrap());
    let texts: usize = rendered.cases.iter().map(|case| case.rendered.len()).sum();
    println!("{} templates, {compared} of {texts} texts that jinja2 renders or refuses compared", rendered.cases.len());
    assert!(found.is_empty(), "{} differ:\n{}", found.len(), found.join("\n"));
}
