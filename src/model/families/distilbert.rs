//! DistilBERT (arXiv:1910.01108): BERT without token types, under names of its own.

use super::post_norm::{Names, PostNorm, Sizes};
use super::{Family, activation};
use crate::model::spec::Spec;
use serde::Deserialize;

#[derive(Deserialize)]
pub struct Config {
    dim: usize,
    n_layers: usize,
    n_heads: usize,
    hidden_dim: usize,
    activation: String,
    max_position_embeddings: usize,
    vocab_size: usize,
}

/// Fixed in the reference implementation.
const EPS: f64 = 1e-12;

const IDLE: [&str; 6] =
    ["vocab_transform", "vocab_layer_norm", "vocab_projector", "pre_classifier", "classifier", "qa_outputs"];

const NAMES: Names = Names {
    embedding_norm: "embeddings.LayerNorm",
    layers: "transformer.layer",
    qkv: &["attention.q_lin", "attention.k_lin", "attention.v_lin"],
    attention_output: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    up: &["ffn.lin1"],
    down: "ffn.lin2",
    mlp_norm: "output_layer_norm",
};

impl Family for Config {
    fn spec(self) -> Result<Spec, String> {
        let sizes = Sizes {
            hidden: self.dim,
            layers: self.n_layers,
            heads: self.n_heads,
            inner: self.hidden_dim,
            vocabulary: self.vocab_size,
            activation: activation("activation", &self.activation)?,
            eps: EPS,
        };
        let body = PostNorm::learned(sizes, NAMES, self.max_position_embeddings, None)?;
        Ok(PostNorm { nested_as: "distilbert", idle: &IDLE, ..body }.spec())
    }
}
