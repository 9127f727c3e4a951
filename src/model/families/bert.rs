//! BERT (arXiv:1810.04805): post-norm encoder with learned positions. RoBERTa and its kin reuse the body.

use super::post_norm::{Names, PostNorm};
use super::{Family, activation};
use crate::model::spec::{Positions, Spec};
use serde::Deserialize;

#[derive(Deserialize)]
pub struct Config {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    hidden_act: String,
    max_position_embeddings: usize,
    type_vocab_size: usize,
    vocab_size: usize,
    #[serde(default = "layer_norm_eps")]
    layer_norm_eps: f64,
    #[serde(default)]
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
}

/// transformers' default.
fn layer_norm_eps() -> f64 {
    1e-12
}

impl Family for Config {
    fn spec(self) -> Result<Spec, String> {
        self.spec_of("bert", None)
    }
}

impl Config {
    /// The spec of a body nested as `nested_as`, its positions counted from the padding token on where there is one.
    pub fn spec_of(self, nested_as: &'static str, padding: Option<usize>) -> Result<Spec, String> {
        match self.position_embedding_type.as_deref() {
            None | Some("absolute") => {}
            Some(other) => return Err(format!("position_embedding_type '{other}' is not supported")),
        }
        if self.is_decoder {
            return Err("is_decoder = true is not supported".into());
        }
        PostNorm {
            hidden: self.hidden_size,
            heads: self.num_attention_heads,
            layers: self.num_hidden_layers,
            inner: self.intermediate_size,
            vocabulary: self.vocab_size,
            positions: self.max_position_embeddings,
            padding,
            token_types: Some(self.type_vocab_size),
            activation: activation("hidden_act", &self.hidden_act)?,
            eps: self.layer_norm_eps,
            attention_positions: Positions::Absent,
            prefix: "encoder.layer",
            names: Names {
                qkv: ["attention.self.query", "attention.self.key", "attention.self.value"],
                attention_output: "attention.output.dense",
                attention_norm: "attention.output.LayerNorm",
                up: "intermediate.dense",
                down: "output.dense",
                mlp_norm: "output.LayerNorm",
            },
            nested_as,
            idle: &["pooler", "embeddings.position_ids", "cls", "lm_head", "classifier"],
        }
        .spec()
    }
}
