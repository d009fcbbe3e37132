//! The server: HTTP on a thread of its own, over the batched engine.
//!
//! [`start`] opens the door before the model is loaded, so that `/health` can say how far it is; [`Server::ready`] hands
//! over the model. One event loop serves all connections. A request becomes a [`job`], and the job becomes tickets of the
//! engine. [`output`] takes their tokens apart, and [`api`] writes the answer in the form of the interface that was called.

mod api;
mod app;
mod background;
mod base64;
mod body;
mod budget;
pub mod config;
mod connection;
mod connections;
mod conversation;
mod error;
mod fields;
mod fim;
mod gbnf;
mod generate;
pub mod host;
mod job;
mod keys;
pub mod listen;
mod masks;
mod metrics;
mod model;
mod models;
mod operate;
mod output;
mod respond;
mod router;
mod schema;
mod status;
mod trace;
mod unhonoured;
mod vectors;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use crate::error::{Error, Exit, Result};
use crate::load::Progress;
use crate::sys::signal::{self, Order};
use crate::sys::zygote::Zygote;
use background::Background;
use config::ServerConfig;
pub use fim::Fim;
use keys::Keys;
use listen::Listener;
pub use masks::zygote::start as zygote;
pub use model::{About, Loaded, MappedPages};

/// Stack of the server's thread: JSON recurses, to a depth that is limited. It takes no memory until it is
/// used.
const STACK_BYTES: usize = 2 << 20;

/// Chats that are rendered at once; further ones wait. Each may take as much memory as its process is allowed.
const RENDERS_MAX: usize = 2;

/// A running server.
pub struct Server {
    ready: Option<oneshot::Sender<Vec<Loaded>>>,
    thread: Option<JoinHandle<()>>,
}

/// Starts the server over open sockets. SIGTERM, SIGINT and SIGHUP are its business from here on, so this comes before any
/// other thread is started. `facts` are for the status page until the model is there. Without `zygote` requests with a schema
/// or a grammar get 503.
///
/// # Errors
/// A keys file that cannot be used; what the system says of signals and threads.
pub fn start(
    config: ServerConfig,
    zygote: Option<Arc<Zygote>>,
    listeners: Vec<Listener>,
    progress: Arc<[Progress]>,
    facts: Value,
) -> Result<Server> {
    let keys = Keys::load(config.keys_file.as_deref())?;
    let unexpected = |e: std::io::Error| Error::new(Exit::Unexpected, format!("the server cannot be started: {e}"));
    let orders = orders(signal::order_descriptor()?).map_err(Error::thread)?;
    let texts = Background::start("brim-text", 1).map_err(Error::thread)?;
    let renders = Background::start("brim-template", RENDERS_MAX).map_err(Error::thread)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(unexpected)?;
    let (ready, loaded) = oneshot::channel();
    let thread = std::thread::Builder::new().name("brim-http".to_owned()).stack_size(STACK_BYTES);
    let thread = thread.spawn(move || {
        let tasks = tokio::task::LocalSet::new();
        let app = app::App::new(config, keys, progress, facts);
        if let Err(e) = tasks.block_on(&runtime, operate::run(app, (texts, renders), zygote, listeners, orders, loaded))
        {
            log::error!("the server ends: {e}");
        }
    });
    Ok(Server { ready: Some(ready), thread: Some(thread.map_err(Error::thread)?) })
}

/// Signals as orders to the event loop, from a thread that does nothing but wait for them.
fn orders(descriptor: OwnedFd) -> std::io::Result<mpsc::UnboundedReceiver<Order>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let thread = std::thread::Builder::new().name("brim-signals".to_owned()).stack_size(64 << 10);
    thread.spawn(move || {
        while let Ok(order) = signal::order(&descriptor) {
            if sender.send(order).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}

impl Server {
    /// Hands over the models, at least one: requests are served from here on. The first is for those that name none.
    pub fn ready(&mut self, loaded: Vec<Loaded>) {
        if let Some(ready) = self.ready.take() {
            // Where the server has ended meanwhile, dropping the handles tells the engine.
            let _ = ready.send(loaded);
        }
    }

    /// Waits for the end of the server.
    pub fn join(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // Without a model the server ends when nobody can hand one over any more.
        self.ready = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread of the server has panicked");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}
