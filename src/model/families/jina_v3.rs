//! jina-embeddings-v3 (arXiv:2409.10173): XLM-RoBERTa with rotary positions. [`Native`] is its form in transformers 5;
//! [`Remote`], the one of the authors' own code, holds an adapter a task in the base's checkpoint.

use super::Family;
use super::post_norm::{Biases, Names};
use super::rotary_bert::{self, Variant};
use crate::model::spec::{Gate, Spec, Tasks};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(transparent)]
pub struct Native(rotary_bert::Keys);

#[derive(Deserialize)]
pub struct Remote {
    #[serde(flatten)]
    keys: rotary_bert::Keys,
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

/// transformers' defaults.
const THETA: f64 = 20_000.0;
const EPS: f64 = 1e-5;

const NAMES: Names = Names { up: &["mlp.fc1"], down: "mlp.fc2", ..rotary_bert::NAMES };

const REMOTE_NAMES: Names = Names {
    embedding_norm: "emb_ln",
    layers: "encoder.layers",
    qkv: &["mixer.Wqkv"],
    attention_output: "mixer.out_proj",
    attention_norm: "norm1",
    mlp_norm: "norm2",
    ..NAMES
};

const FUSED_NAMES: Names = Names { qkv: rotary_bert::FUSED_NAMES.qkv, ..NAMES };

impl Family for Native {
    fn spec(self) -> Result<Spec, String> {
        self.0.spec(variant(NAMES, &[REMOTE_NAMES, FUSED_NAMES], THETA))
    }
}

impl Family for Remote {
    const IS_REMOTE: bool = true;

    fn spec(self) -> Result<Spec, String> {
        if self.lora_rank == 0 {
            return Err("lora_rank must not be 0".into());
        }
        let scale = self.lora_alpha / self.lora_rank as f64;
        let tasks = Tasks { names: self.lora_adaptations, rank: self.lora_rank, scale };
        let tasks = Some(tasks).filter(|tasks| !tasks.names.is_empty());
        Ok(Spec { tasks, ..self.keys.spec(variant(REMOTE_NAMES, &[NAMES, FUSED_NAMES], self.rotary_emb_base))? })
    }
}

fn variant(names: Names, also: &'static [Names], theta: f64) -> Variant {
    Variant { names, also, biases: Biases::all(true), gate: Gate::Absent, theta, eps: EPS, nested_as: "roberta" }
}
