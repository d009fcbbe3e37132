//! Python's methods on strings, mappings and lists, as far as chat templates call them.

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Kwargs, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

/// What minijinja calls for a method it does not have.
pub fn call(_: &mut State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    match (value.as_str(), value.kind()) {
        (Some(text), _) => string(text, method, args),
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

fn strip_chars(chars: Option<&str>) -> impl Fn(char) -> bool + '_ {
    move |c| chars.map_or(c.is_whitespace(), |set| set.contains(c))
}

/// `affix` is a string or a list of them.
fn any_affix(affix: &Value, matches: impl Fn(&str) -> bool) -> Result<Value, Error> {
    match affix.as_str() {
        Some(one) => Ok(matches(one).into()),
        None => Ok(affix.try_iter()?.any(|one| one.as_str().is_some_and(&matches)).into()),
    }
}

fn string(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    Ok(match method {
        "startswith" => any_affix(from_args::<(&Value,)>(args)?.0, |affix| text.starts_with(affix))?,
        "endswith" => any_affix(from_args::<(&Value,)>(args)?.0, |affix| text.ends_with(affix))?,
        "strip" => text.trim_matches(strip_chars(from_args::<(Option<&str>,)>(args)?.0)).into(),
        "lstrip" => text.trim_start_matches(strip_chars(from_args::<(Option<&str>,)>(args)?.0)).into(),
        "rstrip" => text.trim_end_matches(strip_chars(from_args::<(Option<&str>,)>(args)?.0)).into(),
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
            let (keep_ends, further): (Option<bool>, Kwargs) = from_args(args)?;
            let keep_ends = match keep_ends {
                Some(keeps) => keeps,
                None => further.get::<Option<bool>>("keepends")?.unwrap_or(false),
            };
            further.assert_all_used()?;
            lines(text, keep_ends).collect()
        }
        "replace" => {
            let (old, new, most): (&str, &str, Option<i64>) = from_args(args)?;
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
        "format" => format(FormatStyle::StrFormat, text, args)?.into(),
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

/// The lines of a text, by all that Python takes for the end of one.
fn lines(mut text: &str, keep_ends: bool) -> impl Iterator<Item = Value> {
    const ENDS: [char; 10] =
        ['\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}'];
    std::iter::from_fn(move || {
        let at = text.find(ENDS).unwrap_or(text.len());
        let end = match text[at..].chars().next() {
            Some('\r') if text[at..].starts_with("\r\n") => at + 2,
            Some(c) => at + c.len_utf8(),
            None if text.is_empty() => return None,
            None => at,
        };
        let line = &text[..if keep_ends { end } else { at }];
        text = &text[end..];
        Some(line.into())
    })
}

/// Python's split: without a separator at runs of white space, with one at each; at most `most` cuts.
fn split(text: &str, separator: Option<&str>, most: Option<i64>, from_end: bool) -> Result<Value, Error> {
    let most = most.and_then(|n| usize::try_from(n).ok());
    let pieces = most.map_or(usize::MAX, |n| n.saturating_add(1));
    let parts: Vec<&str> = match (separator, from_end) {
        (Some(""), _) => return Err(Error::new(ErrorKind::InvalidOperation, "split: the separator is empty")),
        (Some(separator), false) => text.splitn(pieces, separator).collect(),
        (Some(separator), true) => {
            let mut parts: Vec<&str> = text.rsplitn(pieces, separator).collect();
            parts.reverse();
            parts
        }
        (None, _) if most.is_none() => text.split_whitespace().collect(),
        (None, false) => {
            let mut parts = Vec::new();
            let mut rest = text.trim_start();
            while parts.len() + 1 < pieces && !rest.is_empty() {
                let (part, tail) = rest.split_at(rest.find(char::is_whitespace).unwrap_or(rest.len()));
                parts.push(part);
                rest = tail.trim_start();
            }
            parts.extend(Some(rest).filter(|rest| !rest.is_empty()));
            parts
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
