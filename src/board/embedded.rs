//! Boards that are part of the binary.

/// The boards in the binary: name and text.
pub const EMBEDDED: [(&str, &str); 3] = [
    ("generic-x86_64", include_str!("../../boards/generic-x86_64.toml")),
    ("strix-halo-128", include_str!("../../boards/strix-halo-128.toml")),
    ("strix-halo-64", include_str!("../../boards/strix-halo-64.toml")),
];
