//! How long a device takes for each kernel as it is used, where `veneer::kernels=trace` is logged: `selftest` tells of each
//! alone.

use super::Failure;
use super::device::Device;
use super::stream::{Event, Stream};
use crate::kernels::cuda::command::Command;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Kernels of which one line each is logged together.
const TOGETHER: usize = 2000;

/// When kernels began and ended that were asked for of late.
pub struct Timeline(Mutex<Vec<Span>>);

struct Span {
    name: String,
    began: Event,
    ended: Event,
}

impl Timeline {
    /// One that is empty; none where nobody logs it.
    pub fn new() -> Option<Self> {
        tracing::enabled!(tracing::Level::TRACE).then(|| Self(Mutex::default()))
    }

    /// Asks a stream for a command, as `ask` does, and in between for the time.
    pub fn time(
        &self,
        device: &Arc<Device>,
        stream: &Stream,
        command: &Command,
        ask: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let name = match command {
            Command::Launch { kernel, .. } => kernel.clone(),
            Command::Multiply(matmul) => format!("product {} -> {}", matmul.inputs, matmul.outputs),
        };
        let (began, ended) = (Event::timed(device)?, Event::timed(device)?);
        stream.mark(&began)?;
        ask()?;
        stream.mark(&ended)?;
        let mut spans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        spans.push(Span { name, began, ended });
        if spans.len() < TOGETHER { Ok(()) } else { report(&std::mem::take(&mut *spans)) }
    }
}

/// Logs how long kernels took, by their names, and how long nothing ran between them.
fn report(spans: &[Span]) -> Result<(), Failure> {
    let (Some(first), Some(last)) = (spans.first(), spans.last()) else { return Ok(()) };
    last.ended.wait()?;
    let mut kernels: BTreeMap<&str, (usize, f32)> = BTreeMap::new();
    for Span { name, began, ended } in spans {
        let (count, ms) = kernels.entry(name).or_default();
        (*count, *ms) = (*count + 1, *ms + began.ms_until(ended)?);
    }
    let whole = first.began.ms_until(&last.ended)?;
    let none = whole - kernels.values().map(|(_, ms)| ms).sum::<f32>();
    let lines = kernels.iter().map(|(name, (count, ms))| (*name, *count, *ms)).chain([("nothing", spans.len(), none)]);
    for (name, count, ms) in lines {
        let (us, share) = (1000.0 * ms / count as f32, 100.0 * ms / whole);
        tracing::trace!("{share:5.1} % of {whole:.1} ms: {name}, {count} times {us:.1} us");
    }
    Ok(())
}
