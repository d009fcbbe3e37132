//! What all requests share, and where the server is in its life.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use hyper::StatusCode;
use serde_json::Value;
use tokio::sync::Notify;

use super::body::Budget;
use super::config::ServerConfig;
use super::connections::Connections;
use super::error::ApiError;
use super::keys::Keys;
use super::metrics::Metrics;
use super::model::unix_time;
use super::models::Models;
use crate::load::Progress;

/// Bodies in memory at once, in bodies of the greatest size.
const BODIES: usize = 2;

/// Where the server is in its life.
pub enum ServingStage {
    /// The models are being loaded.
    Loading,
    /// Requests are served.
    Ready(Rc<Models>),
    /// Requests that are here are finished, others refused.
    Stopping(Rc<Models>),
}

/// What all requests share.
pub struct App {
    /// What the server was told to do.
    pub config: ServerConfig,
    /// The API keys.
    pub keys: RefCell<Keys>,
    /// All connections.
    pub connections: Rc<Connections>,
    /// Counters.
    pub metrics: Metrics,
    /// How far the load of each model is.
    pub progress: Arc<[Progress]>,
    /// Facts about models and memory that are known before the load, for the status page.
    pub facts: Value,
    stage: RefCell<ServingStage>,
    pub(super) budget: Rc<Budget>,
    in_flight: Cell<usize>,
    quiet: Notify,
    last_id: Cell<u64>,
}

impl App {
    /// A server whose models are being loaded.
    pub fn new(config: ServerConfig, keys: Keys, progress: Arc<[Progress]>, facts: Value) -> Rc<App> {
        let budget = Budget::new(config.limits.body_bytes * BODIES);
        Rc::new(App {
            config,
            keys: RefCell::new(keys),
            connections: Rc::default(),
            metrics: Metrics::default(),
            progress,
            facts,
            stage: RefCell::new(ServingStage::Loading),
            budget,
            in_flight: Cell::new(0),
            quiet: Notify::new(),
            last_id: Cell::new(unix_time() << 20),
        })
    }

    /// Requests are served from here on.
    pub fn ready(&self, models: Rc<Models>) {
        *self.stage.borrow_mut() = ServingStage::Ready(models);
    }

    /// No request is taken from here on.
    pub fn stop(&self) {
        if let Some(models) = self.models() {
            *self.stage.borrow_mut() = ServingStage::Stopping(models);
        }
    }

    /// The models, if they are there yet.
    pub fn models(&self) -> Option<Rc<Models>> {
        match &*self.stage.borrow() {
            ServingStage::Loading => None,
            ServingStage::Ready(models) | ServingStage::Stopping(models) => Some(Rc::clone(models)),
        }
    }

    /// Whether requests are served.
    pub fn is_ready(&self) -> bool {
        matches!(&*self.stage.borrow(), ServingStage::Ready(_))
    }

    /// The models, for a request.
    pub(super) fn serving(&self) -> Result<Rc<Models>, ApiError> {
        let unavailable = |text: String| Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, text).retry_after(5));
        match &*self.stage.borrow() {
            ServingStage::Ready(models) => Ok(Rc::clone(models)),
            ServingStage::Stopping(_) => unavailable("the server is stopping".to_owned()),
            ServingStage::Loading => unavailable(format!("the model is being loaded: {} %", self.percent())),
        }
    }

    /// How far the load is.
    pub fn percent(&self) -> u64 {
        let (done, total) = Progress::sum(&self.progress);
        done * 100 / total.max(1)
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
