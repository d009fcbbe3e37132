//! The templates that are part of brim.

/// The templates that brim has itself, by name: the formats that many models share.
const OWN: [(&str, &str); 5] = [
    ("chatml", include_str!("templates/chatml.jinja")),
    ("gemma", include_str!("templates/gemma.jinja")),
    ("llama3", include_str!("templates/llama3.jinja")),
    ("mistral", include_str!("templates/mistral.jinja")),
    ("phi3", include_str!("templates/phi3.jinja")),
];

/// The names of [`own`], as a sentence has them.
pub fn own_names() -> String {
    OWN.map(|(name, _)| name).join(", ")
}

/// The source of the template that brim has under this name.
pub fn own(name: &str) -> Option<&'static str> {
    OWN.iter().find(|(own, _)| *own == name).map(|(_, source)| *source)
}
