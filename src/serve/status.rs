//! What the operator sees: `/health`, `/metrics`, and the numbers behind the status page.

use std::rc::Rc;

use hyper::Response;
use serde_json::{Value, json};

use super::api::native::sampling_json;
use super::app::App;
use super::body::Body;
use super::metrics::MetricsOf;
use super::model::Served;
use super::models::Models;
use super::respond::{not_ready, well};
use crate::engine::SlotState;
use crate::load::Progress;
use crate::sys::{file, log};

/// 200 when requests are served, else 503 with the reason and how far it is.
pub fn health(app: &App) -> Response<Body> {
    let (done, total) = Progress::sum(&app.progress);
    match (app.is_ready(), app.models()) {
        (true, _) => well(),
        (false, Some(_)) => not_ready(&json!({"status": "stopping"})),
        (false, None) => not_ready(&json!({
            "status": "loading",
            "progress": app.percent() as f64 / 100.0,
            "bytes_done": done,
            "bytes_total": total,
        })),
    }
}

/// Prometheus' text.
pub fn metrics(app: &App) -> String {
    let models = app.models();
    let models = models.as_deref().map_or(&[][..], Models::all);
    let of = |served: &Rc<Served>| MetricsOf {
        label: (models.len() > 1).then(|| served.name.clone()),
        stats: served.engine.stats(),
        pages: served.pages,
    };
    let of: Vec<MetricsOf> = models.iter().map(of).collect();
    app.metrics.text(app.connections.len(), &of, file::resident_bytes().unwrap_or(0))
}

/// `GET /props`, as llama.cpp's server has it: what the server runs, and how.
pub fn props(served: &Served) -> Value {
    let limits = served.limits();
    let mut params = sampling_json(&served.sampling);
    // A request that brings none has one of its own.
    params["seed"] = (-1).into();
    let template = served.template(false);
    json!({
        "default_generation_settings": {
            "id": 0,
            "n_ctx": limits.ctx,
            "speculative": false,
            "is_processing": false,
            "params": params,
        },
        "total_slots": limits.slots,
        "model_alias": served.name,
        "model_path": served.about.path,
        "modalities": {"vision": false, "audio": false},
        "chat_template": template.map_or("", |template| template.source()),
        "chat_template_caps": {"supports_tools": template.is_some_and(|template| template.takes_tools)},
        "bos_token": served.bos,
        "eos_token": served.eos,
        "build_info": concat!("brim-", env!("CARGO_PKG_VERSION")),
        "is_sleeping": false,
    })
}

/// `GET /slots`, as llama.cpp's server has it.
pub fn slots(served: &Served) -> Value {
    let (stats, ctx) = (served.engine.stats(), served.limits().ctx);
    let slots = stats.slots[..stats.n_slots].iter().enumerate().map(|(id, (state, tokens))| {
        json!({"id": id, "n_ctx": ctx, "speculative": false, "is_processing": *state != SlotState::Free,
            "state": state_name(*state), "n_tokens": tokens})
    });
    slots.collect()
}

fn state_name(state: SlotState) -> &'static str {
    match state {
        SlotState::Free => "free",
        SlotState::Prefill => "prefill",
        SlotState::Decode => "decode",
        SlotState::Waiting => "waiting",
    }
}

/// The numbers behind the status page: of the model that is asked for, else of the first.
pub fn status(app: &App, asked: Option<&str>) -> Value {
    let (models, (done, total)) = (app.models(), Progress::sum(&app.progress));
    let mut status = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "state": if app.is_ready() { "ready" } else if models.is_some() { "stopping" } else { "loading" },
        "load": {
            "bytes_done": done,
            "bytes_total": total,
        },
        "connections": app.connections.len(),
        "resident_bytes": file::resident_bytes().unwrap_or(0),
        "facts": app.facts,
    });
    if let Some(models) = models {
        let served = asked.and_then(|name| models.called(name)).unwrap_or(&models.all()[0]);
        let stats = served.engine.stats();
        let slots = stats.slots[..stats.n_slots]
            .iter()
            .map(|(state, tokens)| json!({"state": state_name(*state), "tokens": tokens}));
        status["model"] = served.name.as_str().into();
        if models.are_several() {
            status["models"] = models.all().iter().map(|served| served.name.as_str()).collect();
        }
        // What was mapped, in place of what was planned.
        status["facts"] = served.facts.clone();
        status["ctx"] = served.limits().ctx.into();
        status["slots"] = slots.collect();
        status["queue"] = stats.queue_len.into();
        status["tokens_in"] = stats.tokens_in.into();
        status["tokens_reused"] = stats.tokens_reused.into();
        status["tokens_out"] = stats.tokens_out.into();
        status["steps"] = stats.steps.into();
        status["kv_pages"] =
            json!({"all": stats.kv_pages, "used": stats.kv_pages_used, "cached": stats.kv_pages_cached});
        status["checkpoints"] = json!({
            "all": stats.checkpoints,
            "used": stats.checkpoints_used,
            "taken": stats.checkpoints_taken,
            "hits": stats.checkpoint_hits,
        });
        let (first_token_count, first_token_s) = app.metrics.first_token.total();
        let refused = app.metrics.refused().into_iter();
        let refused = refused.map(|(route, status, n)| json!({"route": route, "status": status, "count": n}));
        status["requests"] = json!({
            "finished": stats.finished,
            "cancelled": stats.cancelled,
            "failed": stats.failed,
            "first_token_count": first_token_count,
            "first_token_s": first_token_s,
            "refused": refused.collect::<Vec<_>>(),
            "connections_refused": app.metrics.refused_connections.get(),
            "log_lines_lost": log::lost_lines(),
        });
        status["has_template"] = served.template(false).is_some().into();
    }
    status
}
