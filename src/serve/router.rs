//! Routes: who may ask what, in which form errors go out, and what is kept of a request.

use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use serde_json::Value;

use super::api::{Answer, chat, completions, embeddings, messages, native, ollama, rerank, responses, tokens};
use super::app::App;
use super::body::{Body, receive};
use super::connections::Connection;
use super::error::{ApiError, ErrorForm};
use super::fields::{self, Fields};
use super::host;
use super::model::Served;
use super::respond::{document, events, failure, is_streamed, lines, page, preflight, text, written};
use super::status;
use super::trace::Trace;

/// What a route does.
#[derive(Clone, Copy, PartialEq)]
enum Route {
    Page,
    Health,
    Metrics,
    Status,
    Props,
    Slots,
    Models,
    Model,
    Chat,
    CountChat,
    ApplyTemplate,
    Completions,
    Completion,
    Infill,
    Responses,
    CountResponses,
    Messages,
    CountTokens,
    Tokenize,
    Detokenize,
    TokenizerInfo,
    Embeddings,
    LlamaEmbedding,
    Rerank,
    OllamaVersion,
    OllamaTags,
    OllamaPs,
    OllamaShow,
    OllamaChat,
    OllamaGenerate,
    OllamaEmbed,
}

/// The route of a path, its name in log and metrics, and the method it needs. OpenAI's and Anthropic's are there without their
/// `/v1` as well: some clients take a base address with it, and some without.
fn route(path: &str) -> Option<(Route, &'static str, Method)> {
    let (get, post) = (Method::GET, Method::POST);
    Some(match path {
        "/" => (Route::Page, "/", get),
        "/health" | "/v1/health" => (Route::Health, "/health", get),
        "/metrics" => (Route::Metrics, "/metrics", get),
        "/status" => (Route::Status, "/status", get),
        "/props" => (Route::Props, "/props", get),
        "/slots" => (Route::Slots, "/slots", get),
        "/v1/models" | "/models" => (Route::Models, "/v1/models", get),
        "/v1/chat/completions" | "/chat/completions" => (Route::Chat, "/v1/chat/completions", post),
        "/v1/completions" | "/completions" => (Route::Completions, "/v1/completions", post),
        "/v1/chat/completions/input_tokens" | "/chat/completions/input_tokens" => {
            (Route::CountChat, "/v1/chat/completions/input_tokens", post)
        }
        "/apply-template" => (Route::ApplyTemplate, "/apply-template", post),
        "/completion" => (Route::Completion, "/completion", post),
        "/infill" => (Route::Infill, "/infill", post),
        "/v1/responses" | "/responses" => (Route::Responses, "/v1/responses", post),
        "/v1/responses/input_tokens" | "/responses/input_tokens" => {
            (Route::CountResponses, "/v1/responses/input_tokens", post)
        }
        "/v1/messages" | "/messages" => (Route::Messages, "/v1/messages", post),
        "/v1/messages/count_tokens" | "/messages/count_tokens" => {
            (Route::CountTokens, "/v1/messages/count_tokens", post)
        }
        "/tokenize" => (Route::Tokenize, "/tokenize", post),
        "/tokenizer_info" => (Route::TokenizerInfo, "/tokenizer_info", get),
        "/detokenize" => (Route::Detokenize, "/detokenize", post),
        "/v1/embeddings" | "/embeddings" => (Route::Embeddings, "/v1/embeddings", post),
        "/embedding" => (Route::LlamaEmbedding, "/embedding", post),
        "/v1/rerank" | "/rerank" | "/v1/reranking" | "/reranking" => (Route::Rerank, "/v1/rerank", post),
        "/api/version" => (Route::OllamaVersion, "/api/version", get),
        "/api/tags" => (Route::OllamaTags, "/api/tags", get),
        "/api/ps" => (Route::OllamaPs, "/api/ps", get),
        "/api/show" => (Route::OllamaShow, "/api/show", post),
        "/api/chat" => (Route::OllamaChat, "/api/chat", post),
        "/api/generate" => (Route::OllamaGenerate, "/api/generate", post),
        "/api/embed" | "/api/embeddings" => (Route::OllamaEmbed, "/api/embed", post),
        path if model_of(path).is_some_and(|name| !name.is_empty()) => (Route::Model, "/v1/models", get),
        _ => return None,
    })
}

/// The model that a path asks for, as it is written.
fn model_of(path: &str) -> Option<&str> {
    path.strip_prefix("/v1").unwrap_or(path).strip_prefix("/models/")
}

impl Route {
    /// Whether everybody may ask.
    fn is_open(self) -> bool {
        matches!(self, Route::Page | Route::Health | Route::Metrics)
    }

    /// That the model makes what is asked for.
    ///
    /// # Errors
    /// 501 where it does not.
    fn suits(self, served: &Served) -> Result<(), ApiError> {
        match self {
            Route::Embeddings | Route::LlamaEmbedding | Route::OllamaEmbed => embeddings::supported(served),
            Route::Rerank => rerank::supported(served),
            Route::Chat
            | Route::Completions
            | Route::Infill
            | Route::Completion
            | Route::Responses
            | Route::Messages
            | Route::OllamaChat
            | Route::OllamaGenerate => embeddings::makes_text(served),
            _ => Ok(()),
        }
    }

    /// The form of its errors.
    fn error_form(self) -> ErrorForm {
        match self {
            Route::Messages | Route::CountTokens => ErrorForm::Anthropic,
            Route::OllamaVersion
            | Route::OllamaTags
            | Route::OllamaPs
            | Route::OllamaShow
            | Route::OllamaChat
            | Route::OllamaGenerate
            | Route::OllamaEmbed => ErrorForm::Ollama,
            _ => ErrorForm::OpenAi,
        }
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
    connection.takes_interim.set(request.version() == Version::HTTP_11);
    let host = host::of_request(&request, &connection.hosts);
    let origin = host.and_then(|host| allowed_origin(&app, request.headers(), host));
    let found = route(request.uri().path());
    if let Some((_, name, _)) = &found {
        trace.set_route(name);
    }
    let form = match &found {
        _ if request.headers().contains_key("anthropic-version") => ErrorForm::Anthropic,
        Some((route, ..)) => route.error_form(),
        None => ErrorForm::OpenAi,
    };
    let mut response = match (&origin, found) {
        (Err(e), _) => failure(e, form),
        (Ok(Some(_)), _) if request.method() == Method::OPTIONS => preflight(),
        (Ok(_), found) => match dispatch(&app, request, found, &trace).await {
            Ok(response) => response,
            Err(e) => failure(&e, form),
        },
    };
    connection.takes_interim.set(false);
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
    if !app.is_ready() && app.models().is_some() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if !is_streamed(headers) {
        trace.completed();
    }
    Ok(response.map(|body| body.guarded(Box::new(trace))))
}

/// The origin to allow, if the request comes from a page and may; a page of `host` itself needs no leave.
///
/// # Errors
/// 403 for a page of another origin: a browser would send the request, and only hide the answer.
fn allowed_origin(app: &App, headers: &HeaderMap, host: &[u8]) -> Result<Option<HeaderValue>, ApiError> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(None) };
    let is_allowed = |allowed: &str| match allowed {
        "*" => true,
        "localhost" => host::is_local_origin(origin.as_bytes()),
        one => origin.as_bytes() == one.as_bytes(),
    };
    if app.config.cors_origin.as_deref().is_some_and(is_allowed) {
        return Ok(Some(origin.clone()));
    }
    let of_page = origin.as_bytes().splitn(2, |byte| *byte == b':').nth(1).and_then(|rest| rest.strip_prefix(b"//"));
    if of_page == Some(host) && !host.is_empty() {
        return Ok(None);
    }
    let text = "pages of this origin may not use this server; serve.cors_origin in the board names those that may";
    Err(ApiError::new(StatusCode::FORBIDDEN, text).code("origin_not_allowed"))
}

/// The route of a request that may take it.
fn admitted(
    app: &App,
    request: &Request<Incoming>,
    found: Option<(Route, &'static str, Method)>,
) -> Result<Route, ApiError> {
    let Some((route, name, method)) = found else {
        let text = format!("no such route: {}; the README lists them", clip(request.uri().path()));
        return Err(ApiError::new(StatusCode::NOT_FOUND, text).code("unknown_url"));
    };
    let is_head = request.method() == Method::HEAD && method == Method::GET;
    if request.method() != method && !is_head {
        let text = format!("{name} takes {method}, not {}", clip(request.method().as_str()));
        let methods = if method == Method::GET { "GET, HEAD, OPTIONS" } else { "POST, OPTIONS" };
        let refused = ApiError::new(StatusCode::METHOD_NOT_ALLOWED, text).code("method_not_allowed");
        return Err(refused.header(header::ALLOW, methods));
    }
    if !route.is_open() && !app.keys.borrow().admits(key(request.headers())) {
        let text = "an API key is required: send `Authorization: Bearer KEY` or `x-api-key: KEY` with one from the server's keys file";
        let refused = ApiError::new(StatusCode::UNAUTHORIZED, text).code("invalid_api_key");
        return Err(refused.header(header::WWW_AUTHENTICATE, "Bearer"));
    }
    Ok(route)
}

/// How long what has come before the end of a connection takes to be read.
const LAST_BYTES: Duration = Duration::from_millis(250);

/// The document that a request sends.
async fn receive_json(app: &App, request: Request<Incoming>, trace: &Trace) -> Result<Value, ApiError> {
    if let Some(encoding) = request.headers().get(header::CONTENT_ENCODING)
        && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        let text = format!(
            "the body is encoded as {}, which this server does not read; send it as it is, without content-encoding",
            clip(&String::from_utf8_lossy(encoding.as_bytes()))
        );
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text).code("unsupported_encoding"));
    }
    let limits = &app.config.limits;
    let received = receive(request.into_body(), limits.body_bytes, &app.budget);
    let received = async {
        tokio::select! {
            biased;
            received = received => received,
            () = async { trace.client_ended().await; tokio::time::sleep(LAST_BYTES).await } => {
                Err(ApiError::bad("the connection ended before the body was complete"))
            }
        }
    };
    let received = tokio::time::timeout(limits.body_time, received).await.map_err(|_| {
        let text = format!("the body took longer than {} s (serve.limits.body_s)", limits.body_time.as_secs());
        ApiError::new(StatusCode::REQUEST_TIMEOUT, text)
    })??;
    // The parsed document takes the place of what was received.
    fields::parse(&received.bytes)
}

async fn dispatch(
    app: &Rc<App>,
    request: Request<Incoming>,
    found: Option<(Route, &'static str, Method)>,
    trace: &Rc<Trace>,
) -> Result<Response<Body>, ApiError> {
    let route = admitted(app, &request, found)?;
    match route {
        Route::Page => return page(request.headers()),
        Route::Health => return Ok(status::health(app)),
        Route::Metrics => return Ok(text("text/plain; version=0.0.4", status::metrics(app))),
        Route::Status => return Ok(document(&status::status(app, asked_for(request.uri()).as_deref()))),
        Route::Props | Route::Slots | Route::TokenizerInfo => {
            let models = app.serving()?;
            let served = models.asked(asked_for(request.uri()).as_deref())?.unwrap_or(&models.all()[0]);
            return Ok(document(&match route {
                Route::Props => status::props(served),
                Route::Slots => status::slots(served),
                _ => tokens::info(served),
            }));
        }
        Route::OllamaVersion => return Ok(document(&ollama::version())),
        Route::OllamaTags => return Ok(document(&ollama::tags(&*app.serving()?))),
        Route::OllamaPs => return Ok(document(&ollama::ps(&*app.serving()?))),
        Route::Models => return Ok(document(&tokens::models(&*app.serving()?))),
        Route::Model => {
            let models = app.serving()?;
            let asked = decoded(model_of(request.uri().path()).unwrap_or_default());
            let served = models.called(&asked).ok_or_else(|| models.unknown(&asked))?;
            return Ok(document(&tokens::model(served)));
        }
        _ => {}
    }
    // Before a body is read: nobody has to send one in vain.
    let models = app.serving()?;
    let first = models.first(|served| route.suits(served))?;
    let body = receive_json(app, request, trace).await?;
    let asked = Fields::of(&body)?.text("model")?;
    let served = Rc::clone(models.asked(asked)?.unwrap_or(first));
    route.suits(&served)?;
    if models.are_several() {
        trace.set_model(&served);
    }
    let trace = Rc::clone(trace);
    let answer = match route {
        Route::Chat => chat::answer(app, &served, &body, trace).await?,
        Route::Completions => completions::answer(app, &served, &body, trace).await?,
        Route::Responses => responses::answer(app, &served, &body, trace).await?,
        Route::Messages => messages::answer(app, &served, &body, trace).await?,
        Route::CountTokens => Answer::Document(messages::count_tokens(&served, &body).await?),
        Route::Tokenize => Answer::Document(tokens::tokenize(&served, &body).await?),
        Route::Detokenize => Answer::Document(tokens::detokenize(&served, &body)?),
        Route::Embeddings | Route::LlamaEmbedding | Route::OllamaEmbed => {
            let interface = match route {
                Route::Embeddings => embeddings::Interface::OpenAi,
                Route::LlamaEmbedding => embeddings::Interface::Llama,
                _ => embeddings::Interface::Ollama,
            };
            embeddings::answer(app, &served, (interface, &body), &trace).await?
        }
        Route::Rerank => rerank::answer(app, &served, &body, &trace).await?,
        Route::OllamaShow => Answer::Document(ollama::show(&models, &body)?),
        Route::CountChat => Answer::Document(chat::count_tokens(&served, &body).await?),
        Route::CountResponses => Answer::Document(responses::count_tokens(&served, &body).await?),
        Route::ApplyTemplate => Answer::Document(chat::apply_template(&served, &body).await?),
        Route::Completion => native::completion(app, &served, &body, trace).await?,
        Route::Infill => native::infill(app, &served, &body, trace).await?,
        Route::OllamaChat => ollama::chat(app, &served, &body, trace).await?,
        Route::OllamaGenerate => ollama::generate(app, &served, &body, trace).await?,
        // Named one by one: a new route does not build until it is answered.
        Route::Page
        | Route::Health
        | Route::Metrics
        | Route::Status
        | Route::Models
        | Route::Model
        | Route::Props
        | Route::Slots
        | Route::TokenizerInfo
        | Route::OllamaVersion
        | Route::OllamaTags
        | Route::OllamaPs => {
            return Err(ApiError::internal("this route is answered without a body"));
        }
    };
    Ok(match answer {
        Answer::Document(value) => document(&value),
        Answer::Events(body) => events(body),
        Answer::Lines(body) => lines(body),
        Answer::Written(body) => written(body),
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

/// The model that a query asks for: `?model=NAME`.
fn asked_for(uri: &Uri) -> Option<String> {
    let pairs = uri.query()?.split('&');
    pairs.filter_map(|pair| pair.strip_prefix("model=")).next().map(decoded)
}

/// A part of a path or query, percent-decoded; what is no escape stays as it is.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let digits = text.get(at + 1..at + 3).filter(|_| byte == b'%');
        let escaped = digits.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        match escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(escaped) => {
                out.push(escaped);
                at += 3;
            }
            None => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A client's words, in an answer to it.
fn clip(text: &str) -> String {
    text.chars().take(80).collect()
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
        for (uri, want) in
            [("/props", None), ("/props?x=1&model=a%2Fb&model=c", Some("a/b")), ("/slots?model=", Some(""))]
        {
            assert_eq!(asked_for(&uri.parse().unwrap()).as_deref(), want);
        }
        assert_eq!(model_of("/models/a%2Fb").map(decoded).as_deref(), Some("a/b"));
        for (text, want) in [("%C3%A9", "é"), ("100%", "100%"), ("%4g%é", "%4g%é"), ("a+b", "a+b"), ("%ff", "\u{fffd}")]
        {
            assert_eq!(decoded(text), want);
        }
    }
}
