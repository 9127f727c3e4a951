//! veneer: arguments, configuration, telemetry, registry, serving, draining.

mod once;

use anyhow::Context;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use veneer::cli::{self, Action};
use veneer::config::{Config, LogFormat};
use veneer::http::{self, App, Serving};
use veneer::hub::{Hub, HubConfig};
use veneer::telemetry;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// After draining, for batches that are computed.
const GRACE: Duration = Duration::from_secs(2);

/// A bad configuration, or files that do not load.
const REFUSED: u8 = 2;

fn main() -> ExitCode {
    let texts = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    // What is empty is not set: files of compose write so.
    let environment: BTreeMap<String, String> = texts.filter(|(_, value)| !value.is_empty()).collect();
    let (outcome, failure) = match cli::parse(std::env::args_os(), &environment) {
        Err(error) => (Err(error.into()), REFUSED),
        Ok(Action::PrintConfig(config)) => {
            print!("{}", config.show());
            (Ok(()), REFUSED)
        }
        Ok(Action::SelfTest { device, only, is_small }) => (once::selftest(&device, &only, is_small), REFUSED),
        Ok(Action::Health { address }) => (once::health(&address), 1),
        Ok(Action::Check(config)) => (run(config, &environment, once::check), 1),
        Ok(Action::Embed(config, texts)) => (run(config, &environment, |app| once::embed(app, texts)), REFUSED),
        Ok(Action::Serve(config)) => (serve(config, &environment), REFUSED),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("veneer: {error:#}");
            ExitCode::from(failure)
        }
    }
}

/// Loads what the configuration names, and does one thing with it.
fn run<F>(config: Config, environment: &BTreeMap<String, String>, job: F) -> anyhow::Result<()>
where
    F: AsyncFnOnce(Arc<App>) -> anyhow::Result<()>,
{
    telemetry::log(&config.server.log_level, config.server.log_format == LogFormat::Json)?;
    let hub = hub(&config, environment)?;
    let app = Arc::new(App::new(config));
    let (serving, workers) = Serving::load(&app.config, &hub)?;
    app.ready(serving);
    let done = runtime(&app.config)?.block_on(job(app.clone()));
    // Whatever became of the job: a GPU's driver does not bear threads that use it while a process ends.
    app.end();
    let joined = workers.join();
    done?;
    Ok(joined?)
}

/// Listens, loads, serves, drains.
fn serve(config: Config, environment: &BTreeMap<String, String>) -> anyhow::Result<()> {
    telemetry::log(&config.server.log_level, config.server.log_format == LogFormat::Json)?;
    telemetry::metrics();
    let hub = hub(&config, environment)?;
    let runtime = runtime(&config)?;
    let outcome = runtime.block_on(async {
        let began = Instant::now();
        let address = (config.server.host.as_str(), config.server.port);
        let listener = TcpListener::bind(address).await;
        let listener = listener.with_context(|| format!("cannot listen on {}:{}", address.0, address.1))?;
        let address = listener.local_addr()?;
        let app = Arc::new(App::new(config));
        let mut server = tokio::spawn(http::serve(listener, app.clone(), stopped(app.clone())?));
        let loaded = tokio::task::spawn_blocking({
            let app = app.clone();
            move || Serving::load(&app.config, &hub)
        });
        let (serving, workers) = tokio::select! {
            // Told to stop while it loads.
            ended = &mut server => return Ok(ended??),
            loaded = loaded => loaded??,
        };
        app.ready(serving);
        println!("veneer is ready on http://{address} after {} ms", began.elapsed().as_millis());
        let served = server.await;
        // Nothing is to compute when the process ends, though a connection that was cut off keeps its app until then.
        app.end();
        let joined = tokio::task::spawn_blocking(move || workers.join());
        match tokio::time::timeout(GRACE, joined).await {
            Ok(joined) => joined??,
            Err(_) => tracing::warn!("a batch is computed for too long to wait for it"),
        }
        Ok(served??)
    });
    // Whatever is still read or written is no longer waited for.
    runtime.shutdown_background();
    outcome
}

fn hub(config: &Config, environment: &BTreeMap<String, String>) -> anyhow::Result<Hub> {
    let home = match config.hub.hf_home.as_str() {
        "" => PathBuf::from(environment.get("HOME").map_or(".", String::as_str)).join(".cache/huggingface"),
        home => PathBuf::from(home),
    };
    let token = Some(config.hub.hf_token.clone()).filter(|token| !token.is_empty());
    let (endpoint, offline) = (config.hub.endpoint.clone(), config.hub.offline);
    Ok(Hub::new(HubConfig { home, token, endpoint, offline })?)
}

fn runtime(config: &Config) -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    Ok(builder.enable_all().max_blocking_threads(http::threads_max(config.server.tokenizer_threads) + 1).build()?)
}

/// Done when the process is told to stop; from then on new work is refused.
fn stopped(app: Arc<App>) -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tracing::info!("draining");
        app.drain();
    })
}
