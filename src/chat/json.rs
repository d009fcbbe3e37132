//! `tojson` as Hugging Face defines it: Python's `json.dumps` with `ensure_ascii=False` unless asked for, which puts a
//! blank after commas and colons and escapes nothing for HTML.

use std::io::{self, Write};

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};
use serde::Serialize as _;
use serde_json::ser::Formatter;

/// Most blanks per level; more is a fault of the template.
const INDENT_MAX: usize = 16;

/// What `json.dumps` was asked for.
struct Dumps {
    between_items: String,
    between_key_and_value: String,
    /// Blanks per level, each item on its own line; `None` is one line for all.
    indent: Option<String>,
    ensure_ascii: bool,
    level: usize,
    /// The array or object that is being written has something in it.
    filled: bool,
}

impl Dumps {
    fn begin_item<W: ?Sized + Write>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
        if !first {
            to.write_all(self.between_items.as_bytes())?;
        }
        self.new_line(to)
    }

    fn new_line<W: ?Sized + Write>(&self, to: &mut W) -> io::Result<()> {
        let Some(indent) = &self.indent else { return Ok(()) };
        to.write_all(b"\n")?;
        (0..self.level).try_for_each(|_| to.write_all(indent.as_bytes()))
    }

    fn begin<W: ?Sized + Write>(&mut self, to: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.level += 1;
        self.filled = false;
        to.write_all(bracket)
    }

    fn end<W: ?Sized + Write>(&mut self, to: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.level -= 1;
        if self.filled {
            self.new_line(to)?;
        }
        self.filled = true;
        to.write_all(bracket)
    }
}

impl Formatter for Dumps {
    fn begin_array<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.begin(to, b"[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.end(to, b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
        self.begin_item(to, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.filled = true;
        Ok(())
    }

    fn begin_object<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.begin(to, b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.end(to, b"}")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
        self.begin_item(to, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        to.write_all(self.between_key_and_value.as_bytes())
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.filled = true;
        Ok(())
    }

    fn write_f64<W: ?Sized + Write>(&mut self, to: &mut W, value: f64) -> io::Result<()> {
        to.write_all(python_float(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + Write>(&mut self, to: &mut W, fragment: &str) -> io::Result<()> {
        if !self.ensure_ascii {
            return to.write_all(fragment.as_bytes());
        }
        for c in fragment.chars() {
            if matches!(c, ' '..='~') {
                to.write_all(&[c as u8])?;
            } else {
                c.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(to, "\\u{unit:04x}"))?;
            }
        }
        Ok(())
    }
}

/// A number as Python's `repr` has it: shortest digits, an exponent of two digits outside 1e-4 to 1e16.
pub fn python_float(value: f64) -> String {
    if !value.is_finite() {
        let sign = if value.is_sign_negative() && !value.is_nan() { "-" } else { "" };
        return format!("{sign}{}", if value.is_nan() { "nan" } else { "inf" });
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent @ ..=-5) => format!("{digits}e-{:02}", -exponent),
        Ok(exponent @ 16..) => format!("{digits}e+{exponent:02}"),
        _ => format!("{value:?}"),
    }
}

/// The filter.
pub fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let bad = |e: &dyn std::fmt::Display| Error::new(ErrorKind::InvalidOperation, format!("tojson: {e}"));
    let indent: Option<Value> = options.get("indent")?;
    let indent = match indent.filter(|indent| !indent.is_none()) {
        None => None,
        Some(indent) => Some(match (indent.as_str(), indent.as_i64().and_then(|n| usize::try_from(n).ok())) {
            (Some(text), _) => text.to_owned(),
            (None, Some(blanks)) => " ".repeat(blanks.min(INDENT_MAX)),
            (None, None) => return Err(bad(&"indent is neither a number nor a string")),
        }),
    };
    let separators: Option<Value> = options.get("separators")?;
    let (between_items, between_key_and_value) = match separators.filter(|pair| !pair.is_none()) {
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
        Some(pair) => {
            let text = |at: usize| pair.get_item_by_index(at).map(|part| part.to_string());
            (text(0)?, text(1)?)
        }
    };
    let ensure_ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let mut tree = serde_json::to_value(value).map_err(|e| bad(&e))?;
    if sort_keys {
        tree.sort_all_objects();
    }
    let dumps = Dumps { between_items, between_key_and_value, indent, ensure_ascii, level: 0, filled: false };
    let mut text = Vec::new();
    tree.serialize(&mut serde_json::Serializer::with_formatter(&mut text, dumps)).map_err(|e| bad(&e))?;
    String::from_utf8(text).map_err(|e| bad(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_as_python_writes_them() {
        for (value, want) in [
            (2.5, "2.5"),
            (1.0, "1.0"),
            (1e16, "1e+16"),
            (1.5e-7, "1.5e-07"),
            (1e-4, "0.0001"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(python_float(value), want);
        }
    }
}
