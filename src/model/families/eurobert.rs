//! EuroBERT (arXiv:2503.05500): Llama that always looks both ways.

use super::Family;
use super::decoder::{self, Decoder};
use crate::model::spec::Spec;
use serde::Deserialize;

#[derive(Deserialize)]
pub struct Config {
    #[serde(flatten)]
    keys: decoder::Keys,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
}

impl Family for Config {
    fn spec(self) -> Result<Spec, String> {
        let (bias, mlp_bias) = (self.attention_bias, self.mlp_bias);
        Decoder { causal: false, qkv_bias: bias, output_bias: bias, mlp_bias, ..self.keys.decoder()? }.spec()
    }
}
