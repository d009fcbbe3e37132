//! ChatGLM 3 and GLM-4 (arXiv:2406.12793): Q, K and V in one matrix with biases, gate and up in another; a part of every head
//! is rotated, in pairs of neighbours.

use super::{llama, phi3};
use crate::model::architecture::Architecture;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { tensors: phi3::tensors, ..Architecture::new("chatglm", llama::layer) };
