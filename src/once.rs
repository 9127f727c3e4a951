//! What runs once and leaves: `check`, `embed` and `health`.

use anyhow::{Context, bail, ensure};
use serde::Serialize;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;
use veneer::cli::ADAPTER;
use veneer::http::{App, Call, Input, Names};
use veneer::text::Reading;

/// Sentences that show how far an adapter moves vectors.
const PROBES: [&str; 3] = ["How do I reset my password?", "The cat sat on the windowsill.", "import numpy as np"];

/// Says what an adapter changes on its base, and how far it moves a few sentences.
pub async fn check(app: Arc<App>) -> anyhow::Result<()> {
    let serving = app.serving()?;
    let adapted = serving.registry.iter().find(|served| served.parent.is_some()).context("no adapter was loaded")?;
    let target = &adapted.main().target;
    let (model, adapter) = (&target.model, target.adapter.as_ref().context("no adapter was loaded")?);
    let mut sites: Vec<_> = adapter.deltas().map(|(site, delta)| (model.sites().path(site), delta.rank())).collect();
    sites.sort_unstable();
    for (path, rank) in &sites {
        println!("{path}: rank {rank}");
    }
    let base = adapted.parent.clone().unwrap_or_default();
    let (before, after) = (vectors(&app, &base, PROBES).await?, vectors(&app, ADAPTER, PROBES).await?);
    let cosine = |(a, b): (&Vec<f32>, &Vec<f32>)| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let cosines: Vec<f32> = before.iter().zip(&after).map(cosine).collect();
    println!("{} of {} sites changed, {} KiB", sites.len(), model.sites().modules(), adapter.bytes() >> 10);
    println!("cosine to the base on {} probe sentences: {cosines:.4?}", PROBES.len());
    if cosines.iter().all(|cosine| *cosine > 0.999_999) {
        println!("warning: the adapter moves none of them; was it trained?");
    }
    Ok(())
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
    // An adapter, where there is one, comes after its base.
    let served = serving.registry.iter().last().context("nothing was loaded")?;
    let vectors = vectors(&app, served.label(), texts.iter().map(String::as_str)).await?;
    for (index, (text, vector)) in texts.iter().zip(vectors).enumerate() {
        println!("{}", serde_json::to_string(&Line { index, text, embedding: &vector })?);
    }
    Ok(())
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
    };
    Ok(veneer::http::embed(app, app.serving()?, call).await?.vectors)
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
