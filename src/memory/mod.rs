//! The plan (pure arithmetic over named regions), the huge-page pool, and the arena mapped over the plan.

pub mod arena;
mod error;
pub mod plan;
pub mod pool;

pub use arena::{Arena, OpenRegions, Regions, Unsealed};
pub use error::MemoryError;
pub use plan::{PageKind, Plan, Region, RegionName};
pub use pool::{Host, Hvo, PoolState};
