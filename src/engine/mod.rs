//! The engine: a loaded model at work, for one sequence ([`Engine`]) or for the requests of many clients ([`Scheduler`]).
//! Both stand on a [`Core`].

mod core;
mod drafter;
mod error;
mod handle;
mod pages;
mod request;
mod saved;
mod scheduler;
mod single;

pub use core::Core;
pub use drafter::{DRAFT_MAX, Drafter};
pub use error::EngineError;
pub use handle::{EVENTS_MAX, EngineHandle, SlotState, Stats, Ticket};
pub use request::{
    Event, Finish, Generate, LOGIT_BIAS_MAX, Limits, Output, Pooling, QUEUE_MAX, Request, RequestError, SLOTS_MAX,
    Step, SubmitError, TOP_LOGPROBS_MAX, Timings,
};
pub use saved::{CacheError, Identity, identity};
pub use scheduler::{Scheduler, pass_sizes, scheduler_bytes};
pub use single::Engine;
