//! The plan (pure arithmetic over named regions), the huge-page pool, and the arena mapped over the plan.

pub mod arena;
mod error;
mod facts;
mod give_back;
mod host;
mod packing;
mod page;
pub mod plan;
mod reserve;

pub use arena::{Arena, Growing, OpenRegions, Pages, Regions, Shared, UffdFill, Unsealed};
pub use error::{MemoryError, NotPopulated};
pub use facts::{Broken, CgroupLimit, GiveBack, Hvo, PoolState};
pub use host::Host;
pub use packing::Packing;
pub use page::{PageKind, RegionName};
pub use plan::{Plan, Region};
pub use reserve::Grown;
