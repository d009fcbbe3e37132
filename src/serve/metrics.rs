//! Counters of the server, and `/metrics` in Prometheus' text form.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::model::MappedPages;
use crate::engine::{SlotState, Stats};
use crate::sys::log;

/// Upper edges of the histograms, in seconds.
const EDGES_S: [f64; 12] = [0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0];

/// A histogram of times.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Cell<u64>; EDGES_S.len()],
    count: Cell<u64>,
    sum_s: Cell<f64>,
}

impl Histogram {
    /// Takes in one time.
    pub fn observe(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        if let Some(i) = EDGES_S.iter().position(|edge| seconds <= *edge) {
            self.buckets[i].set(self.buckets[i].get() + 1);
        }
        self.count.set(self.count.get() + 1);
        self.sum_s.set(self.sum_s.get() + seconds);
    }

    /// How many times it took in, and their sum in seconds.
    pub fn total(&self) -> (u64, f64) {
        (self.count.get(), self.sum_s.get())
    }

    fn write(&self, name: &str, help: &str, out: &mut String) {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        let mut sum = 0;
        for (edge, bucket) in EDGES_S.iter().zip(&self.buckets) {
            sum += bucket.get();
            let _ = writeln!(out, "{name}_bucket{{le=\"{edge}\"}} {sum}");
        }
        let count = self.count.get();
        let _ = writeln!(
            out,
            "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {}\n{name}_count {count}",
            self.sum_s.get()
        );
    }
}

/// Counters of the server.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Requests by route and status.
    requests: RefCell<BTreeMap<(&'static str, u16), u64>>,
    /// From the request to the first token.
    pub first_token: Histogram,
    /// From the request to the end of its answer.
    pub duration: Histogram,
    /// Connections that were refused because all were busy.
    pub refused_connections: Cell<u64>,
}

impl Metrics {
    /// Counts a request.
    pub fn count(&self, route: &'static str, status: u16) {
        *self.requests.borrow_mut().entry((route, status)).or_default() += 1;
    }

    /// Requests that were answered with an error, by route and status. What `/health` says before all is ready is none.
    pub fn refused(&self) -> Vec<(&'static str, u16, u64)> {
        let requests = self.requests.borrow();
        let errors = requests.iter().filter(|((route, status), _)| *status >= 400 && *route != "/health");
        errors.map(|((route, status), n)| (*route, *status, *n)).collect()
    }

    /// The text of `/metrics`; `models` is empty until all are loaded.
    pub fn text(&self, connections: usize, models: &[MetricsOf], resident_bytes: u64) -> String {
        let mut out = String::with_capacity(4096);
        let mut one = |name: &str, kind: &str, help: &str, value: f64| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        };
        one("brim_ready", "gauge", "1 once the model is loaded.", f64::from(u8::from(!models.is_empty())));
        one("brim_connections", "gauge", "Open connections.", connections as f64);
        let refused = self.refused_connections.get() as f64;
        one("brim_connections_refused_total", "counter", "Connections refused because all were busy.", refused);
        let lost = log::lost_lines() as f64;
        one("brim_log_lines_lost_total", "counter", "Lines of log that stderr did not take.", lost);
        one("brim_resident_bytes", "gauge", "Resident memory outside huge pages.", resident_bytes as f64);
        let rows: Vec<_> = models.iter().map(|of| (of.labels(), of.rows())).collect();
        for (at, (name, kind, help, _)) in rows.first().map(|(_, rows)| rows).into_iter().flatten().enumerate() {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, rows) in &rows {
                let _ = writeln!(out, "{name}{labels} {}", rows[at].3);
            }
        }
        out.push_str("# HELP brim_requests_total Requests by route and status.\n# TYPE brim_requests_total counter\n");
        for ((route, status), n) in &*self.requests.borrow() {
            let _ = writeln!(out, "brim_requests_total{{route=\"{route}\",status=\"{status}\"}} {n}");
        }
        self.first_token.write("brim_first_token_seconds", "Time from the request to the first token.", &mut out);
        self.duration.write("brim_request_seconds", "Time from the request to the end of its answer.", &mut out);
        out
    }
}

/// What `/metrics` says of one model.
pub struct MetricsOf {
    /// The name of the model, of one among several: the label `model`.
    pub label: Option<String>,
    /// What its engine does.
    pub stats: Stats,
    /// The pages that its memory has.
    pub pages: MappedPages,
}

/// Name, kind, help and value.
type Row = (&'static str, &'static str, &'static str, f64);

impl MetricsOf {
    fn labels(&self) -> String {
        let escaped = |name: &String| name.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        self.label.as_ref().map(|name| format!("{{model=\"{}\"}}", escaped(name))).unwrap_or_default()
    }

    fn rows(&self) -> [Row; 19] {
        let MetricsOf { stats, pages, .. } = self;
        let slots = &stats.slots[..stats.n_slots];
        let busy = slots.iter().filter(|(state, _)| *state != SlotState::Free).count();
        [
            ("brim_page_bytes", "gauge", "Size of the pages that hold the model.", pages.bytes as f64),
            (
                "brim_page_fallback",
                "gauge",
                "1 if ordinary pages are used because huge pages were not to be had (memory.fallback).",
                f64::from(u8::from(pages.is_fallback)),
            ),
            ("brim_slots", "gauge", "Sequences that can be processed at once.", stats.n_slots as f64),
            ("brim_slots_busy", "gauge", "Sequences being processed.", busy as f64),
            ("brim_queue", "gauge", "Requests waiting for a slot.", stats.queue_len as f64),
            ("brim_prompt_tokens_total", "counter", "Prompt tokens computed.", stats.tokens_in as f64),
            (
                "brim_prompt_tokens_reused_total",
                "counter",
                "Prompt tokens found in the prefix cache.",
                stats.tokens_reused as f64,
            ),
            ("brim_generated_tokens_total", "counter", "Tokens generated.", stats.tokens_out as f64),
            ("brim_steps_total", "counter", "Passes over the weights.", stats.steps as f64),
            ("brim_sequences_finished_total", "counter", "Sequences finished.", stats.finished as f64),
            (
                "brim_sequences_cancelled_total",
                "counter",
                "Sequences cancelled because their client went away.",
                stats.cancelled as f64,
            ),
            ("brim_sequences_failed_total", "counter", "Sequences that failed.", stats.failed as f64),
            ("brim_kv_pages", "gauge", "KV-cache pages.", stats.kv_pages as f64),
            ("brim_kv_pages_used", "gauge", "KV-cache pages in use by sequences.", stats.kv_pages_used as f64),
            (
                "brim_kv_pages_cached",
                "gauge",
                "KV-cache pages kept in case their prefix comes again.",
                stats.kv_pages_cached as f64,
            ),
            (
                "brim_checkpoints",
                "gauge",
                "Checkpoints of recurrent states; 0 where the model has none.",
                stats.checkpoints as f64,
            ),
            ("brim_checkpoints_used", "gauge", "Checkpoints that hold a state.", stats.checkpoints_used as f64),
            (
                "brim_checkpoints_taken_total",
                "counter",
                "Checkpoints left for later prompts.",
                stats.checkpoints_taken as f64,
            ),
            (
                "brim_checkpoint_hits_total",
                "counter",
                "Sequences that went on from a checkpoint.",
                stats.checkpoint_hits as f64,
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_add_up() {
        let metrics = Metrics::default();
        metrics.count("/health", 200);
        metrics.count("/health", 200);
        for millis in [1, 30, 30, 1_000_000] {
            metrics.duration.observe(Duration::from_millis(millis));
        }
        metrics.count("/v1/completions", 400);
        metrics.count("/health", 503);
        assert_eq!(metrics.refused(), [("/v1/completions", 400, 1)]);
        let (count, seconds) = metrics.duration.total();
        assert!(count == 4 && (seconds - 1000.061).abs() < 1e-6, "{count} {seconds}");
        let text = metrics.text(3, &[], 5);
        for line in [
            "brim_ready 0",
            "brim_connections 3",
            "# TYPE brim_log_lines_lost_total counter",
            "brim_requests_total{route=\"/health\",status=\"200\"} 2",
            "brim_request_seconds_bucket{le=\"0.005\"} 1",
            "brim_request_seconds_bucket{le=\"0.05\"} 3",
            "brim_request_seconds_bucket{le=\"+Inf\"} 4",
            "brim_request_seconds_count 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in {text}");
        }
    }
}
