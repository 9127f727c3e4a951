//! Passes: what is asked of a device for one small batch, written down and sent at once. A list that comes again is known
//! to the device as a graph, and takes one call instead of one a kernel.
//!
//! For a list to come again, its addresses must: a pass's memory is of a [`Slab`]. What comes from the host differs from
//! pass to pass, but not where it lies, so that it is brought before the list is sent.

use super::command::Command;
use super::gpu::{Backend, Lane};
use super::graphs::Graphs;
use super::slab::Slab;
use crate::error::Result;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

/// Bytes for a pass, at most.
const SLAB_BYTES_MAX: usize = 32 << 20;

/// Or a part of what is free, whichever is less.
const SLAB_SHARE: usize = 16;

/// A device, and the pass that is asked of it.
pub struct Passes {
    state: Mutex<State>,
    // Graphs are gone before what runs them.
    backend: Box<dyn Backend>,
}

#[derive(Default)]
struct State {
    /// There from the first pass on.
    slab: Option<Slab>,
    open: Option<Open>,
    graphs: Graphs,
}

/// What was asked for and not sent.
struct Open {
    /// Who asks; what others ask meanwhile is none of it.
    thread: ThreadId,
    commands: Vec<Command>,
    /// What was freed after it was asked for, perhaps to be read.
    freed: Vec<(Lane, u64)>,
}

impl Passes {
    /// None yet.
    pub fn new(backend: Box<dyn Backend>) -> Self {
        Self { state: Mutex::default(), backend }
    }

    /// The device, for what is no part of a pass.
    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// Begins one for this thread, if there is none and nothing of the last one's memory is in use.
    pub fn begin(&self) -> Option<Begun<'_>> {
        let mut state = self.state();
        if state.open.is_some() {
            return None;
        }
        let is_free = state.slab.get_or_insert_with(|| slab(&*self.backend)).restart();
        is_free.then(|| {
            state.open = Some(Open { thread: thread::current().id(), commands: Vec::new(), freed: Vec::new() });
            Begun(self)
        })
    }

    /// Memory for the pass of this thread; none without one, or where it does not fit and has ended the pass.
    pub fn allocate(&self, bytes: usize) -> Result<Option<u64>> {
        self.state().piece(&*self.backend, |slab| slab.allocate(bytes))
    }

    /// The same, with bytes that are there when they are read.
    pub fn stage(&self, bytes: &[u8]) -> Result<Option<u64>> {
        self.state().piece(&*self.backend, |slab| slab.stage(bytes))
    }

    /// Memory that is used no more by what is asked from now on.
    pub fn free(&self, lane: Lane, address: u64, bytes: usize) {
        let State { slab, open, .. } = &mut *self.state();
        match (slab, open) {
            (Some(slab), _) if slab.contains(address) => slab.free(address, bytes),
            (_, Some(open)) => open.freed.push((lane, address)),
            _ => self.backend.free(lane, address),
        }
    }

    /// Asks for something: now, or with the pass of this thread.
    pub fn run(&self, command: Command) -> Result<()> {
        if let Some(open) = self.state().here() {
            open.commands.push(command);
            return Ok(());
        }
        self.backend.run(&command)
    }

    /// Sends what the pass of this thread has so far.
    pub fn send(&self) -> Result<()> {
        let mut state = self.state();
        if state.here().is_some() { state.send(&*self.backend) } else { Ok(()) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Lists are taken before they are sent; whatever a panic leaves undone, the end of the pass does.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// That a pass has begun; it ends with this. What was not sent until then never is.
pub struct Begun<'a>(&'a Passes);

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        // One that had no room has ended.
        if state.here().is_some() {
            state.end(&*self.0.backend);
        }
    }
}

/// As much memory as passes get, or none where there is none to be had: what cannot be done without it says so.
fn slab(backend: &dyn Backend) -> Slab {
    let bytes = backend.memory().map_or(0, |(free, _)| SLAB_BYTES_MAX.min(free / SLAB_SHARE));
    backend.allocate(Lane::Main, bytes).map_or_else(|_| Slab::new(0, 0), |address| Slab::new(address, bytes))
}

impl Drop for Passes {
    fn drop(&mut self) {
        // Graphs must not go while they run. Whatever went wrong has nobody left to hear of it.
        let _ = self.backend.synchronize(Lane::Main);
        if let Some(slab) = &self.state().slab {
            self.backend.free(Lane::Main, slab.address());
        }
    }
}

impl State {
    /// The pass of this thread.
    fn here(&mut self) -> Option<&mut Open> {
        self.open.as_mut().filter(|open| open.thread == thread::current().id())
    }

    /// A piece for the pass of this thread. If there is none, all that it has is sent, and it ends: what is asked of the
    /// device itself comes after what was written down before.
    fn piece(&mut self, backend: &dyn Backend, of: impl FnOnce(&mut Slab) -> Option<u64>) -> Result<Option<u64>> {
        if self.here().is_none() {
            return Ok(None);
        }
        let address = self.slab.as_mut().and_then(of);
        if address.is_none() {
            let sent = self.send(backend);
            self.end(backend);
            sent?;
        }
        Ok(address)
    }

    fn send(&mut self, backend: &dyn Backend) -> Result<()> {
        let (Some(open), Some(slab)) = (&mut self.open, &mut self.slab) else { return Ok(()) };
        let commands = std::mem::take(&mut open.commands);
        let (address, bytes) = slab.take_staged();
        if !bytes.is_empty() {
            backend.upload(Lane::Main, address, bytes)?;
        }
        if !commands.is_empty() {
            self.graphs.send(backend, commands)?;
        }
        open.freed.drain(..).for_each(|(lane, address)| backend.free(lane, address));
        Ok(())
    }

    fn end(&mut self, backend: &dyn Backend) {
        let freed = self.open.take().map(|open| open.freed).unwrap_or_default();
        freed.into_iter().for_each(|(lane, address)| backend.free(lane, address));
    }
}

#[cfg(test)]
#[cfg(feature = "emulated")]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::kernels::cuda::emulated::Emulated;
    use crate::kernels::cuda::gpu::{Arrival, Graph};
    use crate::kernels::cuda::graphs::YOUNG_MAX;
    use crate::kernels::cuda::{Array, Gpu, affine, sum};
    use candle_core::{DType, Device, Tensor};
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;

    type Calls = Arc<Mutex<Vec<&'static str>>>;

    /// A device that tells what it is asked for.
    struct Watched {
        device: Emulated,
        calls: Calls,
        captures: bool,
    }

    impl Watched {
        fn tell(&self, call: &'static str) -> &Emulated {
            self.calls.lock().unwrap().push(call);
            &self.device
        }
    }

    impl Backend for Watched {
        fn name(&self) -> &str {
            self.device.name()
        }
        fn allocate(&self, lane: Lane, bytes: usize) -> Result<u64> {
            self.tell("allocate").allocate(lane, bytes)
        }
        fn free(&self, lane: Lane, address: u64) {
            self.tell("free").free(lane, address);
        }
        fn upload(&self, lane: Lane, address: u64, bytes: &[u8]) -> Result<()> {
            self.tell("upload").upload(lane, address, bytes)
        }
        fn download(&self, address: u64, bytes: usize) -> Result<Box<dyn Arrival>> {
            self.tell("download").download(address, bytes)
        }
        fn run(&self, command: &Command) -> Result<()> {
            self.tell("run").run(command)
        }
        fn capture(&self, commands: &[Command]) -> Result<Box<dyn Graph>> {
            let graph = self.tell("capture").capture(commands)?;
            if !self.captures {
                return Err(Error::Internal("no".into()));
            }
            Ok(Box::new(WatchedGraph { graph, calls: self.calls.clone() }))
        }
        fn synchronize(&self, lane: Lane) -> Result<()> {
            self.tell("synchronize").synchronize(lane)
        }
        fn memory(&self) -> Result<(usize, usize)> {
            self.device.memory()
        }
    }

    struct WatchedGraph {
        graph: Box<dyn Graph>,
        calls: Calls,
    }

    impl Graph for WatchedGraph {
        fn launch(&self) -> Result<()> {
            self.calls.lock().unwrap().push("graph");
            self.graph.launch()
        }
    }

    /// One of 16 MiB, of which a pass gets one, that has its slab.
    fn watched(captures: bool) -> (Gpu, Calls) {
        let calls = Calls::default();
        let gpu = Gpu::new(Watched { device: Emulated::new(16 << 20), calls: calls.clone(), captures });
        gpu.pass(|| Ok(())).unwrap();
        assert_eq!(take(&calls), ["allocate"]);
        (gpu, calls)
    }

    fn take(calls: &Calls) -> Vec<&'static str> {
        std::mem::take(&mut calls.lock().unwrap())
    }

    fn brought(gpu: &Gpu, numbers: &[f32]) -> Array {
        Array::of(gpu, &Tensor::new(numbers, &Device::Cpu).unwrap()).unwrap()
    }

    fn host(array: &Array) -> Vec<f32> {
        array.depart().unwrap().wait().unwrap().to_vec1().unwrap()
    }

    /// `3 * numbers`, by two kernels.
    fn tripled(gpu: &Gpu, numbers: &[f32]) -> Array {
        let x = brought(gpu, numbers);
        sum(&affine(&x, 2.0).unwrap(), &x).unwrap()
    }

    fn triple(gpu: &Gpu, numbers: &[f32]) {
        let tripled = gpu.pass(|| Ok(host(&tripled(gpu, numbers)))).unwrap();
        assert_eq!(tripled, numbers.iter().map(|number| 3.0 * number).collect::<Vec<_>>());
    }

    const EACH: [&str; 4] = ["upload", "run", "run", "download"];
    const FIRST: [&str; 4] = ["upload", "capture", "graph", "download"];
    const AGAIN: [&str; 3] = ["upload", "graph", "download"];

    #[test]
    fn a_list_that_comes_again_becomes_a_graph_that_is_launched_with_other_numbers() {
        let (gpu, calls) = watched(true);
        triple(&gpu, &[1.0, 2.0]);
        assert_eq!(take(&calls), EACH);
        triple(&gpu, &[3.0, 4.0]);
        assert_eq!(take(&calls), FIRST);
        for numbers in [[5.0, 6.0], [7.0, 8.0]] {
            triple(&gpu, &numbers);
            assert_eq!(take(&calls), AGAIN);
        }
        triple(&gpu, &[1.0, 2.0, 3.0]);
        assert_eq!(take(&calls), EACH, "as many others are another list");
        triple(&gpu, &[9.0, 9.0]);
        assert_eq!(take(&calls), AGAIN);
    }

    #[test]
    fn a_device_that_makes_no_graph_is_asked_once_and_computes_all_the_same() {
        let (gpu, calls) = watched(false);
        triple(&gpu, &[1.0, 2.0]);
        assert_eq!(take(&calls), EACH);
        triple(&gpu, &[1.0, 2.0]);
        assert_eq!(take(&calls), ["upload", "capture", "run", "run", "download"]);
        for numbers in [[1.0, 2.0].as_slice(), &[1.0], &[2.0], &[3.0]] {
            triple(&gpu, numbers);
            assert_eq!(take(&calls), EACH);
        }
    }

    #[test]
    fn graphs_of_what_comes_again_are_kept_and_others_are_forgotten() {
        let (gpu, calls) = watched(true);
        let numbers = vec![1.0; 2 * YOUNG_MAX + 2];
        let mut synchronized = 0;
        for count in 2..=2 * YOUNG_MAX + 2 {
            // The first in between, again and again.
            for count in [count, count, 1] {
                triple(&gpu, &numbers[..count]);
            }
            synchronized += take(&calls).iter().filter(|call| **call == "synchronize").count();
        }
        assert_eq!(synchronized, 2);
        triple(&gpu, &numbers[..1]);
        assert_eq!(take(&calls), AGAIN, "what comes all the time");
        triple(&gpu, &numbers[..2 * YOUNG_MAX]);
        assert_eq!(take(&calls), AGAIN, "what came lately");
        [2, 2].iter().for_each(|count| triple(&gpu, &numbers[..*count]));
        assert_eq!(take(&calls), [EACH.as_slice(), &FIRST].concat(), "what came long ago");
    }

    #[test]
    fn what_comes_to_the_host_within_a_pass_parts_it_in_two() {
        let (gpu, calls) = watched(true);
        for round in 0..4 {
            let numbers = [round as f32, 1.0];
            let twice = gpu.pass(|| {
                let once = tripled(&gpu, &numbers);
                let again = tripled(&gpu, &host(&once));
                Ok(host(&sum(&again, &once).unwrap()))
            });
            assert_eq!(twice.unwrap(), numbers.map(|number| 12.0 * number));
            let parts = take(&calls).iter().filter(|call| **call == "graph").count();
            assert_eq!(parts, if round == 0 { 0 } else { 2 });
        }
    }

    #[test]
    fn nothing_that_outlives_its_pass_is_overwritten() {
        let (gpu, calls) = watched(true);
        let kept = gpu.pass(|| Ok(tripled(&gpu, &[1.0, 2.0]))).unwrap();
        assert_eq!(take(&calls), ["upload", "run", "run"]);
        triple(&gpu, &[3.0, 4.0]);
        assert!(take(&calls).contains(&"allocate"), "not a pass, of memory of its own");
        assert_eq!(host(&kept), [3.0, 6.0]);
        drop(kept);
        take(&calls);
        triple(&gpu, &[3.0, 4.0]);
        assert_eq!(take(&calls), FIRST);
    }

    #[test]
    fn what_a_pass_has_no_room_for_ends_it_and_is_computed_after_it() {
        let (gpu, calls) = watched(true);
        let before = gpu.memory().unwrap();
        let many: Vec<f32> = (0..200_000).map(|number| number as f32).collect();
        for _ in 0..3 {
            // What is brought does not fit, and neither does what is computed of what does.
            triple(&gpu, &many);
            let sums = gpu.pass(|| {
                let small = tripled(&gpu, &many[..1000]);
                let large = Array::new(&gpu, DType::F32, &[500, 1000])?;
                let sums = (0..3).try_fold(small, |sum_so_far, _| sum(&sum_so_far, &sum_so_far))?;
                drop(large);
                Ok(host(&sums))
            });
            assert_eq!(sums.unwrap(), many[..1000].iter().map(|number| 24.0 * number).collect::<Vec<_>>());
        }
        assert_eq!(gpu.memory().unwrap(), before, "all is given back");
        take(&calls);
        (0..2).for_each(|_| triple(&gpu, &[1.0]));
        assert_eq!(take(&calls), [EACH, FIRST].concat());
    }

    #[test]
    fn what_is_freed_within_a_pass_is_there_until_the_pass_has_read_it() {
        let (gpu, calls) = watched(true);
        let x = brought(&gpu, &[1.0, 2.0]);
        take(&calls);
        let doubled = gpu.pass(|| {
            let doubled = affine(&x, 2.0)?;
            drop(x);
            assert!(take(&calls).is_empty());
            Ok(host(&doubled))
        });
        assert_eq!(doubled.unwrap(), [2.0, 4.0]);
        assert_eq!(take(&calls), ["run", "free", "download"]);
    }

    #[test]
    fn a_pass_that_fails_is_not_sent_and_leaves_nothing_behind() {
        let (gpu, calls) = watched(true);
        for _ in 0..3 {
            let x = brought(&gpu, &[1.0]);
            take(&calls);
            let failed = gpu.pass(|| {
                affine(&x, 2.0)?;
                drop(x);
                Err::<(), _>(Error::OutOfMemory(1))
            });
            assert!(matches!(failed, Err(Error::OutOfMemory(1))));
            assert_eq!(take(&calls), ["free"]);
            let fall = || gpu.pass(|| -> Result<()> { panic!("{:?}", tripled(&gpu, &[1.0, 2.0])) });
            assert!(catch_unwind(AssertUnwindSafe(fall)).is_err());
            assert!(take(&calls).is_empty());
        }
        triple(&gpu, &[1.0, 2.0]);
        assert_eq!(take(&calls), EACH);
    }

    #[test]
    fn other_threads_and_what_is_brought_beside_are_no_part_of_a_pass() {
        let (gpu, calls) = watched(true);
        let beside = gpu.pass(|| {
            let first = tripled(&gpu, &[1.0]);
            let beside = brought(&gpu.beside(), &[5.0]);
            assert_eq!(take(&calls), ["allocate", "upload"]);
            std::thread::scope(|scope| scope.spawn(|| triple(&gpu, &[2.0])).join()).unwrap();
            assert_eq!(take(&calls), ["allocate", "upload", "allocate", "run", "allocate", "run", "download"]);
            assert_eq!(host(&first), [3.0]);
            Ok(beside)
        });
        // The other's memory with the first part, what was brought when it is dropped.
        assert_eq!(take(&calls), ["upload", "run", "run", "free", "free", "free", "download"]);
        assert_eq!(host(&beside.unwrap()), [5.0]);
    }
}
