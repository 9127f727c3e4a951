//! DistilBERT (arXiv:1910.01108): BERT without token types, under names of its own.

use super::post_norm::{Names, PostNorm};
use super::{Family, activation};
use crate::model::spec::{Positions, Spec};
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

const IDLE: [&str; 6] = [
    "embeddings.position_ids",
    "vocab_transform",
    "vocab_layer_norm",
    "vocab_projector",
    "pre_classifier",
    "classifier",
];

impl Family for Config {
    fn spec(self) -> Result<Spec, String> {
        PostNorm {
            hidden: self.dim,
            heads: self.n_heads,
            layers: self.n_layers,
            inner: self.hidden_dim,
            vocabulary: self.vocab_size,
            positions: self.max_position_embeddings,
            padding: None,
            token_types: None,
            activation: activation("activation", &self.activation)?,
            eps: EPS,
            attention_positions: Positions::Absent,
            prefix: "transformer.layer",
            names: Names {
                qkv: ["attention.q_lin", "attention.k_lin", "attention.v_lin"],
                attention_output: "attention.out_lin",
                attention_norm: "sa_layer_norm",
                up: "ffn.lin1",
                down: "ffn.lin2",
                mlp_norm: "output_layer_norm",
            },
            nested_as: "distilbert",
            idle: &IDLE,
        }
        .spec()
    }
}
