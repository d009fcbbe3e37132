//! ERNIE 4.5, dense (Baidu, 2025): Llama.

use super::llama;
use crate::model::architecture::Architecture;

pub(super) const ARCHITECTURE: Architecture = Architecture::new("ernie4_5", llama::layer);
