//! Llama (arXiv:2302.13971), and NVIDIA's bidirectional one.

use super::{Family, decoder};
use crate::model::spec::Spec;
use serde::Deserialize;

#[derive(Deserialize)]
pub struct Config {
    #[serde(flatten)]
    keys: decoder::Keys,
    model_type: String,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
}

impl Family for Config {
    const MAY_BE_CAUSAL: bool = true;

    fn spec(self) -> Result<Spec, String> {
        let mut decoder = self.keys.decoder()?;
        (decoder.qkv_bias, decoder.output_bias, decoder.mlp_bias) =
            (self.attention_bias, self.attention_bias, self.mlp_bias);
        decoder.causal &= self.model_type != "llama_bidirec";
        decoder.spec()
    }
}
