//! JSON schemas as clients write them: where their references lead, what kinds of values they allow, and the same in the
//! form that llguidance takes.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::{Map, Value, json};

/// Formats that llguidance holds texts to; of any other JSON Schema says that it is a remark.
pub const FORMATS: [&str; 10] =
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];

/// Keywords whose value is a schema, or a list of them.
const INNER: [&str; 16] = [
    "items",
    "additionalItems",
    "prefixItems",
    "contains",
    "additionalProperties",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
    "anyOf",
    "oneOf",
    "allOf",
    "not",
    "if",
    "then",
    "else",
    "contentSchema",
];

/// Keywords whose value has a schema under each name.
const NAMED: [&str; 4] = ["properties", "patternProperties", "dependentSchemas", "dependencies"];

/// Keywords whose value means itself.
const PLAIN: [&str; 4] = ["const", "enum", "required", "dependentRequired"];

/// Most references that are followed one after the other where one value is looked at.
const FOLLOW_MAX: usize = 32;

/// What a reference within `root` leads to: `#`, or a JSON pointer behind it.
pub fn resolve<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    let own = root.get("$id").and_then(Value::as_str).unwrap_or_default();
    let fragment = reference.strip_prefix(own).unwrap_or(reference).strip_prefix('#')?;
    match decoded(fragment)?.as_ref() {
        "" | "/" => Some(root),
        pointer if pointer.starts_with('/') => root.pointer(pointer),
        _ => None,
    }
}

/// A fragment without its percent signs.
fn decoded(fragment: &str) -> Option<Cow<'_, str>> {
    if !fragment.contains('%') {
        return Some(Cow::Borrowed(fragment));
    }
    let mut bytes = Vec::with_capacity(fragment.len());
    let mut rest = fragment.as_bytes();
    while let Some((&byte, more)) = rest.split_first() {
        rest = more;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (hex, more) = rest.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?);
        rest = more;
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

/// A schema, and behind it what it refers to and nothing else.
pub fn followed<'a>(root: &'a Value, mut schema: &'a Value) -> &'a Value {
    for _ in 0..FOLLOW_MAX {
        let next = schema.get("$ref").and_then(Value::as_str).and_then(|to| resolve(root, to));
        let Some(next) = next else { break };
        schema = next;
    }
    schema
}

/// Kinds of JSON values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kinds(u8);

impl Kinds {
    /// None.
    const NONE: Kinds = Kinds(0);
    /// `null`.
    pub const NULL: Kinds = Kinds(1);
    /// `true` and `false`.
    pub const BOOLEAN: Kinds = Kinds(2);
    /// Numbers.
    pub const NUMBER: Kinds = Kinds(4);
    /// Texts.
    pub const STRING: Kinds = Kinds(8);
    /// Lists.
    pub const ARRAY: Kinds = Kinds(16);
    /// Objects.
    pub const OBJECT: Kinds = Kinds(32);
    /// All.
    pub const ANY: Kinds = Kinds(63);
    /// All but texts.
    pub const NOT_STRING: Kinds = Kinds(Kinds::ANY.0 & !Kinds::STRING.0);

    /// The kind of a value.
    pub fn of(value: &Value) -> Kinds {
        match value {
            Value::Null => Kinds::NULL,
            Value::Bool(_) => Kinds::BOOLEAN,
            Value::Number(_) => Kinds::NUMBER,
            Value::String(_) => Kinds::STRING,
            Value::Array(_) => Kinds::ARRAY,
            Value::Object(_) => Kinds::OBJECT,
        }
    }

    /// Whether one of `others` is among them.
    pub fn has(self, others: Kinds) -> bool {
        self.0 & others.0 != 0
    }

    fn named(name: &Value) -> Kinds {
        match name.as_str() {
            Some("null") => Kinds::NULL,
            Some("boolean") => Kinds::BOOLEAN,
            Some("number" | "integer") => Kinds::NUMBER,
            Some("string") => Kinds::STRING,
            Some("array") => Kinds::ARRAY,
            Some("object") => Kinds::OBJECT,
            _ => Kinds::ANY,
        }
    }

    fn any_of(kinds: impl Iterator<Item = Kinds>) -> Kinds {
        Kinds(kinds.fold(0, |all, kinds| all | kinds.0))
    }
}

/// The kinds of values that `schema` allows, which stands in `root`.
pub fn kinds(root: &Value, schema: &Value) -> Kinds {
    let mut steps = KINDS_STEPS;
    kinds_within(root, schema, &mut steps)
}

/// Schemas that are looked at for one answer; what lies beyond may be anything.
const KINDS_STEPS: usize = 256;

fn kinds_within(root: &Value, schema: &Value, steps: &mut usize) -> Kinds {
    let Value::Object(map) = schema else { return if *schema == false { Kinds::NONE } else { Kinds::ANY } };
    if *steps == 0 {
        return Kinds::ANY;
    }
    *steps -= 1;
    let mut all = Kinds::ANY;
    for (key, value) in map {
        let mut inner = |schema: &Value| kinds_within(root, schema, steps);
        let found = match (key.as_str(), value) {
            ("$ref", Value::String(to)) => resolve(root, to).map_or(Kinds::ANY, inner),
            ("type", Value::Array(names)) => Kinds::any_of(names.iter().map(Kinds::named)),
            ("type", name) => Kinds::named(name),
            ("const", value) => Kinds::of(value),
            ("enum", Value::Array(values)) => Kinds::any_of(values.iter().map(Kinds::of)),
            ("anyOf" | "oneOf", Value::Array(schemas)) => Kinds::any_of(schemas.iter().map(inner)),
            ("allOf", Value::Array(schemas)) => Kinds(schemas.iter().fold(Kinds::ANY.0, |all, one| all & inner(one).0)),
            _ => continue,
        };
        all = Kinds(all.0 & found.0);
    }
    all
}

/// `schema`, which stands in `root`, as a document of its own: what it refers to is in its `$defs`, and formats that are
/// not known are left out.
///
/// # Errors
/// A reference that leads nowhere.
pub fn standalone(root: &Value, schema: &Value) -> Result<Value, String> {
    let mut copier = Copier { numbers: HashMap::new(), waiting: Vec::new() };
    let mut out = match copier.copy(schema) {
        Value::Object(map) => map,
        Value::Bool(true) => Map::new(),
        other => return Ok(other),
    };
    for key in ["$schema", "x-guidance"] {
        if let Some(value) = schema.get(key) {
            out.insert(key.to_owned(), value.clone());
        }
    }
    let mut definitions = Map::new();
    while let Some((number, reference)) = copier.waiting.pop() {
        let target = resolve(root, reference).ok_or_else(|| {
            let reference: String = reference.chars().take(100).collect();
            format!("$ref {reference:?} leads nowhere in its schema; needed is \"#\" or \"#/PATH\"")
        })?;
        definitions.insert(number.to_string(), copier.copy(target));
    }
    if !definitions.is_empty() {
        out.insert("$defs".to_owned(), Value::Object(definitions));
    }
    Ok(Value::Object(out))
}

/// A schema whose JSON has one blank after commas and colons and no other, and no keys but those that are declared: small
/// models write white space and keys without end where they may.
pub fn one_line(mut schema: Value) -> Value {
    if schema == Value::Bool(true) {
        schema = json!({});
    }
    if !is_composed(&schema) {
        close(&mut schema);
    }
    if let Value::Object(map) = &mut schema {
        let style = json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
        map.entry("x-guidance").or_insert(style);
    }
    schema
}

/// Whether several schemas speak of one object, so that one alone cannot tell which keys it may have.
fn is_composed(schema: &Value) -> bool {
    const COMPOSING: [&str; 6] =
        ["not", "if", "dependentSchemas", "dependencies", "unevaluatedProperties", "minProperties"];
    match schema {
        Value::Array(list) => list.iter().any(is_composed),
        Value::Object(map) => {
            let has = |name: &&str| map.contains_key(*name);
            let speaks = ["properties", "required"].iter().any(has);
            let several = map.get("allOf").and_then(Value::as_array).is_some_and(|all| all.len() > 1);
            several
                || COMPOSING.iter().any(has)
                || (speaks && ["$ref", "allOf", "anyOf", "oneOf"].iter().any(has))
                || map.values().any(is_composed)
        }
        _ => false,
    }
}

/// Objects that say which keys they have, and nothing of others, have no others.
fn close(schema: &mut Value) {
    let Value::Object(map) = schema else { return };
    for (key, value) in map.iter_mut() {
        let key = key.as_str();
        match value {
            Value::Object(schemas) if key == "$defs" || NAMED.contains(&key) => schemas.values_mut().for_each(close),
            Value::Array(schemas) if INNER.contains(&key) => schemas.iter_mut().for_each(close),
            schema if INNER.contains(&key) => close(schema),
            _ => {}
        }
    }
    let Some(declared) = map.get("properties").and_then(Value::as_object).filter(|all| !all.is_empty()) else { return };
    let is_declared = |name: &Value| name.as_str().is_some_and(|name| declared.contains_key(name));
    let required = map.get("required").and_then(Value::as_array);
    let is_whole = required.is_none_or(|names| names.iter().all(is_declared));
    if is_whole && !map.contains_key("patternProperties") {
        map.entry("additionalProperties").or_insert(Value::Bool(false));
    }
}

struct Copier<'a> {
    /// The number of each reference that was met.
    numbers: HashMap<&'a str, usize>,
    /// Those whose targets are not copied yet.
    waiting: Vec<(usize, &'a str)>,
}

impl<'a> Copier<'a> {
    /// A copy whose references lead to `$defs`. (JSON of a request has no more than 128 levels.)
    fn copy(&mut self, schema: &'a Value) -> Value {
        let Value::Object(map) = schema else { return schema.clone() };
        let mut out = Map::new();
        for (key, value) in map {
            let copied = match (key.as_str(), value) {
                ("$ref", Value::String(reference)) => {
                    let next = self.numbers.len();
                    let number = *self.numbers.entry(reference).or_insert_with(|| {
                        self.waiting.push((next, reference));
                        next
                    });
                    json!(format!("#/$defs/{number}"))
                }
                ("format", Value::String(format)) if !FORMATS.contains(&format.as_str()) => continue,
                (key, Value::Array(schemas)) if INNER.contains(&key) => {
                    schemas.iter().map(|schema| self.copy(schema)).collect()
                }
                (key, schema) if INNER.contains(&key) => self.copy(schema),
                (key, Value::Object(schemas)) if NAMED.contains(&key) => {
                    Value::Object(schemas.iter().map(|(name, schema)| (name.clone(), self.copy(schema))).collect())
                }
                (key, value) if PLAIN.contains(&key) || NAMED.contains(&key) || key == "type" => value.clone(),
                // Definitions come along by the references to them; of remarks nothing is needed.
                ("$id" | "id" | "$schema" | "x-guidance" | "$defs" | "definitions", _) => continue,
                (_, Value::Array(_) | Value::Object(_)) => continue,
                (_, value) => value.clone(),
            };
            out.insert(key.clone(), copied);
        }
        Value::Object(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_lead_to_where_json_pointer_says() {
        let root = json!({"$id": "https://a.example/s", "$defs": {"a/b": {"type": "null"}, "c d~": [1, {"x": true}]}});
        for (reference, want) in [
            ("#", Some(&root)),
            ("#/$defs/a~1b", Some(&root["$defs"]["a/b"])),
            ("#/$defs/c%20d~0/1/x", Some(&json!(true))),
            ("https://a.example/s#/$defs/a~1b", Some(&root["$defs"]["a/b"])),
            ("#/$defs/none", None),
            ("#anchor", None),
            ("https://b.example/#", None),
            ("#/%zz", None),
        ] {
            assert_eq!(resolve(&root, reference), want, "{reference}");
        }
    }

    #[test]
    fn kinds_are_seen_through_references_and_choices() {
        let root = json!({"$defs": {
            "text": {"type": "string", "maxLength": 3},
            "maybe": {"anyOf": [{"$ref": "#/$defs/text"}, {"type": "null"}]},
            "ring": {"anyOf": [{"$ref": "#/$defs/ring"}, {"$ref": "#/$defs/ring"}]},
        }});
        let either = |a: Kinds, b: Kinds| Kinds(a.0 | b.0);
        for (schema, want) in [
            (json!({"$ref": "#/$defs/text"}), Kinds::STRING),
            (json!({"$ref": "#/$defs/maybe"}), either(Kinds::STRING, Kinds::NULL)),
            (json!({"enum": ["7", "8"]}), Kinds::STRING),
            (json!({"enum": [7, "8"], "type": "string"}), Kinds::STRING),
            (json!({"type": ["integer", "null"]}), either(Kinds::NUMBER, Kinds::NULL)),
            (json!({"allOf": [{"$ref": "#/$defs/maybe"}, {"type": "string"}]}), Kinds::STRING),
            (json!({"const": true}), Kinds::BOOLEAN),
            (json!({"oneOf": [{"type": "array"}, {"type": "object"}]}), either(Kinds::ARRAY, Kinds::OBJECT)),
            (json!({"description": "x"}), Kinds::ANY),
            (json!({"$ref": "#/$defs/ring"}), Kinds::ANY),
            (json!({"$ref": "#/nowhere"}), Kinds::ANY),
            (json!(true), Kinds::ANY),
        ] {
            assert_eq!(kinds(&root, &schema), want, "{schema}");
        }
    }

    #[test]
    fn a_part_stands_alone_with_what_it_refers_to() {
        let root = json!({
            "properties": {
                "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
                "format": {"$ref": "#/$defs/F", "description": "d"},
            },
            "$defs": {"F": {"type": "string", "format": "color", "default": {"format": "x"}}, "unused": {"type": "null"}},
            "required": ["next"],
        });
        let part = standalone(&root, &root["properties"]["format"]).unwrap();
        assert_eq!(part, json!({"$ref": "#/$defs/0", "description": "d", "$defs": {"0": {"type": "string"}}}));
        let whole = standalone(&root, &root["properties"]["next"]).unwrap();
        assert_eq!(whole["anyOf"][0]["$ref"], "#/$defs/0");
        assert_eq!(
            whole["$defs"]["0"]["properties"]["next"],
            json!({"anyOf": [{"$ref": "#/$defs/0"}, {"type": "null"}]})
        );
        assert_eq!(whole["$defs"]["0"]["required"], json!(["next"]));
        let kept = json!({"enum": [{"$ref": "#/x"}], "format": "date", "properties": {"$ref": {"type": "string"}}});
        assert_eq!(standalone(&kept, &kept).unwrap(), kept);
        let wrong = standalone(&root, &json!({"items": {"$ref": "#/$defs/G"}})).unwrap_err();
        assert!(wrong.contains("#/$defs/G") && wrong.contains("leads nowhere"), "{wrong}");
    }

    #[test]
    fn objects_have_the_keys_that_they_say() {
        let a = json!({"properties": {"a": {"type": "null"}}, "required": ["a"]});
        let is_closed =
            |schema: Value, path: &str| one_line(schema).pointer(path).unwrap()["additionalProperties"] == false;
        assert!(is_closed(a.clone(), ""));
        assert!(is_closed(json!({"items": {"anyOf": [a, {"type": "null"}]}}), "/items/anyOf/0"));
        assert!(is_closed(json!({"$ref": "#/$defs/0", "$defs": {"0": a}}), "/$defs/0"));
        assert!(is_closed(json!({"properties": {"properties": a, "b": {"allOf": [a]}}}), "/properties/b/allOf/0"));
        for open in [
            json!({"type": "object"}),
            json!({"properties": {"a": {}}, "additionalProperties": true}),
            json!({"properties": {"a": {}}, "patternProperties": {"b": {}}}),
            json!({"properties": {"a": {}}, "required": ["a", "b"]}),
            json!({"properties": {"a": {}}, "minProperties": 2}),
            json!({"properties": {"a": {}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}),
        ] {
            assert!(!is_closed(open.clone(), ""), "{open}");
        }
        assert!(!is_closed(json!({"allOf": [a, {"properties": {"b": {}}}]}), "/allOf/0"));
    }
}
