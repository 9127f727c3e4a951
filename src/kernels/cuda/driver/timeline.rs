//! How long a device takes for each kernel as it is used, where `veneer::kernels=trace` is logged: `selftest` tells of each
//! alone. What is asked for while the device has nothing to do counts from when it is asked for, and the first product of a
//! size with those that are tried for it.

use super::Failure;
use super::device::Device;
use super::stream::{Event, Stream};
use crate::kernels::cuda::command::Command;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Kernels that are reported of together.
const TOGETHER: usize = 2000;

/// When kernels began and ended that were asked for of late.
pub struct Timeline(Mutex<Vec<Span>>);

struct Span {
    name: String,
    began: Event,
    ended: Event,
}

impl Timeline {
    /// One that is empty; none where nobody logs it, or the device's driver cannot tell.
    pub fn new(device: &Device) -> Option<Self> {
        if !tracing::enabled!(tracing::Level::TRACE) {
            return None;
        }
        if !device.can_tell_time() {
            tracing::warn!("the driver is too old to tell how long kernels take");
            return None;
        }
        Some(Self(Mutex::default()))
    }

    /// Asks a stream for a command, as `ask` does, and for the time before and after it. Where it does not tell, that is
    /// logged.
    pub fn time(
        &self,
        device: &Arc<Device>,
        stream: &Stream,
        command: &Command,
        ask: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        // Held, so that spans lie in the stream's order.
        let mut spans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let began = now(device, stream);
        ask()?;
        let span = began.and_then(|began| Ok(Span { name: name(command), began, ended: now(device, stream)? }));
        let told = span.and_then(|span| {
            spans.push(span);
            if spans.len() < TOGETHER { Ok(()) } else { report(&std::mem::take(&mut *spans)) }
        });
        if let Err(failure) = told {
            tracing::warn!(%failure, "kernels are not timed");
        }
        Ok(())
    }
}

/// An event that comes when all is done that the stream was asked for.
fn now(device: &Arc<Device>, stream: &Stream) -> Result<Event, Failure> {
    let event = Event::timed(device)?;
    stream.mark(&event)?;
    Ok(event)
}

fn name(command: &Command) -> String {
    match command {
        Command::Launch { kernel, .. } => kernel.clone(),
        Command::Multiply(matmul) => format!("product {} -> {}", matmul.inputs, matmul.outputs),
    }
}

/// Logs how long kernels took, by their names, and all that came between them: copies, graphs, and nothing.
fn report(spans: &[Span]) -> Result<(), Failure> {
    let (Some(first), Some(last)) = (spans.first(), spans.last()) else { return Ok(()) };
    last.ended.wait()?;
    let mut kernels: BTreeMap<&str, (usize, f32)> = BTreeMap::new();
    for Span { name, began, ended } in spans {
        let (count, ms) = kernels.entry(name).or_default();
        (*count, *ms) = (*count + 1, *ms + began.ms_until(ended)?);
    }
    let whole = first.began.ms_until(&last.ended)?;
    let between = whole - kernels.values().map(|(_, ms)| ms).sum::<f32>();
    let lines = kernels.iter().map(|(name, (count, ms))| (*name, *count, *ms));
    for (name, count, ms) in lines.chain([("what came between", spans.len(), between)]) {
        let (us, share) = (1000.0 * ms / count as f32, 100.0 * ms / whole);
        tracing::trace!("{share:5.1} % of {whole:.1} ms: {name}, {count} times {us:.1} us");
    }
    Ok(())
}
