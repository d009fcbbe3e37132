//! OpenELM (arXiv:2404.14619): Qwen3 with heads and widths that grow from layer to layer.

use super::{qwen2, qwen3};
use crate::model::architecture::Architecture;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { tensors: qwen3::tensors, ..Architecture::new("openelm", qwen2::layer) };
