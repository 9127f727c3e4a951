//! jina-embeddings-v3 (arXiv:2409.10173): XLM-RoBERTa with rotary positions. [`Native`] is its form in transformers 5;
//! [`Remote`], the one of the authors' own code, holds an adapter a task in the base's checkpoint.

use super::post_norm::{Biases, Names, PostNorm};
use super::{Family, bert, nomic, rope};
use crate::model::spec::{Gate, Positions, Rotary, Spec, Tasks};
use serde::Deserialize;

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
    body: bert::Config,
    #[serde(default = "rotary_emb_base")]
    rotary_emb_base: f64,
    #[serde(default)]
    lora_adaptations: Vec<String>,
    #[serde(default = "lora_rank")]
    lora_rank: usize,
    #[serde(default = "lora_alpha")]
    lora_alpha: f64,
}

/// The authors' defaults.
fn rotary_emb_base() -> f64 {
    10_000.0
}
fn lora_rank() -> usize {
    4
}
fn lora_alpha() -> f64 {
    1.0
}

const NAMES: Names = Names { up: &["mlp.fc1"], down: "mlp.fc2", ..nomic::NAMES };

const REMOTE_NAMES: Names = Names {
    embedding_norm: "emb_ln",
    layers: "encoder.layers",
    qkv: &["mixer.Wqkv"],
    attention_output: "mixer.out_proj",
    attention_norm: "norm1",
    up: &["mlp.fc1"],
    down: "mlp.fc2",
    mlp_norm: "norm2",
};

/// transformers' default.
const THETA: f64 = 20_000.0;

impl Family for Native {
    fn spec(self) -> Result<Spec, String> {
        let rotary = self.rope.rotary(THETA, self.body.max_position_embeddings)?;
        body(&self.body, NAMES, rotary)
    }
}

impl Family for Remote {
    fn spec(self) -> Result<Spec, String> {
        if self.lora_rank == 0 {
            return Err("lora_rank must not be 0".into());
        }
        let scale = self.lora_alpha / self.lora_rank as f64;
        let tasks = Tasks { names: self.lora_adaptations, rank: self.lora_rank, scale };
        let tasks = Some(tasks).filter(|tasks| !tasks.names.is_empty());
        Ok(Spec { tasks, ..body(&self.body, REMOTE_NAMES, Rotary::new(self.rotary_emb_base))? })
    }
}

fn body(body: &bert::Config, names: Names, rotary: Rotary) -> Result<Spec, String> {
    PostNorm {
        sizes: body.sizes()?,
        names,
        biases: Biases::all(true),
        gate: Gate::Absent,
        tokens_max: body.max_position_embeddings,
        position_table: None,
        token_types: body.type_vocab_size,
        attention_positions: Positions::Rotary(rotary),
        nested_as: "roberta",
        idle: &bert::IDLE,
    }
    .spec()
}
