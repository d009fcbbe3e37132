//! Tool calls as the families write them, back to name and arguments.

use serde_json::{Map, Value};

use super::family::Family;
use super::gemma;
use super::pieces::Call;

/// What may stand before calls that are the whole answer.
pub const PYTHON_TAG: &str = "<|python_tag|>";

/// What stands around one call, or some.
pub struct CallSyntax {
    /// Before it.
    pub open: &'static str,
    /// After it.
    pub close: &'static str,
}

/// Hermes and Qwen.
const HERMES: CallSyntax = CallSyntax { open: "<tool_call>", close: "</tool_call>" };
/// Qwen's coders.
const QWEN_XML: CallSyntax = CallSyntax { open: "<tool_call>", close: "</tool_call>" };
/// GLM.
const GLM: CallSyntax = CallSyntax { open: "<tool_call>", close: "</tool_call>" };
/// MiniMax.
const MINIMAX: CallSyntax = CallSyntax { open: "<minimax:tool_call>", close: "</minimax:tool_call>" };
/// Gemma 4.
const GEMMA4: CallSyntax = CallSyntax { open: "<|tool_call>", close: "<tool_call|>" };

impl CallSyntax {
    /// That of a family; `None` where nothing stands around calls.
    pub fn of(family: Family) -> Option<&'static CallSyntax> {
        match family {
            Family::Hermes => Some(&HERMES),
            Family::QwenXml => Some(&QWEN_XML),
            Family::Glm => Some(&GLM),
            Family::MiniMax => Some(&MINIMAX),
            Family::Gemma4 => Some(&GEMMA4),
            Family::Llama3 | Family::Harmony | Family::Plain => None,
        }
    }
}

/// The calls in `text`, which stood between the marks; `None` if it has another form.
pub fn parse_calls(family: Family, text: &str, tools: &[Value]) -> Option<Vec<Call>> {
    let calls = match family {
        Family::Hermes => vec![from_json(text.trim(), &["arguments", "parameters"])?],
        Family::QwenXml => tagged(text, tools, &QWEN_TAGS)?,
        Family::MiniMax => tagged(text, tools, &MINIMAX_TAGS)?,
        Family::Glm => vec![glm(text, tools)?],
        Family::Gemma4 => vec![gemma::parse(text)?],
        Family::Llama3 | Family::Harmony | Family::Plain => return None,
    };
    (!calls.is_empty()).then_some(calls)
}

/// Calls that are the whole answer, as Llama 3 writes them; several are separated by `;`.
pub fn parse_bare(text: &str) -> Option<Vec<Call>> {
    let text = text.trim().strip_prefix(PYTHON_TAG).unwrap_or(text).trim();
    let mut calls = Vec::new();
    let mut documents = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let mut from = 0;
    loop {
        match documents.next() {
            None => break,
            Some(Ok(value)) => calls.push(of_value(value, &["parameters", "arguments"])?),
            Some(Err(_)) => return None,
        }
        from += documents.byte_offset();
        let rest = text[from..].trim_start();
        let rest = rest.strip_prefix(';').unwrap_or(rest);
        from = text.len() - rest.len();
        documents = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
    }
    (!calls.is_empty()).then_some(calls)
}

/// Whether a text begins like a call in JSON.
pub enum Begun {
    /// Its arguments, an object, begin at this byte.
    Yes {
        /// The tool.
        name: String,
        /// Where they begin.
        at: usize,
    },
    /// It may yet.
    Perhaps,
    /// It is none, or its parts come in another order.
    No,
}

/// Looks for `{"name": "NAME", KEY: {` at the beginning of a text; `key` has its quotes.
pub fn begun(text: &str, key: &str) -> Begun {
    /// What follows `word`, or whether it may yet come.
    fn after<'t>(text: &'t str, word: &str) -> Result<&'t str, Begun> {
        let text = text.trim_start();
        let other = if word.starts_with(text) { Begun::Perhaps } else { Begun::No };
        text.strip_prefix(word).ok_or(other)
    }
    let parts = || {
        let rest = after(after(after(text, "{")?, "\"name\"")?, ":")?;
        after(rest, "\"")?;
        let mut names = serde_json::Deserializer::from_str(rest).into_iter::<String>();
        let name = match names.next() {
            Some(Ok(name)) => name,
            Some(Err(e)) if !e.is_eof() => return Err(Begun::No),
            _ => return Err(Begun::Perhaps),
        };
        let rest = after(after(after(&rest[names.byte_offset()..], ",")?, key)?, ":")?;
        let at = text.len() - after(rest, "{")?.len() - 1;
        Ok(Begun::Yes { name, at })
    };
    parts().unwrap_or_else(|other| other)
}

/// Follows the JSON of an object to its end.
#[derive(Default)]
pub struct Object {
    depth: usize,
    is_in_text: bool,
    is_escaped: bool,
    has_ended: bool,
}

impl Object {
    /// How many of the next bytes belong to it.
    pub fn scan(&mut self, text: &str) -> usize {
        for (i, byte) in text.bytes().enumerate() {
            match byte {
                _ if self.has_ended => return i,
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' if self.is_in_text => self.is_escaped = true,
                b'"' => self.is_in_text = !self.is_in_text,
                _ if self.is_in_text => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    self.has_ended = self.depth == 0;
                }
                // No JSON: a mark, probably. What is open stays open.
                b'<' => {
                    self.has_ended = true;
                    return i;
                }
                _ => {}
            }
        }
        text.len()
    }

    /// Whether its last bracket has come.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }
}

fn from_json(text: &str, keys: &[&str]) -> Option<Call> {
    of_value(serde_json::from_str(text).ok()?, keys)
}

fn of_value(mut value: Value, keys: &[&str]) -> Option<Call> {
    // Some write the function inside, as OpenAI's interface has it.
    if value.get("name").is_none()
        && let Some(inner) = value.get_mut("function").filter(|inner| inner.is_object())
    {
        value = inner.take();
    }
    let name = value.get("name")?.as_str()?.to_owned();
    let arguments = keys.iter().find_map(|key| value.get(key)).cloned();
    let arguments = match arguments.unwrap_or_else(|| Value::Object(Map::new())) {
        // JSON in a string is the JSON.
        Value::String(text) if serde_json::from_str::<Value>(&text).is_ok_and(|v| v.is_object()) => text,
        other => other.to_string(),
    };
    Some(Call { name, arguments })
}

/// Marks around functions and their parameters; names end with `name_end`.
struct Tags {
    function: &'static str,
    function_end: &'static str,
    parameter: &'static str,
    parameter_end: &'static str,
    name_end: &'static str,
}

const QWEN_TAGS: Tags = Tags {
    function: "<function=",
    function_end: "</function>",
    parameter: "<parameter=",
    parameter_end: "</parameter>",
    name_end: ">",
};

const MINIMAX_TAGS: Tags = Tags {
    function: "<invoke name=\"",
    function_end: "</invoke>",
    parameter: "<parameter name=\"",
    parameter_end: "</parameter>",
    name_end: "\">",
};

fn tagged(mut text: &str, tools: &[Value], tags: &Tags) -> Option<Vec<Call>> {
    let mut calls = Vec::new();
    while let Some((_, rest)) = text.split_once(tags.function) {
        let (name, rest) = rest.split_once(tags.name_end)?;
        let (mut body, after) = rest.split_once(tags.function_end).unwrap_or((rest, ""));
        let name = name.trim().trim_matches('"');
        let mut arguments = Map::new();
        while let Some((_, rest)) = body.split_once(tags.parameter) {
            let (key, rest) = rest.split_once(tags.name_end)?;
            let (value, after) = rest.split_once(tags.parameter_end)?;
            let key = key.trim().trim_matches('"');
            let value = value.strip_prefix('\n').unwrap_or(value);
            let value = value.strip_suffix('\n').unwrap_or(value);
            arguments.insert(key.to_owned(), typed(tools, name, key, value));
            body = after;
        }
        calls.push(Call { name: name.to_owned(), arguments: Value::Object(arguments).to_string() });
        text = after;
    }
    Some(calls)
}

fn glm(text: &str, tools: &[Value]) -> Option<Call> {
    let (name, mut rest) = text.split_once("<arg_key>").unwrap_or((text, ""));
    let name = name.trim();
    if name.is_empty() || name.contains(['<', '{']) {
        return None;
    }
    let mut arguments = Map::new();
    while !rest.is_empty() {
        let (key, after) = rest.split_once("</arg_key>")?;
        let (_, after) = after.split_once("<arg_value>")?;
        let (value, after) = after.split_once("</arg_value>")?;
        arguments.insert(key.trim().to_owned(), typed(tools, name, key.trim(), value));
        rest = after.split_once("<arg_key>").map_or("", |(_, rest)| rest);
    }
    Some(Call { name: name.to_owned(), arguments: Value::Object(arguments).to_string() })
}

/// A value that was written without quotes, by what the tool's description says of it.
fn typed(tools: &[Value], tool: &str, key: &str, text: &str) -> Value {
    let function = |tool: &Value| tool.get("function").cloned();
    let described = tools.iter().filter_map(function).find(|f| f["name"] == tool);
    let kind = described.and_then(|f| f["parameters"]["properties"][key].get("type").cloned());
    let as_text = || Value::String(text.to_owned());
    match kind {
        Some(Value::String(kind)) if kind == "string" => as_text(),
        _ => serde_json::from_str(text.trim()).unwrap_or_else(|_| as_text()),
    }
}
