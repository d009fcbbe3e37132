//! One request from its header to the last byte of its answer: what the log and the metrics say of it.

use std::cell::{Cell, OnceCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::app::App;
use super::connections::{Connection, Phase};
use super::generate::{Generation, Usage};
use super::model::Served;

/// A request on its way. When it is dropped it is logged and counted, and its connection is idle again.
pub struct Trace {
    app: Rc<App>,
    connection: Rc<Connection>,
    started: Instant,
    id: String,
    route: Cell<&'static str>,
    /// Which of several models it is for.
    model: OnceCell<Rc<Served>>,
    status: Cell<u16>,
    usage: Cell<Usage>,
    first_token: Cell<Option<Duration>>,
    /// The client has all of it, as far as brim knows.
    complete: Cell<bool>,
}

impl Trace {
    /// For a request whose header has just been read.
    pub fn new(app: Rc<App>, connection: Rc<Connection>) -> Rc<Trace> {
        let id = app.next_request_id();
        app.enter();
        Rc::new(Trace {
            app,
            connection,
            started: Instant::now(),
            id,
            route: Cell::new("other"),
            model: OnceCell::new(),
            status: Cell::new(0),
            usage: Cell::new(Usage::default()),
            first_token: Cell::new(None),
            complete: Cell::new(false),
        })
    }

    /// The id, as the client sees it in `x-request-id`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Which route it is for.
    pub fn set_route(&self, route: &'static str) {
        self.route.set(route);
    }

    /// Which of several models it is for.
    pub fn set_model(&self, served: &Rc<Served>) {
        self.model.get_or_init(|| Rc::clone(served));
    }

    /// What it was answered.
    pub fn set_status(&self, status: u16) {
        self.status.set(status);
    }

    /// Takes note of how far a generation is.
    pub fn saw(&self, generation: &Generation) {
        self.usage.set(generation.usage);
        if self.first_token.get().is_none() {
            self.first_token.set(generation.first_token);
        }
    }

    /// Takes note of tokens that were read.
    pub fn counts(&self, usage: Usage) {
        self.usage.set(usage);
    }

    /// Waits until the client has closed its half of the connection.
    pub async fn client_ended(&self) {
        self.connection.ended().await;
    }

    /// The whole answer has been made.
    pub fn completed(&self) {
        self.complete.set(true);
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        self.connection.enter(Phase::Idle);
        self.app.leave();
        let elapsed = self.started.elapsed();
        let metrics = &self.app.metrics;
        metrics.count(self.route.get(), self.status.get());
        metrics.duration.observe(elapsed);
        if let Some(first) = self.first_token.get() {
            metrics.first_token.observe(first);
        }
        let usage = self.usage.get();
        let model = self.model.get().map(|served| format!(" {}", served.name)).unwrap_or_default();
        let cancelled = if self.complete.get() { "" } else { " cancelled" };
        let first = self.first_token.get().map_or_else(|| "-".to_owned(), |t| format!("{:.1}", t.as_secs_f64() * 1e3));
        // Health checks and scrapes come by the second: they are told with -v.
        let level = match self.route.get() {
            "/health" | "/metrics" | "/status" if self.status.get() < 400 => log::Level::Debug,
            _ => log::Level::Info,
        };
        log::log!(
            level,
            "{} {}{model} {}{cancelled}: {} tokens in ({} cached), {} out, first after {first} ms, {:.1} ms",
            self.id,
            self.route.get(),
            self.status.get(),
            usage.prompt,
            usage.cached,
            usage.completion,
            elapsed.as_secs_f64() * 1e3
        );
    }
}
