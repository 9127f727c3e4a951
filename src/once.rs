//! What runs once and leaves: `check`, `embed`, `selftest` and `health`.

use anyhow::{Context, bail, ensure};
use serde::Serialize;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;
use veneer::cli::ADAPTER;
use veneer::config::Config;
use veneer::http::{App, Call, Expected, Input, Names, Serving};
use veneer::kernels::{self, Device, Size};
use veneer::model::Adapter;
use veneer::registry::{self, PROBES, Served};
use veneer::telemetry;
use veneer::text::Reading;

/// Says what was loaded, what each adapter changes on its base, and which bits it all is.
pub async fn check(app: Arc<App>) -> anyhow::Result<()> {
    for served in app.serving()?.registry.iter() {
        println!("{}", served.label());
        let target = &served.main().target;
        match &target.adapter {
            Some(adapter) => say_adapter(served, adapter),
            None => {
                let (model, pipeline) = (target.model(), target.pipeline());
                let (dimension, kib) = (pipeline.dimension(model.spec().hidden), model.bytes() >> 10);
                println!(
                    "  base, {dimension} dimensions, at most {} tokens, {kib} KiB",
                    served.main().text.tokens_max()
                );
            }
        }
        if let Some(golden) = &served.report.golden {
            println!("  {} expected vectors are met, smallest cosine {:.6}", golden.vectors, golden.smallest);
        }
        if let Some(generation) = served.provenance.generation {
            println!("  generation {generation}");
        }
        println!("  fingerprint {}", served.provenance.fingerprint);
    }
    Ok(())
}

/// Prints a line for every operation of a GPU whose name has all of some words; fails where one of them is not what the CPU makes
/// of it.
pub fn selftest(device: &str, only: &str, is_small: bool) -> anyhow::Result<()> {
    telemetry::log("error", false)?;
    let device = Device::named(device)?;
    println!("{device}: largest difference to the CPU's, what it may be, time, share of the ceiling");
    let mut findings = Vec::new();
    for size in Size::all(&device, is_small) {
        println!("{size:?} arguments");
        findings.extend(kernels::selftest(&device, size, only, |finding| println!("{finding}"))?);
    }
    let wrong = findings.iter().filter(|finding| !finding.is_good()).count();
    ensure!(!findings.is_empty(), "no operation has all of '{only}' in its name");
    println!("{} of {} operations are as they should be", findings.len() - wrong, findings.len());
    ensure!(wrong == 0, "{wrong} operations are wrong");
    Ok(())
}

fn say_adapter(served: &Served, adapter: &Adapter) {
    let sites = served.main().target.model().sites();
    let (count, kib) = (adapter.deltas().count(), adapter.bytes() >> 10);
    let base = served.parent.as_deref().unwrap_or_default();
    println!("  adapter of {base}, {count} of {} sites changed, rank {}, {kib} KiB", sites.modules(), adapter.rank());
    let mut changed: Vec<_> = adapter.deltas().map(|(site, delta)| (sites.path(site), delta.rank())).collect();
    changed.sort_unstable();
    for (path, rank) in &changed {
        println!("  {path}: rank {rank}");
    }
    let Some(effect) = &served.report.effect else { return };
    let overrides = if effect.overrides.is_empty() { "nothing".to_owned() } else { effect.overrides.join(", ") };
    println!("  {}", effect.kind);
    println!("  overrides of the base: {overrides}");
    let (smallest, largest) = effect.moves;
    println!("  moves {} probe sentences by a cosine distance of {smallest:.6} to {largest:.6}", PROBES.len());
    if effect.is_nothing() {
        println!("  warning: it moves none of them; was it trained?");
    }
}

/// What `embed` prints of one text.
#[derive(Serialize)]
struct Line<'a> {
    index: usize,
    text: &'a str,
    embedding: &'a [f32],
}

/// Prints one JSON line a text.
pub async fn embed(app: Arc<App>, texts: Vec<String>) -> anyhow::Result<()> {
    let serving = app.serving()?;
    let vectors = vectors(&app, asked(&app, serving)?, texts.iter().map(String::as_str)).await?;
    for (index, (text, vector)) in texts.iter().zip(vectors).enumerate() {
        println!("{}", serde_json::to_string(&Line { index, text, embedding: &vector })?);
    }
    Ok(())
}

/// The name of what the command line asks for, whatever comes with it: its adapter, else its model. A folder of several adapters
/// has none of the model's own name; it is the last of them.
fn asked<'a>(app: &App, serving: &'a Serving) -> anyhow::Result<&'a str> {
    let Config { models, adapters, .. } = &app.config;
    let wanted = match models.last() {
        Some(model) if adapters.iter().all(|adapter| adapter.name != ADAPTER) => registry::name_of(model)?,
        _ => ADAPTER.to_owned(),
    };
    let (mut served, last) = (serving.registry.iter(), serving.registry.iter().last());
    let served = served.find(|served| served.name == wanted).or(last);
    Ok(served.context("nothing was loaded")?.label())
}

async fn vectors<'a>(
    app: &App,
    model: &str,
    texts: impl IntoIterator<Item = &'a str>,
) -> anyhow::Result<Vec<Vec<f32>>> {
    let call = Call {
        names: Names { model: Some(model.to_owned()), ..Names::default() },
        inputs: texts.into_iter().map(|text| Input::Text(text.to_owned())).collect(),
        reading: Reading::default(),
        dimensions: None,
        normalize: true,
        expected: Expected::Any,
    };
    Ok(veneer::http::embed(app, app.serving()?, call, |_| ()).await?.vectors)
}

/// Succeeds where `GET /health` answers 200.
pub fn health(address: &str) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    write!(stream, "GET /health HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut head = [0u8; 12];
    stream.read_exact(&mut head)?;
    let status = std::str::from_utf8(&head[9..]).unwrap_or_default();
    ensure!(head.starts_with(b"HTTP/1."), "{address} does not speak HTTP");
    if status != "200" {
        bail!("{address} answers {status}");
    }
    Ok(())
}
