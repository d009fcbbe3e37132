//! InternLM 2 (arXiv:2403.17297): Llama's layer, Q, K and V sometimes in one matrix.

use super::llama;
use crate::model::architecture::Architecture;

pub(super) const ARCHITECTURE: Architecture = Architecture::new("internlm2", llama::layer);
