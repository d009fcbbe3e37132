//! What several tests share.
#![allow(
    dead_code,
    missing_docs,
    clippy::unwrap_used,
    reason = "each test uses its part; a test that cannot go on has failed"
)]

pub mod engine;
