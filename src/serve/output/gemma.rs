//! Tool calls as Gemma 4 writes them: `call:NAME{KEY:VALUE,...}`, where a value is text between `<|"|>`, a number, `true`,
//! `false`, `null`, `[VALUE,...]` or `{KEY:VALUE,...}`, and a key stands as it is or between `<|"|>`.

use serde_json::{Map, Value};

use super::pieces::Call;

/// What stands around text.
const QUOTE: &str = "<|\"|>";

/// Deepest nesting, as that of JSON that is read.
const DEPTH_MAX: usize = 128;

/// The call that is the whole of `text`; `None` if that has another form.
pub fn parse(text: &str) -> Option<Call> {
    let (name, arguments) = text.trim().strip_prefix("call:")?.split_once('{')?;
    let name = name.trim();
    let mut rest = arguments;
    let arguments = object(&mut rest, 0)?;
    (rest.trim().is_empty() && !name.is_empty())
        .then(|| Call { name: name.to_owned(), arguments: arguments.to_string() })
}

/// The name of a call that breaks off.
pub fn name_in(text: &str) -> Option<String> {
    let (name, _) = text.trim().strip_prefix("call:")?.split_once('{')?;
    Some(name.trim().to_owned())
}

fn strip(rest: &mut &str, mark: &str) -> Option<()> {
    *rest = rest.trim_start().strip_prefix(mark)?;
    Some(())
}

/// Text up to the next quote.
fn quoted(rest: &mut &str) -> Option<String> {
    let (text, after) = rest.split_once(QUOTE)?;
    *rest = after;
    Some(text.to_owned())
}

/// Pairs up to the bracket that ends them.
fn object(rest: &mut &str, depth: usize) -> Option<Value> {
    let mut pairs = Map::new();
    if strip(rest, "}").is_some() {
        return Some(Value::Object(pairs));
    }
    loop {
        let key = match strip(rest, QUOTE) {
            Some(()) => quoted(rest)?,
            None => {
                let end = rest.find(':')?;
                let key = rest[..end].trim();
                *rest = &rest[end..];
                key.to_owned()
            }
        };
        strip(rest, ":")?;
        pairs.insert(key, value(rest, depth + 1)?);
        if strip(rest, ",").is_none() {
            strip(rest, "}")?;
            return Some(Value::Object(pairs));
        }
    }
}

fn array(rest: &mut &str, depth: usize) -> Option<Value> {
    let mut values = Vec::new();
    if strip(rest, "]").is_some() {
        return Some(Value::Array(values));
    }
    loop {
        values.push(value(rest, depth + 1)?);
        if strip(rest, ",").is_none() {
            strip(rest, "]")?;
            return Some(Value::Array(values));
        }
    }
}

fn value(rest: &mut &str, depth: usize) -> Option<Value> {
    if depth > DEPTH_MAX {
        return None;
    }
    if strip(rest, QUOTE).is_some() {
        return quoted(rest).map(Value::String);
    }
    if strip(rest, "{").is_some() {
        return object(rest, depth);
    }
    if strip(rest, "[").is_some() {
        return array(rest, depth);
    }
    let end = rest.find([',', '}', ']'])?;
    let word = rest[..end].trim();
    *rest = &rest[end..];
    serde_json::from_str(word).ok()
}
