//! MPNet (arXiv:2004.09297): RoBERTa's positions plus a relative bias that all layers share.

use super::{Family, activation, layer_norm, table};
use crate::model::spec::{Attention, Embedding, Layer, Mlp, Norms, PositionTable, Positions, Projection, Spec};
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
        let first = self.pad_token_id + 1;
        if self.max_position_embeddings <= first {
            return Err(format!("max_position_embeddings must be more than {first}"));
        }
        let positions = table("embeddings.position_embeddings", self.max_position_embeddings);
        Ok(Spec {
            hidden: self.hidden_size,
            tokens_max: self.max_position_embeddings - first,
            embedding: Embedding {
                word: table("embeddings.word_embeddings", self.vocab_size),
                position: Some(PositionTable { table: positions, first }),
                token_type: None,
                norm: Some(layer_norm("embeddings.LayerNorm", self.layer_norm_eps)),
            },
            layers: (0..self.num_hidden_layers).map(|i| self.layer(i)).collect::<Result<_, _>>()?,
            final_norm: None,
            nested_as: "mpnet",
            idle: ["pooler", "embeddings.position_ids", "lm_head", "classifier"].map(String::from).into(),
        })
    }
}

impl Config {
    fn layer(&self, index: usize) -> Result<Layer, String> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let at = |module: &str| format!("encoder.layer.{index}.{module}");
        let qkv = ["q", "k", "v"].map(|part| (at(&format!("attention.attn.{part}")), hidden));
        Ok(Layer {
            norms: Norms::Post {
                attention: layer_norm(at("attention.LayerNorm"), self.layer_norm_eps),
                mlp: layer_norm(at("output.LayerNorm"), self.layer_norm_eps),
            },
            attention: Attention {
                heads: self.num_attention_heads,
                kv_heads: self.num_attention_heads,
                head_width: hidden / self.num_attention_heads,
                qkv: Projection::new(hidden, true, qkv),
                output: Projection::new(hidden, true, [(at("attention.attn.o"), hidden)]),
                qk_norms: None,
                causal: false,
                positions: Positions::RelativeBias {
                    table: table("encoder.relative_attention_bias", self.relative_attention_num_buckets),
                    distance_max: DISTANCE_MAX,
                },
            },
            mlp: Mlp {
                up: Projection::new(hidden, true, [(at("intermediate.dense"), inner)]),
                activation: activation("hidden_act", &self.hidden_act)?,
                gated: false,
                down: Projection::new(inner, true, [(at("output.dense"), hidden)]),
            },
        })
    }
}
