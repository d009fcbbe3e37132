//! The model's own chat template.
