//! From the text of a board to values: every key is read by its name, and any other is refused.

use std::fmt;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::BoardError;

/// A value of the text.
#[derive(Clone, Copy)]
pub struct Found<'t> {
    text: &'t str,
    value: &'t Spanned<DeValue<'t>>,
}

/// What can be read from a value.
pub trait FromBoard: Sized {
    /// Reads it.
    ///
    /// # Errors
    /// A value of another type, or one that is not known.
    fn read(found: &Found<'_>) -> Result<Self, BoardError>;
}

/// A table whose keys are known.
pub trait Section {
    /// Its keys.
    fn keys(&self) -> &'static [&'static str];
    /// Reads the value of one of them.
    ///
    /// # Errors
    /// As [`FromBoard::read`].
    fn set(&mut self, key: &str, found: &Found<'_>) -> Result<(), BoardError>;
}

/// A struct that is a [`Section`]: its fields are the keys.
macro_rules! section {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $key:ident: $of:ty,)* }) => {
        $(#[$about])*
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct $name {
            $($(#[$doc])* pub $key: $of,)*
        }

        impl Section for $name {
            fn keys(&self) -> &'static [&'static str] {
                &[$(stringify!($key)),*]
            }

            fn set(&mut self, key: &str, found: &Found<'_>) -> Result<(), BoardError> {
                match key {
                    $(stringify!($key) => self.$key = FromBoard::read(found)?,)*
                    _ => {}
                }
                Ok(())
            }
        }

        impl FromBoard for $name {
            fn read(found: &Found<'_>) -> Result<Self, BoardError> {
                let mut section = $name::default();
                found.fill(&mut section)?;
                Ok(section)
            }
        }
    };
}
pub(super) use section;

/// Reads a whole board into `section`.
///
/// # Errors
/// A text that is not TOML; as [`FromBoard::read`]; a key that is not known.
pub fn fill(text: &str, section: &mut dyn Section) -> Result<(), BoardError> {
    let table = DeTable::parse(text).map_err(|e| BoardError::Syntax {
        line: line(text, e.span().map_or(0, |span| span.start)),
        message: e.message().replace('\n', "; "),
    })?;
    fill_from(text, table.get_ref(), section)
}

fn fill_from(text: &str, table: &DeTable<'_>, section: &mut dyn Section) -> Result<(), BoardError> {
    for (key, value) in table {
        let name: &str = key.get_ref();
        if !section.keys().contains(&name) {
            return Err(unknown("key", name, section.keys(), line(text, key.span().start)));
        }
        section.set(name, &Found { text, value })?;
    }
    Ok(())
}

/// The line of a byte of the text, from 1.
fn line(text: &str, at: usize) -> usize {
    1 + text.as_bytes()[..at.min(text.len())].iter().filter(|&&byte| byte == b'\n').count()
}

fn unknown(kind: &'static str, found: &str, known: &[&str], line: usize) -> BoardError {
    let known = known.iter().map(|&known| known.to_owned()).collect();
    BoardError::Unknown { line, kind, found: found.to_owned(), known }
}

impl<'t> Found<'t> {
    /// The value.
    pub fn value(&self) -> &'t DeValue<'t> {
        self.value.get_ref()
    }

    /// The table that it is, into `section`.
    ///
    /// # Errors
    /// As [`fill`].
    pub fn fill(&self, section: &mut dyn Section) -> Result<(), BoardError> {
        match self.value() {
            DeValue::Table(table) => fill_from(self.text, table, section),
            _ => Err(self.invalid("type", "a table")),
        }
    }

    /// The text that it is.
    ///
    /// # Errors
    /// A value of another type.
    pub fn text(&self) -> Result<&'t str, BoardError> {
        match self.value() {
            DeValue::String(text) => Ok(text),
            _ => Err(self.invalid("type", "a string")),
        }
    }

    /// The whole number that it is, if it has 64 bits.
    pub fn integer(&self) -> Option<i64> {
        match self.value() {
            DeValue::Integer(digits) => i64::from_str_radix(digits.as_str(), digits.radix()).ok(),
            _ => None,
        }
    }

    /// The one of `known` that it names.
    ///
    /// # Errors
    /// A value of another type, or none of them.
    pub fn one_of<T: Copy, const N: usize>(&self, known: [T; N], name: fn(T) -> &'static str) -> Result<T, BoardError> {
        let names = known.map(name);
        self.position(&names).map(|at| known[at])
    }

    fn position(&self, names: &[&str]) -> Result<usize, BoardError> {
        let text = self.text()?;
        names.iter().position(|name| *name == text).ok_or_else(|| unknown("value", text, names, self.line()))
    }

    /// An error that names what was `expected` in its place; `what` of it is wrong.
    pub fn invalid(&self, what: &str, expected: &str) -> BoardError {
        BoardError::Syntax { line: self.line(), message: format!("invalid {what}: {self}, expected {expected}") }
    }

    /// The values of the array that it is; `expected` says what that would be.
    ///
    /// # Errors
    /// A value of another type; as [`FromBoard::read`].
    pub fn each<T: FromBoard>(&self, expected: &str) -> Result<Vec<T>, BoardError> {
        match self.value() {
            DeValue::Array(values) => values.iter().map(|value| T::read(&Found { value, ..*self })).collect(),
            _ => Err(self.invalid("type", expected)),
        }
    }

    fn line(&self) -> usize {
        line(self.text, self.value.span().start)
    }
}

impl fmt::Display for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value() {
            DeValue::String(text) => write!(f, "string {text:?}"),
            DeValue::Integer(number) => write!(f, "integer `{number}`"),
            DeValue::Float(number) => write!(f, "floating point `{number}`"),
            DeValue::Boolean(value) => write!(f, "boolean `{value}`"),
            DeValue::Datetime(_) => f.write_str("a date or time"),
            DeValue::Array(_) => f.write_str("an array"),
            DeValue::Table(_) => f.write_str("a table"),
        }
    }
}

impl<T: FromBoard> FromBoard for Option<T> {
    fn read(found: &Found<'_>) -> Result<Self, BoardError> {
        T::read(found).map(Some)
    }
}

impl FromBoard for bool {
    fn read(found: &Found<'_>) -> Result<Self, BoardError> {
        match found.value() {
            DeValue::Boolean(value) => Ok(*value),
            _ => Err(found.invalid("type", "true or false")),
        }
    }
}

impl FromBoard for u32 {
    fn read(found: &Found<'_>) -> Result<Self, BoardError> {
        match found.value() {
            DeValue::Integer(_) => found.integer().and_then(|number| u32::try_from(number).ok()),
            _ => return Err(found.invalid("type", "a whole number")),
        }
        .ok_or_else(|| found.invalid("value", "a whole number from 0 to 4294967295"))
    }
}

impl FromBoard for f64 {
    fn read(found: &Found<'_>) -> Result<Self, BoardError> {
        let number = match found.value() {
            DeValue::Float(digits) => digits.as_str().parse().ok(),
            _ => found.integer().map(|number| number as f64),
        };
        number.ok_or_else(|| found.invalid("type", "a number"))
    }
}

impl FromBoard for String {
    fn read(found: &Found<'_>) -> Result<Self, BoardError> {
        found.text().map(str::to_owned)
    }
}

impl FromBoard for Vec<String> {
    fn read(found: &Found<'_>) -> Result<Self, BoardError> {
        found.each("an array of strings")
    }
}
