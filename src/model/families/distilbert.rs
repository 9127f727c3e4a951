//! DistilBERT (arXiv:1910.01108): BERT without token types, under names of its own.

use super::post_norm::{Names, PostNorm};
use super::{Family, activation, layer_norm, table};
use crate::model::spec::{Embedding, PositionTable, Positions, Spec};
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

impl Family for Config {
    fn spec(self) -> Result<Spec, String> {
        let block = PostNorm {
            hidden: self.dim,
            heads: self.n_heads,
            inner: self.hidden_dim,
            activation: activation("activation", &self.activation)?,
            eps: EPS,
            positions: Positions::Absent,
            prefix: "transformer.layer",
            names: Names {
                qkv: ["attention.q_lin", "attention.k_lin", "attention.v_lin"],
                attention_output: "attention.out_lin",
                attention_norm: "sa_layer_norm",
                up: "ffn.lin1",
                down: "ffn.lin2",
                mlp_norm: "output_layer_norm",
            },
        };
        let positions = table("embeddings.position_embeddings", self.max_position_embeddings);
        Ok(Spec {
            hidden: self.dim,
            tokens_max: self.max_position_embeddings,
            embedding: Embedding {
                word: table("embeddings.word_embeddings", self.vocab_size),
                position: Some(PositionTable { table: positions, first: 0 }),
                token_type: None,
                norm: Some(layer_norm("embeddings.LayerNorm", EPS)),
            },
            layers: block.layers(self.n_layers),
            final_norm: None,
            nested_as: "distilbert",
            idle: ["vocab_transform", "vocab_layer_norm", "vocab_projector", "pre_classifier", "classifier"]
                .map(String::from)
                .into(),
        })
    }
}
