//! Qwen2 (arXiv:2407.10671), with biases on queries, keys and values, and Qwen3 (arXiv:2505.09388), which norms queries
//! and keys instead. The upper layers may slide.

use super::decoder::{self, Decoder};
use super::{Family, sliding};
use crate::model::spec::Spec;
use serde::Deserialize;

#[derive(Deserialize)]
struct Keys {
    #[serde(flatten)]
    keys: decoder::Keys,
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(default = "decoder::sliding_window")]
    sliding_window: Option<usize>,
    #[serde(default = "max_window_layers")]
    max_window_layers: usize,
}

/// transformers' default.
fn max_window_layers() -> usize {
    28
}

#[derive(Deserialize)]
#[serde(transparent)]
pub struct Qwen2(Keys);

#[derive(Deserialize)]
pub struct Qwen3 {
    #[serde(flatten)]
    keys: Keys,
    #[serde(default)]
    attention_bias: bool,
}

impl Family for Qwen2 {
    const MAY_BE_CAUSAL: bool = true;

    fn spec(self) -> Result<Spec, String> {
        Decoder { qkv_bias: true, ..self.0.decoder()? }.spec()
    }
}

impl Family for Qwen3 {
    const MAY_BE_CAUSAL: bool = true;

    fn spec(self) -> Result<Spec, String> {
        let bias = self.attention_bias;
        Decoder { qk_norms: true, qkv_bias: bias, output_bias: bias, ..self.keys.decoder()? }.spec()
    }
}

impl Keys {
    fn decoder(self) -> Result<Decoder, String> {
        let mut decoder = self.keys.decoder()?;
        let window = self.sliding_window.filter(|_| self.use_sliding_window);
        let upper = |index: usize| window.is_some() && index >= self.max_window_layers;
        let slides = sliding(self.keys.layer_types.as_ref(), decoder.layers.len(), upper)?;
        match window {
            Some(window) => decoder.slide(window, |index| slides[index])?,
            None if slides.contains(&true) => return Err("sliding_window is missing".into()),
            None => {}
        }
        Ok(decoder)
    }
}
