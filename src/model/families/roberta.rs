//! RoBERTa (arXiv:1907.11692), XLM-RoBERTa and CamemBERT: BERT's body, positions counted from the padding id on.

use super::{Family, bert};
use crate::model::spec::Spec;
use serde::Deserialize;

#[derive(Deserialize)]
pub struct Config {
    #[serde(flatten)]
    body: bert::Config,
    #[serde(default = "pad_token_id")]
    pad_token_id: usize,
}

/// transformers' default.
fn pad_token_id() -> usize {
    1
}

impl Family for Config {
    fn spec(self) -> Result<Spec, String> {
        self.body.spec_of("roberta", Some(self.pad_token_id))
    }
}
