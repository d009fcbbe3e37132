//! Routes: who may ask what, in which form errors go out, and what is kept of a request.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::api::{Answer, chat, completions, messages, responses, tokens};
use super::body::{Body, Budget, receive};
use super::config::Config;
use super::connection::{Connection, Connections};
use super::error::ApiError;
use super::fields::{self, Fields};
use super::host;
use super::keys::Keys;
use super::metrics::Metrics;
use super::model::{Served, unix_time};
use super::status;
use super::trace::Trace;
use crate::load::Progress;

/// Bodies in memory at once, in bodies of the greatest size.
const BODIES: usize = 2;

/// Where the server is in its life.
pub enum Stage {
    /// The model is being loaded.
    Loading,
    /// Requests are served.
    Ready(Rc<Served>),
    /// Requests that are here are finished, others refused.
    Stopping(Rc<Served>),
}

/// What all requests share.
pub struct App {
    /// What the server was told to do.
    pub config: Config,
    /// The API keys.
    pub keys: RefCell<Keys>,
    /// All connections.
    pub connections: Rc<Connections>,
    /// Counters.
    pub metrics: Metrics,
    /// How far the load is.
    pub progress: Arc<Progress>,
    /// Facts about model and memory that are known before the load, for the status page.
    pub facts: Value,
    stage: RefCell<Stage>,
    budget: Rc<Budget>,
    in_flight: Cell<usize>,
    quiet: Notify,
    last_id: Cell<u64>,
}

impl App {
    /// A server whose model is being loaded.
    pub fn new(config: Config, keys: Keys, progress: Arc<Progress>, facts: Value) -> Rc<App> {
        let budget = Budget::new(config.limits.body_bytes * BODIES);
        Rc::new(App {
            config,
            keys: RefCell::new(keys),
            connections: Rc::default(),
            metrics: Metrics::default(),
            progress,
            facts,
            stage: RefCell::new(Stage::Loading),
            budget,
            in_flight: Cell::new(0),
            quiet: Notify::new(),
            last_id: Cell::new(unix_time() << 20),
        })
    }

    /// Requests are served from here on.
    pub fn ready(&self, served: Rc<Served>) {
        *self.stage.borrow_mut() = Stage::Ready(served);
    }

    /// No request is taken from here on.
    pub fn stop(&self) {
        if let Some(served) = self.served() {
            *self.stage.borrow_mut() = Stage::Stopping(served);
        }
    }

    /// The model, if there is one yet.
    pub fn served(&self) -> Option<Rc<Served>> {
        match &*self.stage.borrow() {
            Stage::Loading => None,
            Stage::Ready(served) | Stage::Stopping(served) => Some(Rc::clone(served)),
        }
    }

    /// Whether requests are served.
    pub fn is_ready(&self) -> bool {
        matches!(&*self.stage.borrow(), Stage::Ready(_))
    }

    /// The model, for a request.
    fn serving(&self) -> Result<Rc<Served>, ApiError> {
        let unavailable = |text: String| Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, text).retry_after(5));
        match &*self.stage.borrow() {
            Stage::Ready(served) => Ok(Rc::clone(served)),
            Stage::Stopping(_) => unavailable("the server is stopping".to_owned()),
            Stage::Loading => unavailable(format!("the model is being loaded: {} %", self.percent())),
        }
    }

    /// How far the load is.
    pub fn percent(&self) -> u64 {
        let total = self.progress.total.load(Ordering::Relaxed);
        self.progress.done.load(Ordering::Relaxed) * 100 / total.max(1)
    }

    /// Ids of requests.
    pub fn next_request_id(&self) -> String {
        self.last_id.set(self.last_id.get() + 1);
        format!("req_{:x}", self.last_id.get())
    }

    /// A request has come.
    pub fn enter(&self) {
        self.in_flight.set(self.in_flight.get() + 1);
    }

    /// A request has been answered.
    pub fn leave(&self) {
        self.in_flight.set(self.in_flight.get() - 1);
        if self.in_flight.get() == 0 {
            self.quiet.notify_one();
        }
    }

    /// Waits until no request is being answered.
    pub async fn quiet(&self) {
        while self.in_flight.get() > 0 {
            self.quiet.notified().await;
        }
    }
}

/// What a route does.
#[derive(Clone, Copy, PartialEq)]
enum Route {
    Page,
    Health,
    Metrics,
    Status,
    Models,
    Model,
    Chat,
    Completions,
    Responses,
    Messages,
    CountTokens,
    Tokenize,
    Detokenize,
    Embeddings,
}

/// The route of a path, its name in log and metrics, and the method it needs.
fn route(path: &str) -> Option<(Route, &'static str, Method)> {
    let (get, post) = (Method::GET, Method::POST);
    Some(match path {
        "/" => (Route::Page, "/", get),
        "/health" => (Route::Health, "/health", get),
        "/metrics" => (Route::Metrics, "/metrics", get),
        "/status" => (Route::Status, "/status", get),
        "/v1/models" => (Route::Models, "/v1/models", get),
        "/v1/chat/completions" => (Route::Chat, "/v1/chat/completions", post),
        "/v1/completions" => (Route::Completions, "/v1/completions", post),
        "/v1/responses" => (Route::Responses, "/v1/responses", post),
        "/v1/messages" => (Route::Messages, "/v1/messages", post),
        "/v1/messages/count_tokens" => (Route::CountTokens, "/v1/messages/count_tokens", post),
        "/tokenize" => (Route::Tokenize, "/tokenize", post),
        "/detokenize" => (Route::Detokenize, "/detokenize", post),
        "/v1/embeddings" => (Route::Embeddings, "/v1/embeddings", post),
        path if path.strip_prefix("/v1/models/").is_some_and(|name| !name.is_empty()) => {
            (Route::Model, "/v1/models", get)
        }
        _ => return None,
    })
}

impl Route {
    /// Whether everybody may ask.
    fn is_open(self) -> bool {
        matches!(self, Route::Page | Route::Health | Route::Metrics)
    }

    fn is_anthropic(self) -> bool {
        matches!(self, Route::Messages | Route::CountTokens)
    }
}

/// Answers a request; whatever is wrong is an answer, too.
///
/// # Errors
/// None: the type is what hyper asks for.
pub async fn answer(
    app: Rc<App>,
    request: Request<Incoming>,
    connection: Rc<Connection>,
) -> Result<Response<Body>, Infallible> {
    let trace = Trace::new(Rc::clone(&app), Rc::clone(&connection));
    let host = host::of_request(&request, &connection.hosts);
    let origin = host.and_then(|host| allowed_origin(&app, request.headers(), host));
    let found = route(request.uri().path());
    if let Some((_, name, _)) = &found {
        trace.set_route(name);
    }
    let is_anthropic = found.as_ref().is_some_and(|(route, ..)| route.is_anthropic())
        || request.headers().contains_key("anthropic-version");
    let mut response = match (&origin, found) {
        (Err(e), _) => failure(e, is_anthropic),
        (Ok(Some(_)), _) if request.method() == Method::OPTIONS => preflight(),
        (Ok(_), found) => match dispatch(&app, request, found, &trace).await {
            Ok(response) => response,
            Err(e) => failure(&e, is_anthropic),
        },
    };
    trace.set_status(response.status().as_u16());
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(trace.id()) {
        headers.insert(HeaderName::from_static("x-request-id"), id.clone());
        headers.insert(HeaderName::from_static("request-id"), id);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Ok(Some(origin)) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
    }
    if !app.is_ready() && app.served().is_some() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if !is_events(headers) {
        trace.completed();
    }
    Ok(response.map(|body| body.guarded(Box::new(trace))))
}

fn is_events(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == EVENTS)
}

const EVENTS: &str = "text/event-stream";

/// The origin to allow, if the request comes from a page and may; a page of `host` itself needs no leave.
///
/// # Errors
/// 403 for a page of another origin: a browser would send the request, and only hide the answer.
fn allowed_origin(app: &App, headers: &HeaderMap, host: &[u8]) -> Result<Option<HeaderValue>, ApiError> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(None) };
    let allowed = app.config.cors_origin.as_deref();
    if allowed == Some("*") || allowed.is_some_and(|allowed| origin.as_bytes() == allowed.as_bytes()) {
        return Ok(Some(origin.clone()));
    }
    let of_page = origin.as_bytes().splitn(2, |byte| *byte == b':').nth(1).and_then(|rest| rest.strip_prefix(b"//"));
    if of_page == Some(host) && !host.is_empty() {
        return Ok(None);
    }
    let text = "pages of this origin may not use this server; serve.cors_origin of the board says which may";
    Err(ApiError::new(StatusCode::FORBIDDEN, text).code("origin_not_allowed"))
}

fn preflight() -> Response<Body> {
    let mut response = Response::new(Body::whole(""));
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("*, authorization"));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    response
}

async fn dispatch(
    app: &Rc<App>,
    request: Request<Incoming>,
    found: Option<(Route, &'static str, Method)>,
    trace: &Rc<Trace>,
) -> Result<Response<Body>, ApiError> {
    let Some((route, name, method)) = found else {
        let text = format!("there is no {}; the README lists the routes", clip(request.uri().path()));
        return Err(ApiError::new(StatusCode::NOT_FOUND, text).code("unknown_url"));
    };
    let is_head = request.method() == Method::HEAD && method == Method::GET;
    if request.method() != method && !is_head {
        let text = format!("{name} takes {method}, not {}", clip(request.method().as_str()));
        return Err(ApiError::new(StatusCode::METHOD_NOT_ALLOWED, text).code("method_not_allowed"));
    }
    if !route.is_open() && !app.keys.borrow().admits(key(request.headers())) {
        let text = "a key is needed: send `Authorization: Bearer KEY` or `x-api-key: KEY` with one from the server's keys file";
        return Err(ApiError::new(StatusCode::UNAUTHORIZED, text).code("invalid_api_key"));
    }
    match route {
        Route::Page => return Ok(page()),
        Route::Health => return Ok(status::health(app)),
        Route::Metrics => return Ok(text("text/plain; version=0.0.4", status::metrics(app))),
        Route::Status => return Ok(document(&status::status(app))),
        Route::Models => return Ok(document(&tokens::models(&*app.serving()?))),
        Route::Model => {
            let served = app.serving()?;
            let asked = request.uri().path().trim_start_matches("/v1/models/");
            if asked != served.name {
                let text = format!("there is no model {}; this server has {}", clip(asked), served.name);
                return Err(ApiError::new(StatusCode::NOT_FOUND, text).code("model_not_found"));
            }
            return Ok(document(&tokens::model(&served)));
        }
        _ => {}
    }
    // Before a body is read: nobody has to send one in vain.
    let served = app.serving()?;
    let limits = &app.config.limits;
    let received = receive(request.into_body(), limits.body_bytes, &app.budget);
    let received = tokio::time::timeout(limits.body_time, received).await.map_err(|_| {
        let text = format!("the body took longer than {} s (serve.limits.body_s)", limits.body_time.as_secs());
        ApiError::new(StatusCode::REQUEST_TIMEOUT, text)
    })??;
    let body = fields::parse(&received.bytes)?;
    // The parsed document takes its place.
    drop(received);
    Fields::of(&body)?.text("model")?;
    let trace = Rc::clone(trace);
    let answer = match route {
        Route::Chat => chat::answer(app, &served, &body, trace).await?,
        Route::Completions => completions::answer(app, &served, &body, trace).await?,
        Route::Responses => responses::answer(app, &served, &body, trace).await?,
        Route::Messages => messages::answer(app, &served, &body, trace).await?,
        Route::CountTokens => Answer::Document(messages::count_tokens(&served, &body).await?),
        Route::Tokenize => Answer::Document(tokens::tokenize(&served, &body).await?),
        Route::Detokenize => Answer::Document(tokens::detokenize(&served, &body)?),
        _ => {
            let text = "this model generates text; its hidden states are no meaningful embeddings. Use a model and a \
                        server that are made for them";
            return Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, text).code("not_implemented"));
        }
    };
    Ok(match answer {
        Answer::Document(value) => document(&value),
        Answer::Events(body) => {
            let mut response = Response::new(body);
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(EVENTS));
            response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            response
        }
    })
}

/// The key of a request: `Authorization: Bearer KEY` or `x-api-key: KEY`.
fn key(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    let bearer = bearer.and_then(|value| {
        let (scheme, key) = value.split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(key.trim_ascii())
    });
    bearer.or_else(|| headers.get("x-api-key").map(HeaderValue::as_bytes))
}

/// A client's words, in an answer to it.
fn clip(text: &str) -> String {
    text.chars().take(80).collect()
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

fn failure(error: &ApiError, is_anthropic: bool) -> Response<Body> {
    let mut response = document(&if is_anthropic { error.anthropic() } else { error.openai() });
    *response.status_mut() = error.status;
    if let Some(seconds) = error.retry_after_s {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

fn page() -> Response<Body> {
    const PAGE: &str = include_str!("page.html");
    let mut response = Response::new(Body::whole(PAGE));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                  img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    response
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_in_two_headers() {
        let headers = |name: &'static str, value: &'static str| {
            HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static(value))])
        };
        assert_eq!(key(&headers("authorization", "Bearer  abc")), Some(&b"abc"[..]));
        assert_eq!(key(&headers("authorization", "bearer abc")), Some(&b"abc"[..]));
        assert_eq!(key(&headers("authorization", "Basic abc")), None);
        assert_eq!(key(&headers("x-api-key", "abc")), Some(&b"abc"[..]));
    }

    #[test]
    fn paths_are_taken_as_they_are() {
        for path in ["/v1/../health", "//health", "/health/", "/v1/chat/completions/..", "/v1/models/", "/%2e%2e/x"] {
            assert!(route(path).is_none(), "{path}");
        }
        assert!(route("/v1/models/a/b").is_some(), "names have slashes");
    }
}
