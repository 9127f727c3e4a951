//! A model whose blocks are some of another's, perhaps several times over, with the same weights.

use super::Model;
use super::checkpoint::Checkpoint;
use super::layers::Loader;
use super::spec::Layer;
use crate::error::{Error, Result};

/// Where PEFT looks for the blocks that it repeats.
const STACKS: [&str; 3] = ["layers", "encoder.layer", "h"];

impl Model {
    /// The model of the blocks in these ranges (first, and one past the last), one range after the other. Each block
    /// there has sites of its own, numbered anew; matrices are shared with this model.
    pub fn repeating(&self, ranges: &[(usize, usize)]) -> Result<Self> {
        let fail = |reason: &str| {
            Error::load(
                self.folder.path(),
                format!("its blocks cannot be repeated: {reason}; save a model with its blocks written out"),
            )
        };
        let layers = &self.spec.layers;
        let path = layers.first().and_then(|first| first.attention.output.parts.first()).map(|part| &*part.path);
        let stack = path.and_then(|path| path.split_once(".0.")).map(|(stack, _)| stack);
        let stack = stack.filter(|stack| STACKS.contains(stack)).ok_or_else(|| fail("PEFT finds none to repeat"))?;
        if let Some((first, end)) = ranges.iter().find(|(first, end)| first >= end || *end > layers.len()) {
            return Err(fail(&format!("[{first}, {end}] is no range of {} blocks", layers.len())));
        }
        let sees = |layer: &Layer| (layer.attention.causal, layer.attention.window, layer.attention.positions.clone());
        if layers.iter().any(|layer| sees(layer) != sees(&layers[0]) || layer.convolution.is_some()) {
            return Err(fail("they differ by their place, and repeated ones would have another"));
        }
        let repeated = ranges.iter().flat_map(|(first, end)| *first..*end).enumerate().map(|(place, source)| Layer {
            known_as: Some((format!("{stack}.{source}."), format!("{stack}.{place}."))),
            ..layers[source].clone()
        });
        let mut spec = self.spec.clone();
        (spec.layers, spec.tasks) = (repeated.collect(), None);
        let checkpoint = Checkpoint::of_model(&self.folder, spec.nested_as)?;
        let loader = Loader::new(&checkpoint, &self.device, self.format, spec.tokens_max);
        Self::assemble(spec, Loader { shared: self.shared.clone(), ..loader }, self.folder.clone(), &|_, _| ())
    }
}
