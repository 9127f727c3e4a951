//! MPNet (arXiv:2004.09297): RoBERTa's positions plus a relative bias that all layers share.

use super::post_norm::{Biases, Names, PostNorm, learned};
use super::{Family, bert, table};
use crate::model::spec::{Gate, Positions, Spec};
use serde::Deserialize;

#[derive(Deserialize)]
pub struct Config {
    #[serde(flatten)]
    body: bert::Config,
    relative_attention_num_buckets: usize,
}

/// Fixed in the reference implementation.
const DISTANCE_MAX: usize = 128;
const PADDING: usize = 1;

impl Family for Config {
    fn spec(self) -> Result<Spec, String> {
        let (tokens_max, position_table) = learned(self.body.max_position_embeddings, Some(PADDING))?;
        PostNorm {
            sizes: self.body.sizes(bert::EPS)?,
            names: Names {
                qkv: &["attention.attn.q", "attention.attn.k", "attention.attn.v"],
                attention_output: "attention.attn.o",
                attention_norm: "attention.LayerNorm",
                ..bert::NAMES
            },
            also: None,
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
