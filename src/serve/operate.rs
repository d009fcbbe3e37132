//! The life of the server: loading, ready, stopping; and what the supervisor is told of it.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;

use super::app::App;
use super::background::Background;
use super::connection;
use super::listen::Listener;
use super::model::{Loaded, Served};
use super::models::Models;
use crate::sys::signal::Order;
use crate::sys::zygote::Zygote;
use crate::sys::{socket, supervisor};

/// Runs the server until it is told to stop, and requests are finished or out of time.
///
/// # Errors
/// What the event loop says of the descriptors.
pub async fn run(
    app: Rc<App>,
    (texts, renders): (Background, Background),
    zygote: Option<Arc<Zygote>>,
    listeners: Vec<Listener>,
    mut orders: UnboundedReceiver<Order>,
    loaded: oneshot::Receiver<Vec<Loaded>>,
) -> io::Result<()> {
    let sweeping = app.connections.clone();
    let limits = app.config.limits;
    tokio::task::spawn_local(async move { sweeping.sweep(limits).await });
    let acceptors: Vec<_> = listeners
        .into_iter()
        .map(|listener| {
            let app = Rc::clone(&app);
            tokio::task::spawn_local(async move {
                if let Err(e) = connection::accept(listener, app).await {
                    log::error!("a listening socket cannot be used: {e}");
                }
            })
        })
        .collect();
    let models = tokio::select! {
        // Where the load has failed, who loaded says why.
        loaded = loaded => {
            let served = |loaded: (u8, Loaded)| {
                let threads = (texts.clone(), renders.clone());
                Rc::new(Served::new(loaded, threads, zygote.clone(), app.config.log_prompts))
            };
            let served = (0..).zip(loaded.unwrap_or_default()).map(served);
            let Some(models) = Models::new(served.collect()) else { return Ok(()) };
            Rc::new(models)
        },
        // Nothing is lost by it: nothing has been served yet.
        () = stop_order(&app, &mut orders) => {
            acceptors.into_iter().for_each(|acceptor| acceptor.abort());
            tokio::task::yield_now().await;
            end_while_loading();
        }
    };
    app.ready(Rc::clone(&models));
    report_ready(&app);
    let watching = tokio::task::spawn_local(watch(Rc::clone(&models)));
    stop_order(&app, &mut orders).await;
    log::info!("stopping: requests have {} s to finish", limits.drain_time.as_secs());
    tell("STOPPING=1");
    app.stop();
    acceptors.into_iter().for_each(|acceptor| acceptor.abort());
    app.connections.close_idle();
    tokio::select! {
        () = app.quiet() => {}
        () = tokio::time::sleep(limits.drain_time) => log::warn!("cutting off the remaining requests: their time is over"),
        () = stop_order(&app, &mut orders) => log::warn!("cutting off the remaining requests: told to stop once more"),
    }
    watching.abort();
    models.all().iter().for_each(|served| served.engine.stop());
    Ok(())
}

/// A load cannot be interrupted, and the kernel takes back everything.
#[allow(clippy::exit, reason = "the loading threads would go on for minutes")]
fn end_while_loading() -> ! {
    log::info!("stopped while the model was being loaded");
    std::process::exit(0)
}

/// Waits for the order to stop; carries out others meanwhile.
async fn stop_order(app: &App, orders: &mut UnboundedReceiver<Order>) {
    while let Some(Order::Reload) = orders.recv().await {
        match app.keys.borrow_mut().reload() {
            Ok(n) => log::info!("API keys reloaded: {n}"),
            Err(e) => log::error!("{e}; the keys stay as they were"),
        }
    }
}

fn report_ready(app: &App) {
    tell("READY=1");
    if let Some(fd) = app.config.ready_fd
        && let Err(e) = supervisor::report_ready(fd)
    {
        log::warn!("--ready-fd {fd}: {e}");
    }
}

fn tell(state: &str) {
    if let Err(e) = socket::notify_supervisor(state) {
        log::warn!("cannot tell the supervisor {state}: {e}");
    }
}

/// Keeps the supervisor's watchdog quiet, as long as the engine shows signs of life.
async fn watch(models: Rc<Models>) {
    let Some(period) = supervisor::watchdog() else { return };
    loop {
        // One thread works for all of them: it is alive if any is.
        let since_beat = models.all().iter().map(|served| served.engine.stats().since_beat).min();
        if is_alive(since_beat.unwrap_or_default(), period) {
            tell("WATCHDOG=1");
        }
        tokio::time::sleep(period / 3).await;
    }
}

/// A pass of the engine may take as long as the supervisor's patience, not longer.
fn is_alive(since_beat: Duration, period: Duration) -> bool {
    since_beat < period
}
