//! Metadata values, decoded from the header's bytes when asked for.

use std::fmt;

use super::strings::Strings;

/// Type of a metadata value, numbered as in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs, reason = "the names say it")]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    /// The type with this id in a file.
    pub fn from_id(id: u32) -> Option<Self> {
        use ValueType::*;
        [U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64].get(id as usize).copied()
    }

    /// Its name, e.g. `u32`.
    pub fn name(self) -> &'static str {
        use ValueType::*;
        match self {
            U8 => "u8",
            I8 => "i8",
            U16 => "u16",
            I16 => "i16",
            U32 => "u32",
            I32 => "i32",
            F32 => "f32",
            Bool => "bool",
            String => "string",
            Array => "array",
            U64 => "u64",
            I64 => "i64",
            F64 => "f64",
        }
    }

    /// Bytes of one value; `None` for strings and arrays, whose length is in the file.
    pub fn fixed_bytes(self) -> Option<u64> {
        use ValueType::*;
        match self {
            U8 | I8 | Bool => Some(1),
            U16 | I16 => Some(2),
            U32 | I32 | F32 => Some(4),
            U64 | I64 | F64 => Some(8),
            String | Array => None,
        }
    }

    /// The fewest bytes a value takes: a string has its length, an array its element type and count.
    pub(super) fn least_bytes(self) -> u64 {
        self.fixed_bytes().unwrap_or(if self == ValueType::String { 8 } else { 12 })
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One metadata value.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    /// Raw bytes: GGUF says UTF-8, files do not always.
    String(&'a [u8]),
    Array(Array<'a>),
}

impl<'a> Value<'a> {
    /// Takes a value of type `ty` from the front of `bytes`; `None` if they end too early.
    pub(super) fn take(ty: ValueType, bytes: &'a [u8]) -> Option<(Value<'a>, &'a [u8])> {
        fn number<const N: usize>(bytes: &[u8]) -> Option<([u8; N], &[u8])> {
            bytes.split_first_chunk::<N>().map(|(number, rest)| (*number, rest))
        }
        macro_rules! le {
            ($variant:ident, $t:ty) => {
                number(bytes).map(|(n, rest)| (Value::$variant(<$t>::from_le_bytes(n)), rest))
            };
        }
        match ty {
            ValueType::U8 => le!(U8, u8),
            ValueType::I8 => le!(I8, i8),
            ValueType::U16 => le!(U16, u16),
            ValueType::I16 => le!(I16, i16),
            ValueType::U32 => le!(U32, u32),
            ValueType::I32 => le!(I32, i32),
            ValueType::U64 => le!(U64, u64),
            ValueType::I64 => le!(I64, i64),
            ValueType::F32 => le!(F32, f32),
            ValueType::F64 => le!(F64, f64),
            ValueType::Bool => bytes.split_first().map(|(&b, rest)| (Value::Bool(b != 0), rest)),
            ValueType::String => {
                let (length, rest) = number::<8>(bytes)?;
                let (text, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(length)).ok()?)?;
                Some((Value::String(text), rest))
            }
            ValueType::Array => {
                let (id, rest) = number::<4>(bytes)?;
                let (len, rest) = number::<8>(rest)?;
                let ty = ValueType::from_id(u32::from_le_bytes(id))?;
                let len = usize::try_from(u64::from_le_bytes(len)).ok()?;
                let after = skip(ty, len, rest)?;
                Some((Value::Array(Array { ty, len, bytes: &rest[..rest.len() - after.len()] }), after))
            }
        }
    }

    /// Its type.
    pub fn value_type(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F32(_) => ValueType::F32,
            Value::F64(_) => ValueType::F64,
            Value::Bool(_) => ValueType::Bool,
            Value::String(_) => ValueType::String,
            Value::Array(_) => ValueType::Array,
        }
    }

    /// The value of an integer of any width; `None` for everything else.
    pub fn as_integer(&self) -> Option<i128> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::I8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::I16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::I32(v) => Some(v.into()),
            Value::U64(v) => Some(v.into()),
            Value::I64(v) => Some(v.into()),
            _ => None,
        }
    }
}

/// The bytes after `len` values of type `ty`; recursion is bounded by the parser's depth limit.
fn skip(ty: ValueType, len: usize, bytes: &[u8]) -> Option<&[u8]> {
    match ty.fixed_bytes() {
        Some(each) => bytes.get(len.checked_mul(each as usize)?..),
        None => {
            let mut rest = bytes;
            for _ in 0..len {
                (_, rest) = Value::take(ty, rest)?;
            }
            Some(rest)
        }
    }
}

/// An array of values, left in the header's bytes.
#[derive(Clone, Copy, Debug)]
pub struct Array<'a> {
    ty: ValueType,
    len: usize,
    bytes: &'a [u8],
}

impl<'a> Array<'a> {
    /// Type of its elements.
    pub fn element_type(&self) -> ValueType {
        self.ty
    }

    /// How many elements there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements as they are in the file: little-endian numbers, or length-prefixed strings.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The elements in order.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let (ty, mut rest) = (self.ty, self.bytes);
        (0..self.len).map_while(move |_| {
            let (value, tail) = Value::take(ty, rest)?;
            rest = tail;
            Some(value)
        })
    }

    /// The elements as strings, if that is what they are.
    pub fn strings(&self) -> Option<Strings<'a>> {
        match self.ty {
            ValueType::String => Strings::take(self.len, self.bytes),
            _ => None,
        }
    }
}

macro_rules! raw_array {
    ($(#[$doc:meta])* $name:ident, $t:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default)]
        pub struct $name<'a>(pub(super) &'a [u8]);

        impl<'a> $name<'a> {
            /// How many numbers there are.
            pub fn len(&self) -> usize {
                self.0.len() / size_of::<$t>()
            }

            /// True if there are none.
            pub fn is_empty(&self) -> bool {
                self.0.is_empty()
            }

            /// The little-endian bytes, of no particular alignment.
            pub fn bytes(&self) -> &'a [u8] {
                self.0
            }

            /// The number at `index`.
            pub fn get(&self, index: usize) -> Option<$t> {
                self.0.as_chunks().0.get(index).map(|&n| <$t>::from_le_bytes(n))
            }

            /// The numbers in order.
            pub fn iter(&self) -> impl ExactSizeIterator<Item = $t> + use<'a> {
                self.0.as_chunks().0.iter().map(|&n| <$t>::from_le_bytes(n))
            }
        }
    };
}
raw_array!(
    /// An array of f32, left in the header's bytes.
    F32s,
    f32
);
raw_array!(
    /// An array of i32, left in the header's bytes.
    I32s,
    i32
);
