//! brim: a CPU inference runtime that keeps weights, KV cache and scratch in explicit huge pages.
//!
//! Start reading at [`boot`], then one file of [`model::architectures`]. `src/README.md` draws the rooms and the direction
//! of their imports, and follows a model file and a request through the code.

// It panics where nobody can write to stderr any more; `sys::log` does not.
#![warn(clippy::print_stderr)]

#[cfg(not(target_os = "linux"))]
compile_error!("brim runs on Linux only: it needs HugeTLB pages, futexes and /proc; build for a *-linux-* target");

pub mod board;
pub mod boot;
pub mod bytes;
pub mod chat;
pub mod cli;
pub mod engine;
pub mod error;
pub mod gguf;
pub mod kernels;
pub mod load;
pub mod memory;
pub mod model;
pub mod quant;
pub mod sampling;
#[cfg(feature = "serve")]
pub mod serve;
pub mod settings;
pub mod sys;
pub mod tokenizer;
pub mod units;
pub mod workers;
