//! Values that were written without quotes, by what a tool's schema says of them.

use serde_json::Value;

use crate::serve::schema::{Kinds, followed, kinds};

/// The schema of the parameters of a tool.
fn parameters<'a>(tools: &'a [Value], tool: &str) -> Option<&'a Value> {
    let functions = tools.iter().filter_map(|tool| tool.get("function"));
    functions.into_iter().find(|function| function["name"] == tool)?.get("parameters")
}

/// The kinds of values that the parameter `key` of a tool may have.
pub fn allowed(tools: &[Value], tool: &str, key: &str) -> Kinds {
    let Some(root) = parameters(tools, tool) else { return Kinds::ANY };
    let object = followed(root, root);
    let schema = object.get("properties").and_then(|all| all.get(key)).or(object.get("additionalProperties"));
    schema.map_or(Kinds::ANY, |schema| kinds(root, schema))
}

/// The value that `text` stands for where these kinds are allowed.
pub fn typed(allowed: Kinds, text: &str) -> Value {
    let as_text = || Value::String(text.to_owned());
    if allowed == Kinds::STRING {
        return as_text();
    }
    let word = text.trim();
    let value = match word {
        // As Python writes them.
        "True" | "False" if allowed.has(Kinds::BOOLEAN) && !allowed.has(Kinds::STRING) => (word == "True").into(),
        "None" if allowed.has(Kinds::NULL) && !allowed.has(Kinds::STRING) => Value::Null,
        _ => serde_json::from_str(word).unwrap_or_else(|_| as_text()),
    };
    // What may be a text, and nothing that it looks like, is one.
    if allowed.has(Kinds::STRING) && !allowed.has(Kinds::of(&value)) { as_text() } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_value_is_what_the_schema_says() {
        let tools = [json!({"type": "function", "function": {"name": "f", "parameters": {
            "$ref": "#/$defs/Arguments",
            "$defs": {
                "Arguments": {
                    "properties": {
                        "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                        "code": {"$ref": "#/$defs/Code"},
                        "key": {"enum": ["7", "8"]},
                        "n": {"type": ["integer", "null"]},
                        "flag": {"type": "boolean"},
                        "list": {"type": "array"},
                        "either": {"type": ["string", "integer"]},
                        "free": {"description": "anything"},
                    },
                    "additionalProperties": {"type": "string"},
                },
                "Code": {"allOf": [{"type": "string", "minLength": 1}]},
            },
        }}})];
        for (key, text, want) in [
            ("maybe", "42", json!("42")),
            ("maybe", "null", json!(null)),
            ("maybe", "{\"a\": 1}", json!("{\"a\": 1}")),
            ("code", "7", json!("7")),
            ("code", "true", json!("true")),
            ("key", "7", json!("7")),
            ("n", "7", json!(7)),
            ("n", " None ", json!(null)),
            ("n", "seven", json!("seven")),
            ("flag", "True", json!(true)),
            ("list", "[1, \"x\"]", json!([1, "x"])),
            ("either", "7", json!(7)),
            ("either", "7a", json!("7a")),
            ("either", "[7]", json!("[7]")),
            ("free", "7", json!(7)),
            ("free", "x y", json!("x y")),
            ("other", "7", json!("7")),
        ] {
            assert_eq!(typed(allowed(&tools, "f", key), text), want, "{key}: {text}");
        }
        assert_eq!(typed(allowed(&tools, "g", "x"), "7"), json!(7), "a tool that is not described");
    }
}
