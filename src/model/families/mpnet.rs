//! MPNet (arXiv:2004.09297): RoBERTa's positions plus a relative bias that all layers share.

use super::post_norm::{Biases, Names, PostNorm, Sizes, learned};
use super::{Family, activation, bert, table};
use crate::model::spec::{Gate, Positions, Spec};
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
        let (tokens_max, position_table) = learned(self.max_position_embeddings, Some(self.pad_token_id))?;
        PostNorm {
            sizes: Sizes {
                hidden: self.hidden_size,
                layers: self.num_hidden_layers,
                heads: self.num_attention_heads,
                inner: self.intermediate_size,
                vocabulary: self.vocab_size,
                activation: activation("hidden_act", &self.hidden_act)?,
                eps: self.layer_norm_eps,
            },
            names: Names {
                qkv: &["attention.attn.q", "attention.attn.k", "attention.attn.v"],
                attention_output: "attention.attn.o",
                attention_norm: "attention.LayerNorm",
                ..bert::NAMES
            },
            biases: Biases::all(true),
            gate: Gate::Absent,
            tokens_max,
            position_table,
            token_types: 0,
            attention_positions: Positions::RelativeBias {
                table: table("encoder.relative_attention_bias", self.relative_attention_num_buckets),
                distance_max: DISTANCE_MAX,
            },
            nested_as: "mpnet",
            idle: &bert::IDLE,
        }
        .spec()
    }
}
