//! Logs and metrics: how they are set up, and every metric's name.

use crate::error::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::io::IsTerminal;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tracing_subscriber::EnvFilter;

/// Seconds: from a tenth of a millisecond to a minute.
const SECONDS: [f64; 18] =
    [0.0001, 0.0003, 0.001, 0.002, 0.004, 0.008, 0.016, 0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 60.0];
/// Tokens, sequences or segments.
const COUNTS: [f64; 16] =
    [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 65536.0];

/// Starts logging to standard error; `level` is a tracing filter, `json` chooses the form.
pub fn log(level: &str, json: bool) -> Result<()> {
    let filter = EnvFilter::try_new(level).map_err(|e| Error::Config(format!("server.log_level '{level}': {e}")))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let builder = builder.with_ansi(std::io::stderr().is_terminal());
    let started = if json { builder.json().try_init() } else { builder.try_init() };
    started.map_err(|e| Error::Internal(format!("cannot start logging: {e}")))
}

/// The process's metrics, installed by the first who asks.
pub fn metrics() -> &'static PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)
            .and_then(|b| b.set_buckets_for_metric(Matcher::Suffix("_duration".into()), &SECONDS))
            .and_then(|b| b.set_buckets(&COUNTS))
            .expect("buckets are not empty")
            .build_recorder();
        let handle = recorder.handle();
        // Without upkeep, histograms keep every sample until somebody asks for them.
        let upkept = handle.clone();
        let upkeep = move || {
            loop {
                std::thread::sleep(Duration::from_secs(5));
                upkept.run_upkeep();
            }
        };
        std::thread::Builder::new().name("metrics".into()).spawn(upkeep).expect("a thread can be started");
        // Another recorder in this process (an embedder's own) keeps its place; ours then stays empty.
        let _ = metrics::set_global_recorder(recorder);
        describe();
        handle
    })
}

fn describe() {
    describe_counter!("veneer_requests_total", "Embedding requests by adapter (or base) and HTTP status");
    describe_histogram!("veneer_request_seconds", "Time of an embedding request, whole");
    describe_counter!("veneer_tokens_total", "Tokens embedded, by adapter (or base)");
    describe_counter!("veneer_sequences_total", "Sequences embedded, by adapter (or base)");
    describe_histogram!("veneer_queue_seconds", "Time between admission and the batch");
    describe_histogram!("veneer_tokenize_seconds", "Time to tokenize a request");
    describe_histogram!("veneer_forward_seconds", "Time of one batch on the device");
    describe_histogram!(
        "veneer_gpu_wait_seconds",
        "Time that a GPU's thread, with nothing else to do, waited for a batch; where it is 0 under load, the GPU waits for it"
    );
    describe_counter!("veneer_batches_total", "Batches, by the number of their device in the configuration");
    describe_counter!("veneer_batches_halved_total", "Batches that did not fit into a device's memory");
    describe_counter!("veneer_adapters_brought_total", "Adapters brought to a GPU's memory, by how it went");
    describe_counter!(
        "veneer_graphs_launched_total",
        "Times that a GPU was asked for all of a small batch's kernels at once"
    );
    describe_histogram!("veneer_batch_tokens", "Tokens of a batch");
    describe_histogram!("veneer_batch_sequences", "Sequences of a batch");
    describe_histogram!("veneer_batch_segments", "Adapters and pipelines mixed in a batch");
    describe_gauge!("veneer_queue_tokens", "Tokens admitted and not yet answered");
    describe_gauge!("veneer_requests_running", "Embedding requests under way");
    describe_gauge!("veneer_adapters_loaded", "Adapters served");
    describe_counter!("te_request_count", "Embedding requests (text-embeddings-inference's name)");
    describe_counter!("te_request_success", "Embedding requests answered (text-embeddings-inference's name)");
    describe_gauge!("te_queue_size", "Requests under way (text-embeddings-inference's name)");
    describe_histogram!("te_batch_next_tokens", "Tokens of a batch (text-embeddings-inference's name)");
    describe_histogram!("te_batch_next_size", "Sequences of a batch (text-embeddings-inference's name)");
    describe_histogram!("te_embed_duration", "Time of an embedding request (text-embeddings-inference's name)");
}

/// A batch did not fit into a device's memory.
pub fn halved() {
    counter!("veneer_batches_halved_total").increment(1);
}

/// An adapter was brought to a GPU, or could not be.
pub fn brought(is_there: bool) {
    counter!("veneer_adapters_brought_total", "result" => if is_there { "ok" } else { "failed" }).increment(1);
}

/// The thread of the GPU of so many has waited for a batch.
pub fn waited(device: usize, time: Duration) {
    histogram!("veneer_gpu_wait_seconds", "device" => device.to_string()).record(time);
}

/// A GPU was asked for a list of kernels at once.
pub fn graph() {
    counter!("veneer_graphs_launched_total").increment(1);
}

/// One batch has run, on the device of so many.
pub fn batch(device: usize, tokens: usize, sequences: usize, segments: usize, computed: Duration) {
    counter!("veneer_batches_total", "device" => device.to_string()).increment(1);
    histogram!("veneer_forward_seconds").record(computed);
    histogram!("veneer_batch_tokens").record(tokens as f64);
    histogram!("veneer_batch_sequences").record(sequences as f64);
    histogram!("veneer_batch_segments").record(segments as f64);
    histogram!("te_batch_next_tokens").record(tokens as f64);
    histogram!("te_batch_next_size").record(sequences as f64);
}

/// Sequences of a batch have run: each by the served name of its adapter, so that names are bounded by what is loaded, its
/// tokens, and how long it was queued. To find a counter takes longer than to count, so neighbours of one name are counted
/// together.
pub fn sequences<'a>(run: impl Iterator<Item = (&'a str, usize, Duration)>) {
    let queue = histogram!("veneer_queue_seconds");
    let count = |(adapter, tokens, sequences): (&str, usize, u64)| {
        counter!("veneer_tokens_total", "adapter" => adapter.to_owned()).increment(tokens as u64);
        counter!("veneer_sequences_total", "adapter" => adapter.to_owned()).increment(sequences);
    };
    let mut together: Option<(&str, usize, u64)> = None;
    for (adapter, tokens, queued) in run {
        queue.record(queued);
        match &mut together {
            Some((name, all, sequences)) if *name == adapter => {
                *all += tokens;
                *sequences += 1;
            }
            _ => together.replace((adapter, tokens, 1)).into_iter().for_each(count),
        }
    }
    together.into_iter().for_each(count);
}

/// A request's texts are tokenized.
pub fn tokenized(took: Duration) {
    histogram!("veneer_tokenize_seconds").record(took);
}

/// A request is answered; `adapter` is a served name, or empty where none was found.
pub fn request(adapter: &str, status: u16, took: Duration) {
    let labels = [("adapter", adapter.to_owned()), ("status", status.to_string())];
    counter!("veneer_requests_total", &labels).increment(1);
    histogram!("veneer_request_seconds").record(took);
    histogram!("te_embed_duration").record(took);
    counter!("te_request_count").increment(1);
    if status == 200 {
        counter!("te_request_success").increment(1);
    }
}

/// What stands right now, read when metrics are.
pub fn gauges(queued_tokens: usize, requests_running: usize, adapters: usize) {
    gauge!("veneer_queue_tokens").set(queued_tokens as f64);
    gauge!("veneer_requests_running").set(requests_running as f64);
    gauge!("te_queue_size").set(requests_running as f64);
    gauge!("veneer_adapters_loaded").set(adapters as f64);
}

/// How far something long has come: a bar on a terminal; elsewhere log lines, not more than one in five seconds.
pub struct Progress {
    bar: ProgressBar,
    what: String,
    began: Instant,
    logged_s: AtomicU64,
}

impl Progress {
    /// At the beginning.
    pub fn new(what: &str) -> Self {
        let style = ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len}").expect("the template is well-formed");
        let bar = ProgressBar::new(0).with_style(style).with_message(what.to_owned());
        if bar.is_hidden() {
            tracing::info!("{what}");
        }
        Self { bar, what: what.to_owned(), began: Instant::now(), logged_s: AtomicU64::new(0) }
    }

    /// So many of so many.
    pub fn at(&self, done: usize, all: usize) {
        self.bar.set_length(all as u64);
        self.bar.set_position(done as u64);
        let now_s = self.began.elapsed().as_secs();
        if self.bar.is_hidden() && now_s >= self.logged_s.load(Ordering::Relaxed) + 5 {
            self.logged_s.store(now_s, Ordering::Relaxed);
            tracing::info!(done, all, "{}", self.what);
        }
    }

    /// Takes the bar away.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}
