//! GET /metrics: Prometheus text.

use super::App;
use crate::registry::Lease;
use crate::telemetry;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use std::fmt::Write;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Everything recorded, and what stands right now.
pub async fn metrics(State(app): State<Arc<App>>) -> Response {
    let (mut adapters, mut queued) = (Vec::new(), 0);
    if let Ok(serving) = app.serving() {
        adapters.extend(serving.registry.iter().filter(|served| served.parent.is_some()));
        queued = serving.engine.queued_tokens();
    }
    telemetry::gauges(queued, app.running(), adapters.len());
    let mut text = telemetry::metrics().render();
    gateway(&mut text, app.running(), &adapters);
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

/// What Kubernetes' Gateway API Inference Extension reads, under vLLM's names. Any number of adapters runs in one batch,
/// and one that has to be brought to a GPU takes about a millisecond, so each counts as running and none as waiting.
fn gateway(text: &mut String, running: usize, adapters: &[&Lease]) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let names: Vec<&str> = adapters.iter().map(|served| served.label()).collect();
    let (names, count) = (names.join(",").replace(['"', '\\', '\n'], "_"), adapters.len());
    let lora = format!("max_lora=\"{count}\",running_lora_adapters=\"{names}\",waiting_lora_adapters=\"\"");
    for (name, labels, value) in [
        ("vllm:num_requests_running", String::new(), running as u64),
        ("vllm:num_requests_waiting", String::new(), 0),
        ("vllm:kv_cache_usage_perc", String::new(), 0),
        ("vllm:lora_requests_info", format!("{{{lora}}}"), now),
    ] {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# TYPE {name} gauge\n{name}{labels} {value}");
    }
}
