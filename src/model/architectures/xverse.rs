//! XVERSE (Shenzhen Yuanxiang, 2023): Llama's layer.

use super::llama;
use crate::model::architecture::Architecture;

pub(super) const ARCHITECTURE: Architecture = Architecture::new("xverse", llama::layer);
