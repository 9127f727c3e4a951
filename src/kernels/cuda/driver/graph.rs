//! Graphs: what a stream is asked for, kept to be asked for at once.
#![expect(unsafe_code, reason = "CUDA is C")]

use super::Failure;
use super::device::{Device, Owned};
use super::stream::Stream;
use crate::kernels::cuda::gpu;
use cudarc::driver::result::{graph, stream};
use cudarc::driver::sys::{CUgraphExec, CUgraphInstantiate_flags, CUstreamCaptureMode};
use std::sync::Arc;

/// A graph for a stream.
pub struct Graph {
    graph: Owned<CUgraphExec>,
    stream: Arc<Stream>,
}

impl Graph {
    /// What `ask` asks of a stream, for another.
    pub fn new(
        device: &Arc<Device>,
        target: &Arc<Stream>,
        ask: impl FnOnce(&Stream) -> Result<(), Failure>,
    ) -> Result<Self, Failure> {
        // One of its own: on the other threads free memory meanwhile, which would become a part of this.
        let source = Stream::new(device, device.pools()[0])?;
        // Others may do anything, and nothing that is asked here waits.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream lives.
        unsafe { stream::begin_capture(source.raw(), mode) }?;
        let asked = ask(&source);
        // SAFETY: the stream lives, and this thread has begun.
        let captured = unsafe { stream::end_capture(source.raw()) };
        let captured = captured.map(|raw| Owned::new(device, raw, graph::destroy));
        asked?;
        // SAFETY: the graph lives until the call returns.
        let graph = unsafe { graph::instantiate(captured?.raw(), CUgraphInstantiate_flags(0)) }?;
        let graph = Owned::new(device, graph, graph::exec_destroy);
        // It needs memory, which if there is none is to be missed here.
        // SAFETY: graph and stream live.
        unsafe { graph::upload(graph.raw(), target.raw()) }?;
        Ok(Self { graph, stream: Arc::clone(target) })
    }
}

impl gpu::Graph for Graph {
    fn launch(&self) -> crate::error::Result<()> {
        self.graph.device().enter()?;
        // SAFETY: graph and stream live. That what it reads and writes is there is the word of who asks.
        let launched = unsafe { graph::launch(self.graph.raw(), self.stream.raw()) };
        Ok(launched.map_err(|error| Failure::from(error).of("a graph"))?)
    }
}
