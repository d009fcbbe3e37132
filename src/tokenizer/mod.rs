//! Text to token ids and back: SPM and byte-level BPE. Slices in, slices out.
