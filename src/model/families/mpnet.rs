//! MPNet (arXiv:2004.09297): RoBERTa's positions plus a relative bias that all layers share.

use super::post_norm::{Names, PostNorm};
use super::{Family, bert, table};
use crate::model::spec::{Positions, Spec};
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

const NAMES: Names = Names {
    qkv: &["attention.attn.q", "attention.attn.k", "attention.attn.v"],
    attention_output: "attention.attn.o",
    attention_norm: "attention.LayerNorm",
    ..bert::NAMES
};

impl Family for Config {
    fn spec(self) -> Result<Spec, String> {
        let (sizes, rows) = (self.body.sizes(bert::EPS)?, self.body.max_position_embeddings);
        let attention_positions = Positions::RelativeBias {
            table: table("encoder.relative_attention_bias", self.relative_attention_num_buckets),
            distance_max: DISTANCE_MAX,
        };
        let body = PostNorm::learned(sizes, NAMES, rows, Some(PADDING))?;
        Ok(PostNorm { attention_positions, nested_as: "mpnet", ..body }.spec())
    }
}
