//! ALBERT (arXiv:1909.11942): BERT with narrow embeddings and with groups of layers that share their weights.

use super::post_norm::{Names, PostNorm};
use super::{Family, bert, layer_norm};
use crate::model::spec::{Projection, Spec};
use serde::Deserialize;

#[derive(Deserialize)]
pub struct Config {
    #[serde(flatten)]
    body: bert::Config,
    embedding_size: usize,
    num_hidden_groups: usize,
    #[serde(default = "inner_group_num")]
    inner_group_num: usize,
}

/// transformers' default.
fn inner_group_num() -> usize {
    1
}

const NAMES: Names = Names {
    qkv: &["attention.query", "attention.key", "attention.value"],
    attention_output: "attention.dense",
    attention_norm: "attention.LayerNorm",
    up: &["ffn"],
    down: "ffn_output",
    mlp_norm: "full_layer_layer_norm",
    ..bert::NAMES
};

const IDLE: [&str; 5] = ["pooler", "predictions", "sop_classifier", "classifier", "qa_outputs"];

impl Family for Config {
    fn spec(self) -> Result<Spec, String> {
        let Self { body, embedding_size: width, num_hidden_groups: groups, inner_group_num } = self;
        let (count, hidden) = (body.num_hidden_layers, body.hidden_size);
        if groups == 0 || groups > count {
            return Err(format!("num_hidden_groups must be between 1 and {count}"));
        }
        let token_types = body.type_vocab_size;
        let body = PostNorm::learned(body.sizes(bert::EPS)?, NAMES, body.max_position_embeddings, None)?;
        let body = PostNorm { token_types, nested_as: "albert", idle: &IDLE, ..body };
        let eps = body.sizes.eps;
        // Layer i stands in group floor(i / (layers / groups)), a division of real numbers.
        let group = |index: usize| (index as f64 / (count as f64 / groups as f64)) as usize;
        let path = |group, inner| format!("encoder.albert_layer_groups.{group}.albert_layers.{inner}");
        let paths = (0..count).flat_map(|index| (0..inner_group_num).map(move |inner| path(group(index), inner)));
        let layers = paths.map(|path| body.layer(&path)).collect();
        let mut spec = body.with_layers(layers);
        spec.embedding.width = width;
        spec.embedding.norm = Some(layer_norm(bert::NAMES.embedding_norm, eps));
        let inwards = ("encoder.embedding_hidden_mapping_in".to_owned(), hidden);
        spec.embedding.projection = Some(Projection::new(width, true, [inwards]));
        Ok(spec)
    }
}
