//! What the binary has of the status page: the file compressed, and the policy that lets only its own script and style in.
#![allow(clippy::print_stdout, reason = "this is how a build script speaks to cargo")]

fn main() {
    println!("cargo:rerun-if-changed=src/serve/page.html");
    #[cfg(feature = "serve")]
    page::write();
}

#[cfg(feature = "serve")]
mod page {
    use std::io::Write;
    use std::path::PathBuf;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use sha2::{Digest, Sha256};

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
        format!("sha256-{}", base64(&Sha256::digest(inner.expect("the page has the mark once"))))
    }

    /// Base64 with its padding.
    fn base64(bytes: &[u8]) -> String {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
        for group in bytes.chunks(3) {
            let three = [group[0], *group.get(1).unwrap_or(&0), *group.get(2).unwrap_or(&0)];
            let bits = u32::from_be_bytes([0, three[0], three[1], three[2]]);
            for i in 0..4 {
                let digit = DIGITS[(bits >> (18 - 6 * i)) as usize & 63];
                out.push(if i <= group.len() { char::from(digit) } else { '=' });
            }
        }
        out
    }
}
