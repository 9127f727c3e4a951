//! Mistral (arXiv:2310.06825): Llama whose every layer may slide.

use super::{Family, decoder};
use crate::model::spec::Spec;
use serde::Deserialize;

#[derive(Deserialize)]
pub struct Config {
    #[serde(flatten)]
    keys: decoder::Keys,
    #[serde(default = "decoder::sliding_window")]
    sliding_window: Option<usize>,
}

impl Family for Config {
    const MAY_BE_CAUSAL: bool = true;

    fn spec(self) -> Result<Spec, String> {
        let mut decoder = self.keys.decoder()?;
        if let Some(window) = self.sliding_window {
            decoder.slide(window, |_| true)?;
        }
        decoder.spec()
    }
}
