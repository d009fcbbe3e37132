//! What the binary has of the status page: the file compressed, and the policy that lets only its own script and style in.
#![allow(clippy::print_stdout, reason = "this is how a build script speaks to cargo")]

fn main() {
    println!("cargo:rerun-if-changed=src/serve/page.html");
    #[cfg(feature = "serve")]
    page::write();
}

#[cfg(feature = "serve")]
#[path = "src/serve/base64.rs"]
mod base64;

#[cfg(feature = "serve")]
mod page {
    use std::io::Write;
    use std::path::PathBuf;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use sha2::{Digest, Sha256};

    use super::base64::push_base64;

    /// Writes `page.html.gz` and `page.policy`.
    pub fn write() {
        let page = std::fs::read_to_string("src/serve/page.html").expect("the page is a file of this package");
        let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo says where"));
        let mut compressed = GzEncoder::new(Vec::new(), Compression::best());
        compressed.write_all(page.as_bytes()).expect("a vector takes all");
        let compressed = compressed.finish().expect("a vector takes all");
        // What turns text into markup or code is refused outright.
        let policy = format!(
            "default-src 'none'; script-src '{}'; style-src '{}'; connect-src 'self'; img-src data:; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
            digest(&page, "<script type=\"module\">", "</script>"),
            digest(&page, "<style>", "</style>"),
        );
        std::fs::write(out.join("page.html.gz"), compressed).expect("cargo's directory can be written");
        std::fs::write(out.join("page.policy"), policy).expect("cargo's directory can be written");
    }

    /// What a policy calls the text between two marks by.
    fn digest(page: &str, begin: &str, end: &str) -> String {
        let inner = page.split_once(begin).and_then(|(_, rest)| rest.split_once(end)).map(|(inner, _)| inner);
        let mut out = b"sha256-".to_vec();
        push_base64(&Sha256::digest(inner.expect("the page has the mark once")), &mut out);
        String::from_utf8(out).expect("base64 is ASCII")
    }
}
