//! openPangu-Embedded (arXiv:2505.22375): Qwen2 with a bias on the output of attention, too.

use super::qwen2;
use crate::model::architecture::Architecture;

pub(super) const ARCHITECTURE: Architecture = Architecture::new("pangu-embedded", qwen2::layer);
