//! How a grammar is written for its process.

/// The grammar is a JSON schema.
pub const SCHEMA: u8 = b's';
/// The grammar is Lark or GBNF.
pub const TEXT: u8 = b't';
/// The grammar is a regular expression.
pub const REGEX: u8 = b'r';
/// The grammar is a list of calls, as JSON.
pub const CALLS: u8 = b'c';
