//! The start of a model, in chapters, each of which is a type:
//!
//! | chapter | type | what is known | file |
//! |---|---|---|---|
//! | 1 | [`Headers`] | what the files hold; nothing else has been read | [`headers`] |
//! | 2 | [`Planned`] | the sizes of every region and buffer | [`plan`] |
//! | 3 | [`Mapped`] | the memory, over the pages that could be had | [`place`] |
//! | 4 | [`Running`] | weights and vocabulary are loaded: tokens in, logits out | [`start`] |
//!
//! ```text
//! let mut base = Foundations::default();
//! let running = Headers::read(&settings)?.plan(&Workload::default())?.map()?.start(&mut base, &progress)?;
//! ```
//!
//! Each chapter consumes the one before, so what was mapped, and not what was meant to be, is what a running model tells of.
//! [`hold()`] is the other end of chapter 2: weights alone, for other processes. Several models may live in one process, each
//! on [`Foundations`] of its own; [`plan_all`] and [`map_all`] give them one plan and one mapping.

mod buffers;
pub mod headers;
mod hold;
pub mod place;
pub mod plan;
mod progress;
pub mod start;

pub use headers::{Headers, open};
pub use hold::hold;
pub use place::{Mapped, MappedPlan, map_all};
pub use plan::{CTX_DEFAULT, Planned, SLOTS_DEFAULT, Serving, Workload, plan_all};
pub use start::{Foundations, LoadReport, Running};

/// The demo model: trained for this project by `tools/demo`.
#[cfg(feature = "demo")]
pub static DEMO: &[u8] = include_bytes!("../demo/brim-demo.gguf");
