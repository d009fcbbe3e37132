//! Weights from file to their final pages, repacked on the way.

pub mod header;
pub mod weights;
