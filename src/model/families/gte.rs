//! GTE's long-context encoder (arXiv:2407.19669): BERT with rotary positions and a gated MLP. [`Native`] is its form in
//! transformers 5, [`Remote`] the one of the authors' own code.

use super::post_norm::{Biases, Names, PostNorm};
use super::{Family, bert, nomic, require, rope};
use crate::model::spec::{Gate, Positions, Spec};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
pub struct Native {
    #[serde(flatten)]
    body: bert::Config,
    #[serde(flatten)]
    rope: rope::Keys,
}

#[derive(Deserialize)]
pub struct Remote {
    #[serde(flatten)]
    like: Native,
    #[serde(flatten)]
    rest: serde_json::Map<String, Value>,
}

/// transformers' default base; the authors'.
const THETA: f64 = 160_000.0;
const REMOTE_THETA: f64 = 10_000.0;

const REMOTE_NAMES: Names = Names {
    qkv: &["attention.qkv_proj"],
    attention_output: "attention.o_proj",
    attention_norm: "attn_ln",
    up: &["mlp.up_gate_proj"],
    down: "mlp.down_proj",
    mlp_norm: "mlp_ln",
    ..bert::NAMES
};

/// Values of the authors' other keys, as all published models have them.
const FIXED: [(&str, Value); 2] = [("logn_attention_scale", Value::Bool(false)), ("pack_qkv", Value::Bool(true))];

impl Family for Native {
    fn spec(self) -> Result<Spec, String> {
        self.body(nomic::NAMES, Gate::First, THETA, "gte")
    }
}

impl Family for Remote {
    fn spec(self) -> Result<Spec, String> {
        require(&self.rest, &FIXED)?;
        for (key, expected) in [("layer_norm_type", "layer_norm"), ("position_embedding_type", "rope")] {
            if self.rest.get(key).is_some_and(|value| value != expected) {
                return Err(format!("{key} other than '{expected}' is not supported"));
            }
        }
        // The fused way up holds the gate second.
        self.like.body(REMOTE_NAMES, Gate::Second, REMOTE_THETA, "new")
    }
}

impl Native {
    fn body(self, names: Names, gate: Gate, theta: f64, nested_as: &'static str) -> Result<Spec, String> {
        let tokens_max = self.body.max_position_embeddings;
        PostNorm {
            sizes: self.body.sizes()?,
            names,
            biases: Biases { up: false, ..Biases::all(true) },
            gate,
            tokens_max,
            position_table: None,
            token_types: self.body.type_vocab_size,
            attention_positions: Positions::Rotary(self.rope.rotary(theta, tokens_max)?),
            nested_as,
            idle: &bert::IDLE,
        }
        .spec()
    }
}
