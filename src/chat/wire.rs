//! What a template gets to see, as bytes for the process that renders it: a byte says what a value is; numbers have eight
//! bytes, texts and lists their length before them. (JSON would bring its reader into every build, and that reads no more than
//! 128 levels.)

use minijinja::value::Value;
use serde_json::Value as Json;

const NULL: u8 = 0;
const FALSE: u8 = 1;
const TRUE: u8 = 2;
const UNSIGNED: u8 = 3;
const SIGNED: u8 = 4;
const FLOAT: u8 = 5;
const TEXT: u8 = 6;
const LIST: u8 = 7;
const MAP: u8 = 8;

/// Writes a number of eight bytes.
pub fn number(number: u64, out: &mut Vec<u8>) {
    out.extend(number.to_ne_bytes());
}

/// Writes a text with its length.
pub fn text(text: &str, out: &mut Vec<u8>) {
    number(text.len() as u64, out);
    out.extend(text.as_bytes());
}

/// Writes a value.
pub fn value(json: &Json, out: &mut Vec<u8>) {
    let (kind, bits) = match json {
        Json::Null => return out.push(NULL),
        Json::Bool(is) => return out.push(if *is { TRUE } else { FALSE }),
        Json::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(unsigned), _) => (UNSIGNED, unsigned),
            (None, Some(signed)) => (SIGNED, signed.cast_unsigned()),
            (None, None) => (FLOAT, number.as_f64().unwrap_or(f64::NAN).to_bits()),
        },
        Json::String(text) => (TEXT, text.len() as u64),
        Json::Array(items) => (LIST, items.len() as u64),
        Json::Object(map) => (MAP, map.len() as u64),
    };
    out.push(kind);
    number(bits, out);
    match json {
        Json::String(text) => out.extend(text.as_bytes()),
        Json::Array(items) => items.iter().for_each(|item| value(item, out)),
        Json::Object(map) => map.iter().for_each(|(key, item)| {
            text(key, out);
            value(item, out);
        }),
        _ => {}
    }
}

/// What was written, from the front. Each is `None` where the rest is something else.
pub struct WireReader<'a>(pub &'a [u8]);

impl<'a> WireReader<'a> {
    fn bytes(&mut self, n: u64) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(usize::try_from(n).ok()?)?;
        self.0 = rest;
        Some(bytes)
    }

    /// The next number.
    pub fn number(&mut self) -> Option<u64> {
        self.bytes(8)?.try_into().ok().map(u64::from_ne_bytes)
    }

    /// The next text.
    pub fn text(&mut self) -> Option<&'a str> {
        let n = self.number()?;
        std::str::from_utf8(self.bytes(n)?).ok()
    }

    /// The next value, as a template sees it.
    pub fn value(&mut self) -> Option<Value> {
        let kind = *self.bytes(1)?.first()?;
        Some(match kind {
            NULL => Value::from(()),
            FALSE | TRUE => Value::from(kind == TRUE),
            UNSIGNED => Value::from(self.number()?),
            SIGNED => Value::from(self.number()?.cast_signed()),
            FLOAT => Value::from(f64::from_bits(self.number()?)),
            TEXT => Value::from(self.text()?),
            LIST => {
                let n = self.number()?;
                (0..n).map(|_| self.value()).collect::<Option<Vec<_>>>()?.into_iter().collect()
            }
            MAP => {
                let n = self.number()?;
                Value::from_pairs(self.pairs(n)?)
            }
            _ => return None,
        })
    }

    /// The next `n` texts, each with a value.
    pub fn pairs(&mut self, n: u64) -> Option<Vec<(&'a str, Value)>> {
        (0..n).map(|_| Some((self.text()?, self.value()?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_what_was_written() {
        let json = serde_json::json!({
            "b": [null, true, false, 0, u64::MAX, -1, i64::MIN, 0.1, -2.5e300, 1.0, "", "h\u{e9}\u{0}"],
            "a": {"": [], "x": {}, "nested": [[[{"y": [1]}]]]},
        });
        let mut bytes = Vec::new();
        value(&json, &mut bytes);
        let read = WireReader(&bytes).value().unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), json.to_string());
        assert!((0..bytes.len()).all(|n| WireReader(&bytes[..n]).value().is_none()), "what was cut off is nothing");
    }
}
