//! The engine: a loaded model at work, for one sequence ([`Engine`]) or for the requests of many clients ([`Scheduler`]).
//! Both stand on a [`Core`].

mod channel;
mod core;
mod drafter;
mod error;
mod handle;
mod pages;
mod request;
mod saved;
mod scheduler;
mod single;
mod stats;
mod stops;

pub use channel::EVENTS_MAX;
pub use core::Core;
pub use drafter::{DRAFT_MAX, Drafter};
pub use error::EngineError;
pub use handle::{EngineHandle, Ticket};
pub use request::{
    Event, Finish, Generate, LOGIT_BIAS_MAX, OutputKind, Pooling, QUEUE_MAX, Request, RequestError, RequestLimits,
    SLOTS_MAX, Scores, Step, SubmitError, TOP_LOGPROBS_MAX, Timings, Vectors,
};
pub use saved::{CacheError, Identity, identity};
pub use scheduler::{Scheduler, pass_sizes, scheduler_bytes};
pub use single::Engine;
pub use stats::{SlotState, Stats};
