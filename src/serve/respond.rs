//! Answers that are not of an interface: documents, texts, errors, the page.

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

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
    // 200, as some readers of old take no other.
    let mut response = Response::new(Body::whole(""));
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("*, authorization"));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    response
}

/// A JSON document that is written while it is sent.
pub(super) fn written(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
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

/// The page, compressed, with a policy that lets only its own script and style in, by their digests; what turns text into
/// markup or code is refused outright.
///
/// # Errors
/// 406 where the client takes nothing that is compressed.
pub(super) fn page(asked: &HeaderMap) -> Result<Response<Body>, ApiError> {
    const PAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/page.html.gz"));
    const POLICY: &str = include_str!(concat!(env!("OUT_DIR"), "/page.policy"));
    if !takes_gzip(asked) {
        let text = "the page is there compressed alone: ask for it with `accept-encoding: gzip` (curl --compressed)";
        return Err(ApiError::new(StatusCode::NOT_ACCEPTABLE, text).code("not_acceptable"));
    }
    let mut response = Response::new(Body::whole(PAGE));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    Ok(response)
}

/// Whether a client takes what is compressed; one that does not say takes anything (RFC 9110, 12.5.3).
fn takes_gzip(asked: &HeaderMap) -> bool {
    let takes = |coding: &str| {
        let (name, quality) = coding.split_once(";q=").unwrap_or((coding, "1"));
        ["gzip", "x-gzip", "*"].contains(&name.trim().to_ascii_lowercase().as_str())
            && quality.trim().parse::<f32>().is_ok_and(|quality| quality > 0.0)
    };
    let mut codings = asked.get_all(header::ACCEPT_ENCODING).iter().peekable();
    codings.peek().is_none() || codings.any(|value| value.to_str().is_ok_and(|value| value.split(',').any(takes)))
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
