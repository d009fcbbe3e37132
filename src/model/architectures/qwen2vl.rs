//! The language model of Qwen2-VL and Qwen2.5-VL (arXiv:2409.12191): Qwen2. Rotated pairs follow the position in time, height
//! or width of an image; those of text are the same.

use super::qwen2;
use crate::model::architecture::Architecture;

pub(super) const ARCHITECTURE: Architecture = Architecture { name: "qwen2vl", ..qwen2::ARCHITECTURE };
