//! The plan (pure arithmetic over named regions), the huge-page pool, and the arena mapped over the plan.

pub mod arena;
mod error;
mod give_back;
mod packing;
pub mod plan;
pub mod pool;
mod reserve;

pub use arena::{Arena, Filling, Growing, OpenRegions, Pages, Regions, Shared, Unsealed};
pub use error::{MemoryError, NotPopulated};
pub use give_back::{Broken, GiveBack};
pub use packing::Packing;
pub use plan::{PageKind, Plan, Region, RegionName};
pub use pool::{Host, Hvo, PoolState};
pub use reserve::Grown;
