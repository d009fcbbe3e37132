//! The grammar of tool calls as the families write them, by the schemas of the tools: keys that must be there, types, and
//! no other keys than they allow.

use std::collections::HashMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::serve::output::Family;
use crate::serve::schema::{Kinds, followed, kinds, one_line, standalone};

/// Calls of tools, which an answer is, or may be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calls {
    /// How they are written.
    pub family: Family,
    /// The tools, as OpenAI's chat interface describes them.
    pub tools: Vec<Value>,
    /// There may be several.
    pub many: bool,
    /// JSON by this schema may stand in their place.
    pub or: Option<Value>,
}

/// Anything but the mark that ends it.
const ANY_TEXT: &str = "/(?s:.*)/";

/// Values of Gemma 4 that no schema describes.
const GEMMA4_VALUES: &str = r#"
gemma_pairs: gemma_pair ("," gemma_pair)*
gemma_pair: gemma_key ":" gemma_value
gemma_key: /[A-Za-z0-9_.-]+/ | gemma_text
gemma_value: gemma_text | gemma_number | gemma_boolean | "null" | gemma_array | gemma_object
gemma_number: /-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?/
gemma_integer: /-?(0|[1-9][0-9]*)/
gemma_boolean: "true" | "false"
gemma_array: "[" (gemma_value ("," gemma_value)*)? "]"
gemma_object: "{" gemma_pairs? "}"
"#;

/// What stands around text of Gemma 4.
const QUOTE: &str = "<|\"|>";

/// What stands around all calls, and between them.
struct Around {
    before: &'static str,
    between: &'static str,
    after: &'static str,
}

impl Around {
    fn of(family: Family) -> Around {
        let (before, between, after) = match family {
            Family::Hermes | Family::QwenXml | Family::Seed | Family::Glm => ("", "\n", ""),
            Family::MiniMax => ("<minimax:tool_call>\n", "", "</minimax:tool_call>"),
            Family::Dsml => ("<｜DSML｜function_calls>\n", "", "</｜DSML｜function_calls>"),
            Family::DeepSeek => ("<｜tool▁calls▁begin｜>", "\n", "<｜tool▁calls▁end｜>"),
            Family::DeepSeek31 => ("<｜tool▁calls▁begin｜>", "", "<｜tool▁calls▁end｜>"),
            Family::Kimi => ("<|tool_calls_section_begin|>", "", "<|tool_calls_section_end|>"),
            Family::Mistral => ("[TOOL_CALLS][", ", ", "]"),
            Family::Cohere => ("<|START_ACTION|>[\n    ", ",\n    ", "\n]<|END_ACTION|>"),
            Family::Nemotron => ("<TOOLCALL>[", ", ", "]</TOOLCALL>"),
            Family::Lfm2 => ("<|tool_call_start|>[", ", ", "]<|tool_call_end|>"),
            Family::Llama3 => ("", "; ", ""),
            Family::Ministral | Family::Gemma4 | Family::Harmony | Family::Plain => ("", "", ""),
        };
        Around { before, between, after }
    }
}

/// The grammar, in Lark. `control` tells the ids of control tokens: a mark that is one is written as that.
///
/// # Errors
/// A schema that cannot be followed, or a family that has no form for calls.
pub fn lark(calls: &Calls, control: impl Fn(&str) -> Option<u32>) -> Result<String, String> {
    let marks = calls.family.marks().iter().filter_map(|mark| control(mark).map(|id| (*mark, id)));
    let mut lark = Lark { marks: marks.collect(), ..Lark::default() };
    let mut names = Vec::new();
    let any = json!({"type": "object"});
    for tool in &calls.tools {
        let function = &tool["function"];
        let name = function["name"].as_str().unwrap_or_default();
        let parameters = if function["parameters"].is_object() { &function["parameters"] } else { &any };
        let body = lark.call(calls.family, name, parameters).map_err(|e| format!("tool {name:?}: {e}"))?;
        names.push(lark.rule(&body));
    }
    let any = lark.rule(&names.join(" | "));
    let Around { before, between, after } = Around::of(calls.family);
    // Harmony has one message for each call, and an answer is one message.
    let further = match calls.many && calls.family != Family::Harmony {
        true => format!("({} {any})*", lark.written(between)),
        false => String::new(),
    };
    let mut start = format!("{} {any} {further} {}", lark.written(before), lark.written(after));
    if let Some(schema) = &calls.or {
        let text = lark.json(schema, schema, false)?;
        let _ = write!(start, " | {text}");
    }
    if calls.family == Family::Gemma4 {
        lark.rules += GEMMA4_VALUES;
        let text = lark.text_between(QUOTE, QUOTE);
        lark.define("gemma_text", &text);
    }
    Ok(format!("start: {start}\n{}", lark.rules))
}

/// A text in Lark, whose strings have JSON's escapes.
fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

/// A schema's object: its properties in their order, and whether there may be others.
struct Object<'a> {
    properties: Vec<(&'a str, &'a Value, bool)>,
    /// The schema of others, where there may be some.
    others: Option<&'a Value>,
}

impl<'a> Object<'a> {
    fn of(root: &'a Value, schema: &'a Value) -> Object<'a> {
        const ANY: &Value = &Value::Bool(true);
        let schema = followed(root, schema);
        let list = |key: &str| schema.get(key).and_then(Value::as_array).into_iter().flatten();
        let required: Vec<&str> = list("required").filter_map(Value::as_str).collect();
        let declared = schema.get("properties").and_then(Value::as_object);
        let mut properties: Vec<_> = declared
            .into_iter()
            .flatten()
            .filter(|(_, schema)| **schema != false)
            .map(|(key, schema)| (key.as_str(), schema, required.contains(&key.as_str())))
            .collect();
        for key in required {
            if !properties.iter().any(|(known, ..)| *known == key) {
                properties.push((key, ANY, true));
            }
        }
        let others = match schema.get("additionalProperties") {
            Some(Value::Bool(false)) => None,
            Some(schema) => Some(schema),
            // A forced call has the keys that are declared, where there are such.
            None => Some(ANY).filter(|_| properties.is_empty()),
        };
        Object { properties, others }
    }
}

#[derive(Default)]
struct Lark {
    /// Marks that are control tokens.
    marks: Vec<(&'static str, u32)>,
    rules: String,
    n_rules: usize,
    /// Rules for values of Gemma 4, by the place of their schema.
    gemma: HashMap<*const Value, String>,
}

impl Lark {
    fn fresh(&mut self, prefix: &str) -> String {
        self.n_rules += 1;
        format!("{prefix}{}", self.n_rules)
    }

    fn define(&mut self, name: &str, body: &str) {
        let _ = writeln!(self.rules, "{name}: {body}");
    }

    /// A text, with the marks in it that are control tokens.
    fn written(&self, mut text: &str) -> String {
        let mut out = String::new();
        let found = |text: &str| {
            let places = self.marks.iter().filter_map(|(mark, id)| text.find(mark).map(|at| (at, mark.len(), *id)));
            places.min()
        };
        while let Some((at, len, id)) = found(text) {
            let before = if at == 0 { String::new() } else { literal(&text[..at]) };
            let _ = write!(out, "{before} <[{id}]> ");
            text = &text[at + len..];
        }
        if out.is_empty() || !text.is_empty() {
            out += &literal(text);
        }
        out
    }

    /// Any text between two marks; the first may be empty.
    fn text_between(&mut self, open: &str, close: &str) -> String {
        if self.marks.iter().any(|(mark, _)| *mark == close) {
            // No text has a control token in it.
            return format!("{} {ANY_TEXT} {}", self.written(open), self.written(close));
        }
        let text = self.fresh("t");
        self.define(&format!("{text}[suffix={}]", literal(close)), ANY_TEXT);
        format!("{} {text}", self.written(open))
    }

    /// A rule of its own; its name.
    fn rule(&mut self, body: &str) -> String {
        let name = self.fresh("x");
        self.define(&name, body);
        name
    }

    /// JSON by a schema that stands in `root`.
    fn json(&mut self, root: &Value, schema: &Value, is_lenient: bool) -> Result<String, String> {
        let mut schema = one_line(standalone(root, schema)?);
        if is_lenient && let Some(Value::Object(style)) = schema.get_mut("x-guidance") {
            style.insert("lenient".to_owned(), true.into());
        }
        Ok(self.rule(&format!("%json {schema}")))
    }

    /// Arguments in JSON.
    fn arguments(&mut self, parameters: &Value) -> Result<String, String> {
        let mut schema = parameters.clone();
        if let Value::Object(map) = &mut schema {
            map.entry("type").or_insert_with(|| "object".into());
        }
        self.json(&schema, &schema, true)
    }

    /// A call, and what stands around it alone.
    fn call(&mut self, family: Family, name: &str, parameters: &Value) -> Result<String, String> {
        let quoted = Value::from(name).to_string();
        let (before, after) = match family {
            Family::QwenXml | Family::Seed | Family::Glm | Family::MiniMax | Family::Dsml => {
                return self.tagged(family, name, parameters);
            }
            Family::Lfm2 => {
                let arguments = self.python(parameters)?;
                return Ok(format!("{} {arguments} \")\"", self.written(&format!("{name}("))));
            }
            Family::Gemma4 => {
                let pairs = self.gemma_object(parameters, parameters)?;
                let begin = self.written(&format!("<|tool_call>call:{name}"));
                return Ok(format!("{begin} {pairs} {}", self.written("<tool_call|>")));
            }
            Family::Hermes => {
                (format!("<tool_call>\n{{\"name\": {quoted}, \"arguments\": "), "}\n</tool_call>".to_owned())
            }
            Family::Llama3 => (format!("{{\"name\": {quoted}, \"parameters\": "), "}".to_owned()),
            Family::Harmony => {
                (format!("<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"), String::new())
            }
            Family::Mistral | Family::Nemotron => (format!("{{\"name\": {quoted}, \"arguments\": "), "}".to_owned()),
            Family::Ministral => (format!("[TOOL_CALLS]{name}[ARGS]"), String::new()),
            Family::Cohere => {
                (format!("{{\"tool_call_id\": \"0\", \"tool_name\": {quoted}, \"parameters\": "), "}".to_owned())
            }
            Family::DeepSeek => {
                let before = format!("<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n");
                (before, "\n```<｜tool▁call▁end｜>".to_owned())
            }
            Family::DeepSeek31 => {
                (format!("<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>"), "<｜tool▁call▁end｜>".to_owned())
            }
            Family::Kimi => (
                format!("<|tool_call_begin|>functions.{name}:0<|tool_call_argument_begin|>"),
                "<|tool_call_end|>".to_owned(),
            ),
            Family::Plain => return Err("the template has no form for calls".to_owned()),
        };
        let arguments = self.arguments(parameters)?;
        Ok(format!("{} {arguments} {}", self.written(&before), self.written(&after)))
    }

    /// Tags around each argument.
    fn tagged(&mut self, family: Family, name: &str, parameters: &Value) -> Result<String, String> {
        let (begin, end) = match family {
            Family::QwenXml => (format!("<tool_call>\n<function={name}>\n"), "</function>\n</tool_call>"),
            Family::Seed => (format!("<seed:tool_call>\n<function={name}>\n"), "</function>\n</seed:tool_call>"),
            Family::Glm => (format!("<tool_call>{name}\n"), "</tool_call>"),
            Family::Dsml => (format!("<｜DSML｜invoke name=\"{name}\">\n"), "</｜DSML｜invoke>\n"),
            _ => (format!("<invoke name=\"{name}\">\n"), "</invoke>\n"),
        };
        let object = Object::of(parameters, parameters);
        let mut body = self.written(&begin);
        for &(key, schema, is_required) in &object.properties {
            let argument = self.tagged_argument(family, &self.written(key), parameters, schema)?;
            let _ = write!(body, " {argument}{}", if is_required { "" } else { "?" });
        }
        if let Some(schema) = object.others {
            let key = self.other_key(&object);
            let argument = self.tagged_argument(family, &key, parameters, schema)?;
            let _ = write!(body, " {argument}*");
        }
        Ok(format!("{body} {}", self.written(end)))
    }

    /// One argument; `key` is the expression of its name.
    fn tagged_argument(&mut self, family: Family, key: &str, root: &Value, schema: &Value) -> Result<String, String> {
        let allowed = kinds(root, schema);
        let is_text = allowed.has(Kinds::STRING);
        let (before, behind_key, value_end) = match family {
            Family::QwenXml | Family::Seed => ("<parameter=", ">\n", "\n</parameter>"),
            Family::Glm => ("<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>"),
            Family::Dsml if is_text => ("<｜DSML｜parameter name=\"", "\" string=\"true\">", "</｜DSML｜parameter>"),
            Family::Dsml => ("<｜DSML｜parameter name=\"", "\" string=\"false\">", "</｜DSML｜parameter>"),
            _ => ("<parameter name=\"", "\">", "</parameter>"),
        };
        let target = followed(root, schema);
        let values: Option<Vec<&Value>> = match (target.get("enum").and_then(Value::as_array), target.get("const")) {
            (Some(values), _) => Some(values.iter().collect()),
            (None, Some(value)) => Some(vec![value]),
            (None, None) => None,
        };
        let value = match values.filter(|_| is_text) {
            Some(values) => {
                let written = values.iter().map(|value| value.as_str().map_or(value.to_string(), str::to_owned));
                let words: Vec<String> = written.map(|word| literal(&word)).collect();
                format!("({}) {}", words.join(" | "), self.written(value_end))
            }
            None if is_text => self.text_between("", value_end.trim_start()),
            None => format!("{} {}", self.json(root, schema, true)?, self.written(value_end)),
        };
        Ok(self.rule(&format!("{} {key} {} {value} \"\\n\"", self.written(before), self.written(behind_key))))
    }

    /// A key that is none of those that are declared.
    fn other_key(&mut self, object: &Object<'_>) -> String {
        let name = self.fresh("K");
        let known: Vec<String> = object.properties.iter().map(|(key, ..)| in_regex(key)).collect();
        let but = if known.is_empty() { String::new() } else { format!(" & ~/({})/", known.join("|")) };
        self.define(&name, &format!("/[A-Za-z0-9_.-]+/{but}"));
        name
    }

    /// Pairs in their order, those that are not required left out at will, with a separator between them.
    fn pairs(&mut self, pairs: &[(String, bool)], other: Option<&str>, separator: &str) -> String {
        let separator = self.written(separator);
        // What may follow where nothing stands before it, and where something does.
        let (mut first, mut later) = match other {
            None => ("\"\"".to_owned(), "\"\"".to_owned()),
            Some(other) => (format!("({other} ({separator} {other})*)?"), format!("({separator} {other})*")),
        };
        for (pair, is_required) in pairs.iter().rev() {
            let behind = self.rule(&later);
            let at_first = if *is_required { String::new() } else { format!(" | {}", self.rule(&first)) };
            let at_later = if *is_required { String::new() } else { format!(" | {behind}") };
            first = format!("{pair} {behind}{at_first}");
            later = format!("{separator} {pair} {behind}{at_later}");
        }
        self.rule(&first)
    }

    /// The arguments of a call in Python, each with its key; values are JSON, which is near enough.
    fn python(&mut self, parameters: &Value) -> Result<String, String> {
        let object = Object::of(parameters, parameters);
        let mut pairs = Vec::new();
        for &(key, schema, is_required) in &object.properties {
            let value = self.json(parameters, schema, true)?;
            pairs.push((self.rule(&format!("{} {value}", self.written(&format!("{key}=")))), is_required));
        }
        let mut other = None;
        if let Some(schema) = object.others {
            let key = self.fresh("K");
            self.define(&key, "/[A-Za-z_][A-Za-z0-9_]*/");
            let value = self.json(parameters, schema, true)?;
            other = Some(self.rule(&format!("{key} \"=\" {value}")));
        }
        Ok(self.pairs(&pairs, other.as_deref(), ", "))
    }

    fn gemma_object(&mut self, root: &Value, schema: &Value) -> Result<String, String> {
        let object = Object::of(root, schema);
        let mut pairs = Vec::new();
        for &(key, schema, is_required) in &object.properties {
            let value = self.gemma_value(root, schema)?;
            pairs.push((self.rule(&format!("{} {value}", self.written(&format!("{key}:")))), is_required));
        }
        let other = match object.others {
            None => None,
            Some(schema) => {
                let value = self.gemma_value(root, schema)?;
                Some(self.rule(&format!("gemma_key \":\" {value}")))
            }
        };
        let pairs = self.pairs(&pairs, other.as_deref(), ",");
        Ok(self.rule(&format!("\"{{\" {pairs} \"}}\"")))
    }

    fn gemma_value(&mut self, root: &Value, schema: &Value) -> Result<String, String> {
        let schema = followed(root, schema);
        if kinds(root, schema) == Kinds::ANY && schema.get("anyOf").or(schema.get("oneOf")).is_none() {
            return Ok("gemma_value".to_owned());
        }
        if let Some(known) = self.gemma.get(&std::ptr::from_ref(schema)) {
            return Ok(known.clone());
        }
        // Known before it is written: a schema may refer to itself.
        let name = self.fresh("g");
        self.gemma.insert(std::ptr::from_ref(schema), name.clone());
        let ways = self.gemma_ways(root, schema)?;
        if ways.is_empty() {
            return Err("a parameter can have no value".to_owned());
        }
        self.define(&name, &ways.join(" | "));
        Ok(name)
    }

    fn gemma_ways(&mut self, root: &Value, schema: &Value) -> Result<Vec<String>, String> {
        for key in ["anyOf", "oneOf"] {
            if let Some(schemas) = schema.get(key).and_then(Value::as_array) {
                return schemas.iter().map(|schema| self.gemma_value(root, schema)).collect();
            }
        }
        let constant = schema.get("const").map(std::slice::from_ref);
        if let Some(values) = constant.or(schema.get("enum").and_then(Value::as_array).map(Vec::as_slice)) {
            return Ok(values.iter().map(|value| self.written(&gemma_text(value))).collect());
        }
        let allowed = kinds(root, schema);
        let is_integer = schema.get("type").is_some_and(|kind| !kind.to_string().contains("\"number\""));
        let mut ways = Vec::new();
        for (kind, way) in [
            (Kinds::STRING, "gemma_text"),
            (Kinds::NUMBER, if is_integer { "gemma_integer" } else { "gemma_number" }),
            (Kinds::BOOLEAN, "gemma_boolean"),
            (Kinds::NULL, "\"null\""),
        ] {
            if allowed.has(kind) {
                ways.push(way.to_owned());
            }
        }
        if allowed.has(Kinds::ARRAY) {
            ways.push(match schema.get("items") {
                None => "gemma_array".to_owned(),
                Some(items) => {
                    let item = self.gemma_value(root, items)?;
                    let least = schema.get("minItems").and_then(Value::as_u64).unwrap_or(0);
                    let some = format!("{item} (\",\" {item})*");
                    let all = if least == 0 { format!("({some})?") } else { some };
                    format!("\"[\" {all} \"]\"")
                }
            });
        }
        if allowed.has(Kinds::OBJECT) {
            ways.push(self.gemma_object(root, schema)?);
        }
        Ok(ways)
    }
}

/// A value as Gemma 4 writes it.
fn gemma_text(value: &Value) -> String {
    let joined = |parts: Vec<String>| parts.join(",");
    match value {
        Value::String(text) => format!("<|\"|>{text}<|\"|>"),
        Value::Array(values) => format!("[{}]", joined(values.iter().map(gemma_text).collect())),
        Value::Object(pairs) => {
            let pair = |(key, value): (&String, &Value)| format!("{key}:{}", gemma_text(value));
            format!("{{{}}}", joined(pairs.iter().map(pair).collect()))
        }
        other => other.to_string(),
    }
}

/// A text in a regular expression.
fn in_regex(text: &str) -> String {
    text.chars().map(|c| format!("\\u{{{:x}}}", u32::from(c))).collect()
}
