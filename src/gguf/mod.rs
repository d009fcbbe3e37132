//! GGUF: header, metadata and tensor tables from bytes; no I/O.

pub mod strings;

pub use strings::Strings;
