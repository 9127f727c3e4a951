//! DistilBERT (arXiv:1910.01108): BERT without token types, under names of its own.

use super::{Family, activation, layer_norm, table};
use crate::model::spec::{Attention, Embedding, Layer, Mlp, Norms, PositionTable, Positions, Projection, Spec};
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
            layers: (0..self.n_layers).map(|i| self.layer(i)).collect::<Result<_, _>>()?,
            final_norm: None,
            nested_as: "distilbert",
            idle: ["vocab_transform", "vocab_layer_norm", "vocab_projector", "pre_classifier", "classifier"]
                .map(String::from)
                .into(),
        })
    }
}

impl Config {
    fn layer(&self, index: usize) -> Result<Layer, String> {
        let at = |module: &str| format!("transformer.layer.{index}.{module}");
        let qkv = ["q_lin", "k_lin", "v_lin"].map(|part| (at(&format!("attention.{part}")), self.dim));
        Ok(Layer {
            norms: Norms::Post {
                attention: layer_norm(at("sa_layer_norm"), EPS),
                mlp: layer_norm(at("output_layer_norm"), EPS),
            },
            attention: Attention {
                heads: self.n_heads,
                kv_heads: self.n_heads,
                head_width: self.dim / self.n_heads,
                qkv: Projection::new(self.dim, true, qkv),
                output: Projection::new(self.dim, true, [(at("attention.out_lin"), self.dim)]),
                qk_norms: None,
                causal: false,
                positions: Positions::Absent,
            },
            mlp: Mlp {
                up: Projection::new(self.dim, true, [(at("ffn.lin1"), self.hidden_dim)]),
                activation: activation("activation", &self.activation)?,
                gated: false,
                down: Projection::new(self.hidden_dim, true, [(at("ffn.lin2"), self.dim)]),
            },
        })
    }
}
