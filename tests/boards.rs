//! The board files as shipped: each is embedded, parses, and shows every key there is.

use brim::board::{Board, EMBEDDED};

const KEYS: [(&str, &[&str]); 6] = [
    ("cpu", &["isa", "cores", "threads", "l1d_kib", "l2_kib", "l3_kib"]),
    (
        "memory",
        &["hugepages", "page_size", "reserve", "hvo", "fallback", "keep_free_mib", "embedding", "numa", "resident"],
    ),
    ("bandwidth", &["read_gbs", "source", "date"]),
    ("tile", &["tokens", "k_bytes", "ahead_l1_bytes", "ahead_l2_bytes"]),
    ("model", &["path", "ctx", "kv_type", "sha256"]),
    (
        "serve",
        &[
            "listen",
            "slots",
            "kv_tokens",
            "keys_file",
            "cors_origin",
            "hosts",
            "log_prompts",
            "cache_dir",
            "cache_mib",
            "limits",
        ],
    ),
];

#[test]
fn every_file_is_embedded() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/boards");
    let mut files = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let embedded = EMBEDDED.iter().find(|(known, _)| *known == name);
        assert_eq!(
            embedded.unwrap_or_else(|| panic!("{name} is not embedded")).1,
            std::fs::read_to_string(&path).unwrap()
        );
        Board::embedded(name).unwrap();
        files += 1;
    }
    assert_eq!(files, EMBEDDED.len());
}

#[test]
fn every_key_is_shown_and_commented() {
    for (name, text) in EMBEDDED {
        for (section, keys) in KEYS {
            let body = text.split(&format!("[{section}]\n")).nth(1).unwrap_or_else(|| panic!("{name}: [{section}]"));
            let body: Vec<&str> = body.lines().take_while(|line| !line.starts_with('[')).collect();
            for key in keys {
                let shown = |line: &str| line.trim_start_matches("# ").starts_with(&format!("{key} = "));
                assert!(body.iter().any(|line| shown(line)), "{name}: {section}.{key} is not shown");
            }
        }
    }
}

#[test]
fn every_shown_key_exists() {
    for (name, text) in EMBEDDED {
        // Uncommenting a `# key = value` line must give a key that is known; its value may be refused.
        for (section, keys) in KEYS {
            for key in keys {
                for value in ["1", "\"x\"", "true"] {
                    if let Err(error) = Board::parse(&format!("[{section}]\n{key} = {value}")) {
                        assert!(!error.to_string().contains("unknown key"), "{name}: {error}");
                    }
                }
            }
        }
        assert!(text.starts_with("# "), "{name} says what it is for");
    }
}
