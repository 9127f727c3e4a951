//! GTE's long-context encoder (arXiv:2407.19669): BERT with rotary positions and a gated MLP. [`Native`] is its form in
//! transformers 5, [`Remote`] the one of the authors' own code.

use super::post_norm::{Biases, Names};
use super::rotary_bert::{self, Variant};
use super::{Family, bert, require, rope};
use crate::model::spec::{Gate, Spec};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
#[serde(transparent)]
pub struct Native(rotary_bert::Keys);

#[derive(Deserialize)]
pub struct Remote {
    #[serde(flatten)]
    keys: rotary_bert::Keys,
    #[serde(flatten)]
    rest: serde_json::Map<String, Value>,
}

/// transformers' default.
const THETA: f64 = 160_000.0;

const BIASES: Biases = Biases { qkv: true, attention_output: true, up: false, down: true };

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

/// In the order of the fused way up, which holds the gate second.
const NAMES: Names = Names { up: &["mlp.up_proj", "mlp.gate_proj"], ..rotary_bert::NAMES };

/// What they are called where both are fused.
const FUSED_NAMES: Names = Names { qkv: rotary_bert::FUSED_NAMES.qkv, up: REMOTE_NAMES.up, ..NAMES };

impl Family for Native {
    fn spec(self) -> Result<Spec, String> {
        let (names, also) = (NAMES, &[REMOTE_NAMES, FUSED_NAMES]);
        self.0.spec(Variant {
            names,
            also,
            biases: BIASES,
            gate: Gate::Second,
            theta: THETA,
            eps: bert::EPS,
            nested_as: "gte",
        })
    }
}

impl Family for Remote {
    const IS_REMOTE: bool = true;

    fn spec(self) -> Result<Spec, String> {
        require(&self.rest, &FIXED)?;
        for (key, expected) in [("layer_norm_type", "layer_norm"), ("position_embedding_type", "rope")] {
            if self.rest.get(key).is_some_and(|value| value != expected) {
                return Err(format!("{key} other than '{expected}' is not supported"));
            }
        }
        let (names, also, biases, theta) = (REMOTE_NAMES, &[NAMES, FUSED_NAMES], BIASES, rope::THETA);
        let eps = bert::EPS;
        self.keys.with_ntk().spec(Variant { names, also, biases, gate: Gate::Second, theta, eps, nested_as: "new" })
    }
}
