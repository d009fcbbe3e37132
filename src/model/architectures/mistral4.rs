//! Mistral Small 4: DeepSeek V2 whose cosines are multiplied by the length that YaRN recommends over that of the file.

use super::deepseek2;
use crate::model::architecture::Architecture;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    config: |header| deepseek2::decoder(header, |rope, strength| rope.length(1.0) / rope.length(strength)),
    tensors: deepseek2::tensors,
    ..Architecture::new("mistral4", deepseek2::layer)
};
