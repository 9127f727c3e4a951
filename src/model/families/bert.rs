//! BERT (arXiv:1810.04805): post-norm encoder with learned positions. RoBERTa and other heirs reuse keys and names.

use super::post_norm::{Names, PostNorm, Sizes};
use super::{Family, activation};
use crate::model::spec::Spec;
use serde::Deserialize;

#[derive(Deserialize)]
pub struct Config {
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub intermediate_size: usize,
    pub hidden_act: String,
    pub max_position_embeddings: usize,
    #[serde(default = "type_vocab_size")]
    pub type_vocab_size: usize,
    pub vocab_size: usize,
    pub layer_norm_eps: Option<f64>,
    #[serde(default)]
    position_embedding_type: Option<String>,
}

/// transformers' default.
fn type_vocab_size() -> usize {
    2
}

/// transformers' default in most architectures.
pub const EPS: f64 = 1e-12;

/// BERT's own module names.
pub const NAMES: Names = Names {
    embedding_norm: "embeddings.LayerNorm",
    layers: "encoder.layer",
    qkv: &["attention.self.query", "attention.self.key", "attention.self.value"],
    attention_output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    up: &["intermediate.dense"],
    down: "output.dense",
    mlp_norm: "output.LayerNorm",
};

/// What its checkpoints hold beside the body.
pub const IDLE: [&str; 5] = ["pooler", "cls", "lm_head", "classifier", "qa_outputs"];

impl Family for Config {
    fn spec(self) -> Result<Spec, String> {
        self.spec_of("bert", None)
    }
}

impl Config {
    /// Its numbers; `eps` is the default of `layer_norm_eps`.
    pub fn sizes(&self, eps: f64) -> Result<Sizes, String> {
        Ok(Sizes {
            hidden: self.hidden_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            inner: self.intermediate_size,
            vocabulary: self.vocab_size,
            activation: activation("hidden_act", &self.hidden_act)?,
            eps: self.layer_norm_eps.unwrap_or(eps),
        })
    }

    /// The spec of a body nested as `nested_as`, its positions counted from the padding token on where there is one.
    pub fn spec_of(self, nested_as: &'static str, padding: Option<usize>) -> Result<Spec, String> {
        match self.position_embedding_type.as_deref() {
            None | Some("absolute") => {}
            Some(other) => return Err(format!("position_embedding_type '{other}' is not supported")),
        }
        let body = PostNorm::learned(self.sizes(EPS)?, NAMES, self.max_position_embeddings, padding)?;
        Ok(PostNorm { token_types: self.type_vocab_size, nested_as, ..body }.spec())
    }
}
