//! What NomicBERT, GTE and jina-embeddings-v3 share: BERT's body, with rotary positions in place of learned ones.

use super::post_norm::{Biases, Names, PostNorm};
use super::{bert, rope};
use crate::model::spec::{Gate, Positions, Spec};
use serde::Deserialize;

/// The keys of config.json that they share.
#[derive(Deserialize)]
pub struct Keys {
    #[serde(flatten)]
    body: bert::Config,
    #[serde(flatten)]
    rope: rope::Keys,
}

/// In what they differ.
pub struct Variant {
    pub names: Names,
    /// See [`PostNorm::also`].
    pub also: &'static [Names],
    pub biases: Biases,
    pub gate: Gate,
    /// The rotary base where the keys name none.
    pub theta: f64,
    /// The norms' epsilon where the keys name none.
    pub eps: f64,
    pub nested_as: &'static str,
}

/// The module names that transformers 5 gives to all of them.
pub const NAMES: Names = Names {
    layers: "layers",
    qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    attention_output: "self_attn.o_proj",
    attention_norm: "post_attention_layernorm",
    up: &["mlp.gate_proj", "mlp.up_proj"],
    down: "mlp.down_proj",
    mlp_norm: "post_mlp_layernorm",
    ..bert::NAMES
};

/// The same with one module for queries, keys and values, and one for the gate and what it gates.
pub const FUSED_NAMES: Names = Names { qkv: &["self_attn.qkv_proj"], up: &["mlp.gate_up_proj"], ..NAMES };

impl Keys {
    /// The same with GTE's own kind of rotary scaling allowed.
    pub fn with_ntk(mut self) -> Self {
        self.rope.ntk = true;
        self
    }

    /// The whole body.
    pub fn spec(self, variant: Variant) -> Result<Spec, String> {
        let tokens_max = self.body.max_position_embeddings;
        Ok(PostNorm {
            sizes: self.body.sizes(variant.eps)?,
            names: variant.names,
            also: variant.also,
            biases: variant.biases,
            gate: variant.gate,
            tokens_max,
            position_table: None,
            token_types: self.body.type_vocab_size,
            attention_positions: Positions::Rotary(self.rope.rotary(variant.theta, tokens_max)?),
            nested_as: variant.nested_as,
            idle: &bert::IDLE,
        }
        .spec())
    }
}
