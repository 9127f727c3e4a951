//! MPNet (arXiv:2004.09297): RoBERTa's positions plus a relative bias that all layers share.

use super::post_norm::{Names, PostNorm};
use super::{Family, activation, table};
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
    vocab_size: usize,
    layer_norm_eps: f64,
    relative_attention_num_buckets: usize,
    #[serde(default = "pad_token_id")]
    pad_token_id: usize,
}

/// transformers' default.
fn pad_token_id() -> usize {
    1
}

/// Fixed in the reference implementation.
const DISTANCE_MAX: usize = 128;

impl Family for Config {
    fn spec(self) -> Result<Spec, String> {
        PostNorm {
            hidden: self.hidden_size,
            heads: self.num_attention_heads,
            layers: self.num_hidden_layers,
            inner: self.intermediate_size,
            vocabulary: self.vocab_size,
            positions: self.max_position_embeddings,
            padding: Some(self.pad_token_id),
            token_types: None,
            activation: activation("hidden_act", &self.hidden_act)?,
            eps: self.layer_norm_eps,
            attention_positions: Positions::RelativeBias {
                table: table("encoder.relative_attention_bias", self.relative_attention_num_buckets),
                distance_max: DISTANCE_MAX,
            },
            prefix: "encoder.layer",
            names: Names {
                qkv: ["attention.attn.q", "attention.attn.k", "attention.attn.v"],
                attention_output: "attention.attn.o",
                attention_norm: "attention.LayerNorm",
                up: "intermediate.dense",
                down: "output.dense",
                mlp_norm: "output.LayerNorm",
            },
            nested_as: "mpnet",
            idle: &["pooler", "embeddings.position_ids", "lm_head", "classifier"],
        }
        .spec()
    }
}
