//! Block layouts of the weight types: one file per family, scalar decode, repacked panel layout.

pub mod types;

pub use types::TensorType;
