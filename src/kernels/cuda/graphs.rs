//! Lists of commands that came before, and the graphs that a device has of them.

use super::command::Command;
use super::gpu::{Backend, Graph, Lane};
use crate::error::{Error, Result};
use crate::telemetry;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, BuildHasherDefault, Hasher};

/// Graphs of lists that came lately; with one more they are the older ones, and those that were are forgotten.
pub(super) const YOUNG_MAX: usize = 256;

/// Lists that came once and are remembered, by their hashes; with one more all are forgotten.
const SEEN_MAX: usize = 4096;

/// Lists that are sent one by one after the device could make no graph of one: it may lack memory for it now, or never make any.
const PASSED_OVER: usize = 10_000;

type Known = HashMap<Vec<Command>, Box<dyn Graph>, BuildHasherDefault<Words>>;

/// Lists that came before.
#[derive(Default)]
pub struct Graphs {
    young: Known,
    /// Of lists that came before all of the young ones, and not since.
    old: Known,
    /// Hashes of those that came once.
    seen: HashSet<u64>,
    /// Lists that are not to become graphs, since the device could not make one of the last that was.
    passed_over: usize,
}

impl Graphs {
    /// Sends a list: as a graph if it has come before, else one by one.
    pub fn send(&mut self, backend: &dyn Backend, commands: Vec<Command>) -> Result<()> {
        if let Some(graph) = self.young.get(&commands) {
            return launch(&**graph);
        }
        if let Some((commands, graph)) = self.old.remove_entry(&commands) {
            return self.launch_young(backend, commands, graph);
        }
        self.passed_over = self.passed_over.saturating_sub(1);
        if self.passed_over == 0 && self.has_come(&commands) {
            match backend.capture(&commands) {
                Ok(graph) => return self.launch_young(backend, commands, graph),
                Err(Error::Lost(reason)) => return Err(Error::Lost(reason)),
                Err(reason) => {
                    self.passed_over = PASSED_OVER;
                    tracing::warn!(%reason, "the device takes no graph; for a while kernels are launched one by one");
                }
            }
        }
        commands.iter().try_for_each(|command| backend.run(command))
    }

    /// Launches one, and keeps it among the young ones.
    fn launch_young(&mut self, backend: &dyn Backend, commands: Vec<Command>, graph: Box<dyn Graph>) -> Result<()> {
        if self.young.len() >= YOUNG_MAX {
            // They must not go while they run.
            backend.synchronize(Lane::Main)?;
            self.old = std::mem::take(&mut self.young);
        }
        launch(&**self.young.entry(commands).insert_entry(graph).get())
    }

    /// Whether a list has come before. Of two that have one hash, which are rare, the second may be taken for the first.
    fn has_come(&mut self, commands: &[Command]) -> bool {
        let hash = self.young.hasher().hash_one(commands);
        if self.seen.remove(&hash) {
            return true;
        }
        if self.seen.len() >= SEEN_MAX {
            self.seen.clear();
        }
        self.seen.insert(hash);
        false
    }
}

fn launch(graph: &dyn Graph) -> Result<()> {
    graph.launch()?;
    telemetry::graph();
    Ok(())
}

/// A hash of whole words: a list has thousands, of our own numbers, and all of it is compared once it is found.
#[derive(Default)]
struct Words(u64);

impl Hasher for Words {
    fn write(&mut self, bytes: &[u8]) {
        for bytes in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        // The highest bits are of all words.
        self.0.rotate_left(26)
    }
}
