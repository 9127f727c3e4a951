//! sentence-transformers' `WeightedLayerPooling`: a weighted mean of the hidden states of several layers.

use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::kernels::{Tensor, sum};
use crate::model::checkpoint::Checkpoint;
use serde::Deserialize;
use std::path::PathBuf;

/// One weight a layer, from the first that counts to the last.
#[derive(Debug, PartialEq)]
pub struct LayerWeights {
    folder: PathBuf,
    first: usize,
    weights: Vec<f32>,
}

impl LayerWeights {
    /// As sentence-transformers saves it: config.json, and `layer_weights` in model.safetensors.
    pub fn load(folder: &Folder) -> Result<Self> {
        #[derive(Deserialize)]
        struct Config {
            #[serde(default = "twelve")]
            num_hidden_layers: usize,
            #[serde(default = "four")]
            layer_start: usize,
        }
        fn twelve() -> usize {
            12
        }
        fn four() -> usize {
            4
        }
        let Config { num_hidden_layers, layer_start } = folder.require_json("config.json")?;
        let Some(count) = (num_hidden_layers + 1).checked_sub(layer_start).filter(|count| *count > 0) else {
            let reason = format!("layer_start = {layer_start}, but num_hidden_layers is {num_hidden_layers}");
            return Err(Error::load(folder.path().join("config.json"), reason));
        };
        let checkpoint = Checkpoint::of_model(folder, "")?;
        let weights = checkpoint.take("layer_weights", &[count])?.to_vec1::<f32>()?;
        checkpoint.finish()?;
        Ok(Self { folder: folder.path().to_owned(), first: layer_start, weights })
    }

    /// Whether it fits a body of so many blocks, which gives one more layer than it has blocks.
    pub fn check(&self, blocks: usize) -> Result<()> {
        let wanted = self.first + self.weights.len() - 1;
        if wanted == blocks {
            return Ok(());
        }
        let reason = format!("num_hidden_layers = {wanted}, but the body has {blocks}");
        Err(Error::load(self.folder.join("config.json"), reason))
    }

    /// Every layer's `[tokens, hidden]`, the embedding's first, -> `[tokens, hidden]`.
    pub fn mean(&self, layers: &[Tensor]) -> Result<Tensor> {
        let counted = layers.get(self.first..).filter(|layers| layers.len() == self.weights.len()).unwrap_or_default();
        let mut counted = counted.iter().zip(&self.weights);
        let weighted = |(layer, weight): (&Tensor, &f32)| layer.scaled(*weight);
        let first = counted.next().map(weighted).ok_or_else(|| Error::Internal("no layer counts".into()))??;
        let total = counted.try_fold(first, |all, layer| sum(&all, &weighted(layer)?))?;
        total.scaled(1.0 / self.weights.iter().sum::<f32>())
    }
}
