//! GGUF: header, metadata and tensor tables from bytes; no I/O.
//!
//! [`parse()`] reads the front part of a file into [`Tables`] and asks for more bytes if the header is longer;
//! [`check_set`] then makes sure that the files of a split set belong together.

pub mod strings;

mod cursor;
mod error;
mod foreign;
mod metadata;
mod parse;
mod split;
mod tables;
mod value;

pub use cursor::MAX_STRING_BYTES;
pub use error::{GgufError, Name};
pub use foreign::Foreign;
pub use metadata::{Entry, Metadata};
pub use parse::{MAX_ALIGNMENT, MAX_DEPTH, MAX_KEY_BYTES, MAX_NAME_BYTES, parse};
pub use split::{SplitName, check_set, set_len, sibling_names};
pub use strings::Strings;
pub use tables::{MAX_METADATA, MAX_SPLITS, MAX_TENSORS, Part, SplitClaim, Tables, TensorInfo, sort_tensors};
pub use value::{Array, F32s, I32s, Value, ValueType};
