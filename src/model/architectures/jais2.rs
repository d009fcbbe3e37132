//! Jais 2 (Inception, 2025): Nemotron's layer, with biases everywhere.

use super::{decoder, nemotron};
use crate::model::architecture::Architecture;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config: nemotron::config, ..Architecture::new("jais2", decoder::layer) };
