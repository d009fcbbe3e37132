//! Python's methods on strings, mappings and lists, as far as chat templates call them.

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{ValueKind, from_args};
use minijinja::{Error, ErrorKind, Value};

use super::bounds::{Bound, Meter, VALUE_BYTES_MAX};
use super::filters::{CharSet, formatted, replaced, sizes};
use super::value::{NODE_BYTES, size};

/// Most parts of a text: more are a list that no value may be.
const PARTS_MAX: usize = VALUE_BYTES_MAX / NODE_BYTES;

/// What minijinja calls for a method it does not have.
pub fn call(meter: &Meter, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    // What it is given is looked at once.
    meter.tick(size(value)?.bytes + sizes(args)?)?;
    match (value.as_str(), value.kind()) {
        (Some(text), _) => string(meter, text, method, args),
        (None, ValueKind::Map) => mapping(value, method, args),
        (None, ValueKind::Seq | ValueKind::Iterable) => list(value, method, args),
        _ => Err(unknown(value, method)),
    }
}

/// `is iterable` as Python has it: strings are, none is not.
pub fn is_iterable(value: &Value) -> bool {
    is_sequence(value) || matches!(value.kind(), ValueKind::Iterable | ValueKind::Undefined)
}

/// `is sequence` as Jinja2 has it: what has a length and items, strings and mappings among them.
pub fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String)
}

fn unknown(value: &Value, method: &str) -> Error {
    Error::new(ErrorKind::UnknownMethod, format!("{} has no method named {method}", value.kind()))
}

fn strip_chars(args: &[Value]) -> Result<impl Fn(char) -> bool, Error> {
    let (chars,): (Option<&str>,) = from_args(args)?;
    let set = chars.map(CharSet::new);
    Ok(move |c: char| set.as_ref().map_or(c.is_whitespace(), |set| set.contains(c)))
}

/// `affix` is a string or a list of them.
fn any_affix(affix: &Value, matches: impl Fn(&str) -> bool) -> Result<Value, Error> {
    match affix.as_str() {
        Some(one) => Ok(matches(one).into()),
        None => Ok(affix.try_iter()?.any(|one| one.as_str().is_some_and(&matches)).into()),
    }
}

fn string(meter: &Meter, text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    Ok(match method {
        "startswith" => any_affix(from_args::<(&Value,)>(args)?.0, |affix| text.starts_with(affix))?,
        "endswith" => any_affix(from_args::<(&Value,)>(args)?.0, |affix| text.ends_with(affix))?,
        "strip" => text.trim_matches(strip_chars(args)?).into(),
        "lstrip" => text.trim_start_matches(strip_chars(args)?).into(),
        "rstrip" => text.trim_end_matches(strip_chars(args)?).into(),
        "removeprefix" => {
            let (affix,): (&str,) = from_args(args)?;
            text.strip_prefix(affix).unwrap_or(text).into()
        }
        "removesuffix" => {
            let (affix,): (&str,) = from_args(args)?;
            text.strip_suffix(affix).unwrap_or(text).into()
        }
        "split" | "rsplit" => {
            let (separator, most): (Option<&str>, Option<i64>) = from_args(args)?;
            split(text, separator, most, method == "rsplit")?
        }
        "splitlines" => {
            let () = from_args(args)?;
            listed(text.lines())?.into_iter().collect()
        }
        "replace" => {
            let (old, new, most): (&str, &str, Option<i64>) = from_args(args)?;
            meter.work(replaced(text, old, new))?;
            match most.and_then(|n| usize::try_from(n).ok()) {
                Some(most) => text.replacen(old, new, most).into(),
                None => text.replace(old, new).into(),
            }
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let first = method == "partition";
            match if first { text.split_once(separator) } else { text.rsplit_once(separator) } {
                Some((before, after)) => Value::from_iter([before, separator, after]),
                None if first => Value::from_iter([text, "", ""]),
                None => Value::from_iter(["", "", text]),
            }
        }
        "format" => {
            meter.work(formatted(text, args, '{')?)?;
            format(FormatStyle::StrFormat, text, args)?.into()
        }
        "upper" => text.to_uppercase().into(),
        "lower" => text.to_lowercase().into(),
        "title" => title(text).into(),
        "capitalize" => capitalize(text).into(),
        "find" => {
            let (needle,): (&str,) = from_args(args)?;
            text.find(needle).map_or(Value::from(-1), |at| text[..at].chars().count().into())
        }
        "rfind" => {
            let (needle,): (&str,) = from_args(args)?;
            text.rfind(needle).map_or(Value::from(-1), |at| text[..at].chars().count().into())
        }
        "count" => {
            let (needle,): (&str,) = from_args(args)?;
            text.matches(needle).count().into()
        }
        "join" => {
            let (parts,): (&Value,) = from_args(args)?;
            let bytes = parts.len().unwrap_or(0).saturating_mul(text.len());
            meter.work(bytes.saturating_add(size(parts)?.bytes))?;
            let parts: Vec<String> = parts.try_iter()?.map(|part| part.to_string()).collect();
            parts.join(text).into()
        }
        "isdigit" => (!text.is_empty() && text.chars().all(|c| c.is_ascii_digit())).into(),
        "isalpha" => (!text.is_empty() && text.chars().all(char::is_alphabetic)).into(),
        "isalnum" => (!text.is_empty() && text.chars().all(char::is_alphanumeric)).into(),
        "isspace" => (!text.is_empty() && text.chars().all(char::is_whitespace)).into(),
        "isupper" => (text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase)).into(),
        "islower" => (text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase)).into(),
        _ => return Err(unknown(&text.into(), method)),
    })
}

/// As many parts as a list may have, and no more.
fn listed<'a>(parts: impl Iterator<Item = &'a str>) -> Result<Vec<&'a str>, Error> {
    let parts: Vec<&str> = parts.take(PARTS_MAX + 1).collect();
    if parts.len() > PARTS_MAX { Err(Bound::Size.into()) } else { Ok(parts) }
}

/// Python's split: without a separator at runs of white space, with one at each; at most `most` cuts.
fn split(text: &str, separator: Option<&str>, most: Option<i64>, from_end: bool) -> Result<Value, Error> {
    let most = most.and_then(|n| usize::try_from(n).ok());
    let pieces = most.map_or(usize::MAX, |n| n.saturating_add(1));
    let parts: Vec<&str> = match (separator, from_end) {
        (Some(""), _) => return Err(Error::new(ErrorKind::InvalidOperation, "split: the separator is empty")),
        (Some(separator), false) => listed(text.splitn(pieces, separator))?,
        (Some(separator), true) => {
            let mut parts = listed(text.rsplitn(pieces, separator))?;
            parts.reverse();
            parts
        }
        (None, _) if most.is_none() => listed(text.split_whitespace())?,
        (None, false) => {
            let mut rest = text.trim_start();
            let mut words = 1;
            let next = || {
                let at = if words < pieces { rest.find(char::is_whitespace) } else { None };
                let (part, tail) = rest.split_at(at.unwrap_or(rest.len()));
                (words, rest) = (words + 1, tail.trim_start());
                Some(part).filter(|part| !part.is_empty())
            };
            listed(std::iter::from_fn(next))?
        }
        (None, true) => return Err(Error::new(ErrorKind::InvalidOperation, "rsplit: give a separator")),
    };
    Ok(parts.into_iter().map(Value::from).collect())
}

fn title(text: &str) -> String {
    let mut in_word = false;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if in_word {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        in_word = c.is_alphabetic();
    }
    out
}

fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().chain(chars.flat_map(char::to_lowercase)).collect(),
        None => String::new(),
    }
}

fn mapping(value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    match method {
        "get" => {
            let (key, default): (&Value, Option<&Value>) = from_args(args)?;
            let found = value.get_item(key)?;
            let none = Value::from(());
            Ok(if found.is_undefined() { default.unwrap_or(&none).clone() } else { found })
        }
        "keys" => {
            let () = from_args(args)?;
            Ok(value.try_iter()?.collect())
        }
        "values" => {
            let () = from_args(args)?;
            value.try_iter()?.map(|key| value.get_item(&key)).collect()
        }
        "items" => {
            let () = from_args(args)?;
            value.try_iter()?.map(|key| Ok(Value::from_iter([key.clone(), value.get_item(&key)?]))).collect()
        }
        _ => Err(unknown(value, method)),
    }
}

fn list(value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    match method {
        "count" => {
            let (wanted,): (&Value,) = from_args(args)?;
            Ok(value.try_iter()?.filter(|item| item == wanted).count().into())
        }
        "index" => {
            let (wanted,): (&Value,) = from_args(args)?;
            let absent = || Error::new(ErrorKind::InvalidOperation, "index: the list has no such element");
            value.try_iter()?.position(|item| item == *wanted).map(Value::from).ok_or_else(absent)
        }
        _ => Err(unknown(value, method)),
    }
}
