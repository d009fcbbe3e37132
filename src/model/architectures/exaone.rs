//! EXAONE 3 and 3.5 (arXiv:2408.03541): Llama with rotary pairs half a head apart.

use super::qwen2;
use crate::model::architecture::Architecture;

pub(super) const ARCHITECTURE: Architecture = Architecture::new("exaone", qwen2::layer);
