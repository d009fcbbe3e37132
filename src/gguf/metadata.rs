//! Look-ups over the metadata of a file.

use super::error::{GgufError, Name};
use super::strings::Strings;
use super::value::{Array, F32s, I32s, Value, ValueType};

/// Where one key and its value are in the header.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub(super) key_at: usize,
    pub(super) key_bytes: usize,
    pub(super) ty: ValueType,
    pub(super) value_at: usize,
    pub(super) value_bytes: usize,
}

impl Entry {
    pub(super) fn key<'a>(&self, header: &'a [u8]) -> &'a [u8] {
        &header[self.key_at..][..self.key_bytes]
    }
}

/// The metadata of a file: a table of places over the header's bytes.
///
/// Typed getters give `Ok(None)` for an absent key and an error naming key, found and needed for a wrong one.
#[derive(Clone, Copy, Debug)]
pub struct Metadata<'a> {
    entries: &'a [Entry],
    header: &'a [u8],
}

impl<'a> Metadata<'a> {
    /// `header` must be the bytes the entries were parsed from.
    pub(super) fn new(entries: &'a [Entry], header: &'a [u8]) -> Self {
        Metadata { entries, header }
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Keys and values in file order.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, Value<'a>)> + use<'a> {
        let this = *self;
        this.entries.iter().map(move |entry| {
            let key = std::str::from_utf8(entry.key(this.header)).expect("parse accepts ASCII keys only");
            (key, this.value(entry))
        })
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<Value<'a>> {
        let entry = self.entries.iter().find(|e| e.key(self.header) == key.as_bytes())?;
        Some(self.value(entry))
    }

    fn value(&self, entry: &Entry) -> Value<'a> {
        let bytes = &self.header[entry.value_at..][..entry.value_bytes];
        Value::take(entry.ty, bytes).expect("parse has walked this value").0
    }

    /// A string.
    ///
    /// # Errors
    /// If the value is not a string, or not UTF-8.
    pub fn str(&self, key: &str) -> Result<Option<&'a str>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => match std::str::from_utf8(text) {
                Ok(text) => Ok(Some(text)),
                Err(_) => Err(GgufError::NotUtf8 { key: Name::new(key) }),
            },
            Some(other) => Err(wrong(key, other, "a string")),
        }
    }

    /// An integer of any width that fits u32.
    ///
    /// # Errors
    /// If the value is not an integer, or does not fit.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.integer(key, "a whole number of 32 bits, not negative")
    }

    /// An integer of any width that fits u64.
    ///
    /// # Errors
    /// If the value is not an integer, or does not fit.
    pub fn u64(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.integer(key, "a whole number, not negative")
    }

    /// An integer of any width that fits i64.
    ///
    /// # Errors
    /// If the value is not an integer, or does not fit.
    pub fn i64(&self, key: &str) -> Result<Option<i64>, GgufError> {
        self.integer(key, "a whole number")
    }

    fn integer<T: TryFrom<i128>>(&self, key: &str, needed: &'static str) -> Result<Option<T>, GgufError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let integer = value.as_integer().ok_or_else(|| wrong(key, value, needed))?;
        match T::try_from(integer) {
            Ok(fits) => Ok(Some(fits)),
            Err(_) => Err(GgufError::OutOfRange { key: Name::new(key), value: integer, needed }),
        }
    }

    /// An f32, or an f64 rounded to one.
    ///
    /// # Errors
    /// If the value is not a float.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::F32(v)) => Ok(Some(v)),
            Some(Value::F64(v)) => Ok(Some(v as f32)),
            Some(other) => Err(wrong(key, other, "f32")),
        }
    }

    /// A boolean.
    ///
    /// # Errors
    /// If the value is none.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(v)) => Ok(Some(v)),
            Some(other) => Err(wrong(key, other, "bool")),
        }
    }

    /// An array of any element type.
    ///
    /// # Errors
    /// If the value is none.
    pub fn array(&self, key: &str) -> Result<Option<Array<'a>>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) => Ok(Some(array)),
            Some(other) => Err(wrong(key, other, "an array")),
        }
    }

    /// An array of strings.
    ///
    /// # Errors
    /// If the value is something else.
    pub fn strings(&self, key: &str) -> Result<Option<Strings<'a>>, GgufError> {
        let Some(array) = self.array(key)? else { return Ok(None) };
        match array.strings() {
            Some(strings) => Ok(Some(strings)),
            None => Err(wrong_element(key, array, "string")),
        }
    }

    /// An array of f32.
    ///
    /// # Errors
    /// If the value is something else.
    pub fn f32s(&self, key: &str) -> Result<Option<F32s<'a>>, GgufError> {
        let Some(array) = self.array(key)? else { return Ok(None) };
        match array.element_type() {
            ValueType::F32 => Ok(Some(F32s(array.bytes()))),
            _ => Err(wrong_element(key, array, "f32")),
        }
    }

    /// An array of i32, or of u32 that all fit.
    ///
    /// # Errors
    /// If the value is something else.
    pub fn i32s(&self, key: &str) -> Result<Option<I32s<'a>>, GgufError> {
        let Some(array) = self.array(key)? else { return Ok(None) };
        let numbers = I32s(array.bytes());
        match array.element_type() {
            ValueType::I32 => Ok(Some(numbers)),
            ValueType::U32 => match numbers.iter().find(|&n| n < 0) {
                None => Ok(Some(numbers)),
                Some(n) => {
                    Err(GgufError::OutOfRange { key: Name::new(key), value: n.cast_unsigned().into(), needed: "i32" })
                }
            },
            _ => Err(wrong_element(key, array, "i32")),
        }
    }
}

macro_rules! required {
    ($($(#[$doc:meta])* $name:ident: $get:ident -> $t:ty, $needed:literal;)*) => {
        impl<'a> Metadata<'a> { $(
            $(#[$doc])*
            ///
            /// # Errors
            /// If the key is absent or its value is something else.
            pub fn $name(&self, key: &str) -> Result<$t, GgufError> {
                self.$get(key)?.ok_or_else(|| GgufError::KeyMissing { key: Name::new(key), needed: $needed })
            }
        )* }
    };
}
required! {
    /// A string that must be there.
    required_str: str -> &'a str, "a string";
    /// An integer that must be there and fit u32.
    required_u32: u32 -> u32, "a whole number";
    /// An integer that must be there and fit u64.
    required_u64: u64 -> u64, "a whole number";
    /// An f32 that must be there.
    required_f32: f32 -> f32, "f32";
    /// A boolean that must be there.
    required_bool: bool -> bool, "bool";
    /// An array of strings that must be there.
    required_strings: strings -> Strings<'a>, "an array of strings";
    /// An array of f32 that must be there.
    required_f32s: f32s -> F32s<'a>, "an array of f32";
    /// An array of i32 that must be there.
    required_i32s: i32s -> I32s<'a>, "an array of i32";
}

fn wrong(key: &str, found: Value<'_>, needed: &'static str) -> GgufError {
    GgufError::WrongType { key: Name::new(key), found: found.value_type(), needed }
}

fn wrong_element(key: &str, found: Array<'_>, needed: &'static str) -> GgufError {
    GgufError::WrongElementType { key: Name::new(key), found: found.element_type(), needed }
}
