//! OpenELM (arXiv:2404.14619): Qwen3 with heads and widths that grow from layer to layer.

use super::{Architecture, qwen2, qwen3};

pub(super) const ARCHITECTURE: Architecture =
    Architecture { name: "openelm", tensors: qwen3::tensors, layer: qwen2::layer, ..Architecture::USUAL };
