//! Which adapters lie on a GPU. One that does not is brought by a thread of its own, beside what the GPU computes, while
//! what waits for it stays in the queue and all else goes on; where there is no room for it, those that were not asked for
//! the longest make room.

use super::ENDS;
use super::queue::Queue;
use super::room::Known;
use crate::error::{Error, Result};
use crate::model::{Adapter, Device, Model};
use crate::telemetry;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// An adapter where its model lies.
#[derive(Clone)]
pub enum Laid {
    /// None: the base alone.
    Base,
    /// One.
    One(Arc<Adapter>),
    /// Several at once, with weights.
    Blend(Vec<(Arc<Adapter>, f32)>),
}

/// What became of looking for one.
pub enum Found {
    /// It is there.
    Here(Laid),
    /// It will be; the queue is woken then.
    Coming,
    /// It cannot be brought.
    Failed(Error),
}

impl Laid {
    /// The adapter of a segment.
    pub fn adapter(&self) -> Option<Arc<Adapter>> {
        match self {
            Self::Base => None,
            Self::One(adapter) => Some(adapter.clone()),
            Self::Blend(parts) => Some(Arc::new(Adapter::blend(parts))),
        }
    }
}

/// The adapters of one device.
pub struct Residents {
    /// None on the CPU, where all lie already.
    bringing: Option<Bringing>,
}

struct Bringing {
    bytes_max: usize,
    known: Arc<Mutex<Known<Arc<Adapter>>>>,
    /// None once no more are to be brought.
    errands: Mutex<Option<SyncSender<Errand>>>,
}

struct Errand {
    model: Arc<Model>,
    adapter: Arc<Adapter>,
}

/// How often one is tried to be brought where there is no memory for it, and how long after each other.
const TRIES: usize = 50;
const PAUSE: Duration = Duration::from_millis(2);

/// Adapters that wait to be brought, at most; others are asked for again when one is there.
const ERRANDS_MAX: usize = 256;

impl Residents {
    /// None yet on a device, and there never of more bytes, but for a single one that is larger, and for what has gone while a batch
    /// still computes with it; with the thread that brings them, which ends when this is dropped.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn new(device: &Device, bytes_max: usize, queue: Arc<Queue>) -> Result<(Self, Option<JoinHandle<()>>)> {
        if device.is_cpu() {
            return Ok((Self { bringing: None }, None));
        }
        let (errands, coming) = sync_channel(ERRANDS_MAX);
        let known = Arc::new(Mutex::new(Known::new(bytes_max)));
        let thread = std::thread::Builder::new().name("adapters".into()).spawn({
            let known = known.clone();
            move || bring(&coming, &known, &queue)
        });
        let thread = thread.map_err(|e| Error::Internal(format!("cannot start a thread for adapters: {e}")))?;
        let errands = Mutex::new(Some(errands));
        Ok((Self { bringing: Some(Bringing { bytes_max, known, errands }) }, Some(thread)))
    }

    /// Lets the thread that brings them end.
    pub fn end(&self) {
        if let Some(bringing) = &self.bringing {
            *lock(&bringing.errands) = None;
        }
    }

    /// Begins another look through the queue: what is found from now on does not make room for what is found later.
    pub fn look(&self) {
        if let Some(bringing) = &self.bringing {
            lock(&bringing.known).look();
        }
    }

    /// An adapter of a model on this device, or none. One that is not there is asked for.
    pub fn find(&self, model: &Arc<Model>, adapter: Option<&Arc<Adapter>>) -> Found {
        let Some(adapter) = adapter else { return Found::Here(Laid::Base) };
        let Some(bringing) = &self.bringing else { return Found::Here(Laid::One(adapter.clone())) };
        if adapter.parts().is_empty() {
            return match bringing.find(model, adapter) {
                Ok(Some(adapter)) => Found::Here(Laid::One(adapter)),
                Ok(None) => Found::Coming,
                Err(error) => Found::Failed(error),
            };
        }
        let bytes = adapter.bytes();
        if bytes > bringing.bytes_max {
            let message =
                format!("What is blended takes {bytes} bytes of the GPU's {} for adapters.", bringing.bytes_max);
            return Found::Failed(Error::invalid("adapters", message));
        }
        // All are asked for before one is waited for.
        let find = |(part, weight): &(Arc<Adapter>, f32)| Ok(bringing.find(model, part)?.map(|part| (part, *weight)));
        match adapter.parts().iter().map(find).collect::<Vec<_>>().into_iter().collect::<Result<Option<Vec<_>>>>() {
            Ok(Some(parts)) => Found::Here(Laid::Blend(parts)),
            Ok(None) => Found::Coming,
            Err(error) => Found::Failed(error),
        }
    }
}

impl Bringing {
    fn find(&self, model: &Arc<Model>, adapter: &Arc<Adapter>) -> Result<Option<Arc<Adapter>>> {
        let (mut known, key) = (lock(&self.known), key(adapter));
        if let Some(found) = known.find(key) {
            return found;
        }
        let bytes = adapter.bytes();
        if known.make_room(bytes) {
            let errand = Errand { model: model.clone(), adapter: adapter.clone() };
            match lock(&self.errands).as_ref().ok_or(ENDS)?.try_send(errand) {
                Ok(()) => known.expect(key, adapter.clone(), bytes),
                // The next that comes wakes the queue.
                Err(TrySendError::Full(_)) => {}
                Err(TrySendError::Disconnected(_)) => {
                    return Err(Error::Internal("the thread that brings adapters is gone".into()));
                }
            }
        }
        let gone = known.gone();
        drop(known);
        drop(gone);
        Ok(None)
    }
}

/// Adapters are told apart by where they lie on the host, where they are held.
fn key(adapter: &Arc<Adapter>) -> usize {
    Arc::as_ptr(adapter) as usize
}

/// Brings one adapter after the other.
fn bring(errands: &Receiver<Errand>, known: &Mutex<Known<Arc<Adapter>>>, queue: &Queue) {
    for Errand { model, adapter } in errands {
        let began = Instant::now();
        let lay = || catch_unwind(AssertUnwindSafe(|| model.lay(&adapter)));
        let lay = || lay().unwrap_or_else(|_| Err(Error::Internal("bringing an adapter panicked".into())));
        let mut laid = lay();
        // Batches have the memory that it was to have, and that of what goes is there when they are done.
        if matches!(laid, Err(Error::OutOfMemory(_))) {
            let gone = {
                let mut known = lock(known);
                known.let_go(adapter.bytes());
                known.gone()
            };
            drop(gone);
            for _ in 0..TRIES {
                std::thread::sleep(PAUSE);
                laid = lay();
                if !matches!(laid, Err(Error::OutOfMemory(_))) {
                    break;
                }
            }
        }
        match &laid {
            Ok(laid) => {
                let (kib, us) = (laid.bytes() >> 10, began.elapsed().as_micros() as u64);
                tracing::debug!(kib, us, "an adapter was brought to the GPU");
            }
            Err(error) => tracing::error!(%error, "an adapter was not brought to the GPU"),
        }
        telemetry::brought(laid.is_ok());
        lock(known).put(key(&adapter), laid.map(|laid| (laid.bytes(), laid)));
        if queue.is_done() {
            return;
        }
        queue.wake();
    }
}

fn lock<T>(known: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that is done with it leaves it half done.
    known.lock().unwrap_or_else(PoisonError::into_inner)
}
