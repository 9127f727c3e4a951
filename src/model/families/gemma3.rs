//! Gemma 3's text model (arXiv:2503.19786), causal, or looking both ways as EmbeddingGemma does.

use super::rope::{self, Rope};
use super::{Family, activation, decoder, sliding};
use crate::model::spec::{Rotary, Spec};
use serde::Deserialize;

#[derive(Deserialize)]
pub struct Config {
    #[serde(flatten)]
    keys: decoder::Keys,
    query_pre_attn_scalar: f64,
    #[serde(default = "decoder::sliding_window")]
    sliding_window: Option<usize>,
    #[serde(default)]
    use_bidirectional_attention: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default = "hidden_activation")]
    hidden_activation: String,
    attn_logit_softcapping: Option<f64>,
    #[serde(default = "sliding_window_pattern")]
    sliding_window_pattern: usize,
    rope_theta: Option<f64>,
    rope_local_base_freq: Option<f64>,
    rope_parameters: Option<RopeByLayer>,
    #[serde(default, deserialize_with = "rope::filled")]
    rope_scaling: Option<Rope>,
}

/// Since transformers 5.
#[derive(Clone, Default, Deserialize)]
struct RopeByLayer {
    #[serde(default)]
    full_attention: Option<Rope>,
    #[serde(default)]
    sliding_attention: Option<Rope>,
}

/// transformers' defaults; of so many layers the last sees all.
fn sliding_window_pattern() -> usize {
    6
}

fn hidden_activation() -> String {
    "gelu_pytorch_tanh".into()
}

/// transformers' default base of the layers that see all.
const THETA: f64 = 1_000_000.0;

impl Family for Config {
    const MAY_BE_CAUSAL: bool = true;

    fn spec(self) -> Result<Spec, String> {
        if self.attn_logit_softcapping.is_some() {
            return Err("attn_logit_softcapping is not supported".into());
        }
        if self.keys.is_causal == Some(false) {
            return Err("is_causal = false is not supported here, use_bidirectional_attention = true is".into());
        }
        let (full, local) = self.rotary()?;
        let mut decoder = self.keys.decoder()?;
        decoder.scale = self.query_pre_attn_scalar.sqrt().recip();
        decoder.causal = !self.use_bidirectional_attention;
        (decoder.qkv_bias, decoder.output_bias) = (self.attention_bias, self.attention_bias);
        decoder.activation = activation("hidden_activation", &self.hidden_activation)?;
        (decoder.qk_norms, decoder.sandwich) = (true, true);
        decoder.embedding_scale = Some((decoder.hidden as f64).sqrt());
        let pattern = self.sliding_window_pattern.max(1);
        let slides = |index: usize| !(index + 1).is_multiple_of(pattern);
        let slides = sliding(self.keys.layer_types.as_ref(), decoder.layers.len(), slides)?;
        let Some(window) = self.sliding_window else { return Err("sliding_window is missing".into()) };
        // Both ways, the window is what is seen on either side together.
        decoder.slide(if decoder.causal { window } else { window / 2 }, |index| slides[index])?;
        for (slides, layer) in slides.iter().zip(&mut decoder.layers) {
            layer.rotary = if *slides { local.clone() } else { full.clone() };
        }
        decoder.spec()
    }
}

impl Config {
    /// Of the layers that see all, and of those that slide.
    fn rotary(&self) -> Result<(Rotary, Rotary), String> {
        let by_layer = self.rope_parameters.clone().unwrap_or_default();
        let positions = self.keys.max_position_embeddings;
        let full = match (by_layer.full_attention, &self.rope_scaling) {
            (full, None) => full.unwrap_or_default(),
            (None, Some(scaling)) if scaling.rope_type.is_some() => scaling.clone(),
            // transformers mixes the two, and does not heed a `type`.
            _ => return Err("rope_scaling beside rope_parameters, or without rope_type, is not supported".into()),
        };
        let sliding = by_layer.sliding_attention.unwrap_or_default();
        let full = full.rotary(self.rope_theta.unwrap_or(THETA), positions)?;
        Ok((full, sliding.rotary(self.rope_local_base_freq.unwrap_or(rope::THETA), positions)?))
    }
}
