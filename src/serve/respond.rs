//! Answers that are not of an interface: documents, texts, errors, the page.

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::body::Body;
use super::error::{ApiError, ErrorForm};

/// Whether an answer is made while it is sent.
pub(super) fn is_streamed(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == EVENTS || kind == LINES)
}

/// The type of a stream of events.
const EVENTS: &str = "text/event-stream";

/// The type of a stream of JSON documents, one a line.
const LINES: &str = "application/x-ndjson";

/// A stream of events.
pub(super) fn events(body: Body) -> Response<Body> {
    streamed(EVENTS, body)
}

/// A stream of JSON documents.
pub(super) fn lines(body: Body) -> Response<Body> {
    streamed(LINES, body)
}

fn streamed(kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Proxies that read this pass on what comes when it comes.
    response.headers_mut().insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

/// What a page may send.
pub(super) fn preflight() -> Response<Body> {
    let mut response = Response::new(Body::whole(""));
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("*, authorization"));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    response
}

/// A text with its type.
pub fn text(kind: &'static str, text: String) -> Response<Body> {
    let mut response = Response::new(Body::whole(text));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// A JSON document.
pub fn document(value: &Value) -> Response<Body> {
    text("application/json", value.to_string())
}

/// An error in the form of the interface that was asked.
pub(super) fn failure(error: &ApiError, form: ErrorForm) -> Response<Body> {
    let mut response = document(&error.document(form));
    *response.status_mut() = error.status;
    if let Some(seconds) = error.retry_after_s {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Some((name, value)) = &error.header {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// The page, with a policy that lets only its own script and style in, by their digests; what turns text into markup or
/// code is refused outright.
pub(super) fn page() -> Response<Body> {
    const PAGE: &str = include_str!("page.html");
    let mut response = Response::new(Body::whole(PAGE));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    let policy = format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        digest(PAGE, "<script type=\"module\">", "</script>"),
        digest(PAGE, "<style>", "</style>"),
    );
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}

/// What a policy calls the text between two marks by.
fn digest(page: &str, begin: &str, end: &str) -> String {
    let inner = page.split_once(begin).and_then(|(_, rest)| rest.split_once(end)).map_or("", |(inner, _)| inner);
    format!("sha256-{}", base64(&Sha256::digest(inner)))
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

/// `/health` while the model is not ready.
pub fn not_ready(value: &Value) -> Response<Body> {
    let mut response = document(value);
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
    response
}

/// What `/health` says when all is well.
pub fn well() -> Response<Body> {
    document(&json!({"status": "ok"}))
}
