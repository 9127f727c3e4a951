//! The rotary settings of config.json, in the spellings before and after transformers 5.

use crate::model::spec::{Rotary, RotaryScaling};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// The keys of a model with one kind of layers.
#[derive(Deserialize)]
pub struct Keys {
    /// Whether `ntk` is known: only GTE's own code has it.
    #[serde(skip)]
    pub ntk: bool,
    rope_theta: Option<f64>,
    #[serde(default, deserialize_with = "filled")]
    rope_parameters: Option<Rope>,
    #[serde(default, deserialize_with = "filled")]
    rope_scaling: Option<Rope>,
    original_max_position_embeddings: Option<f64>,
}

/// One kind of layers' settings.
#[derive(Clone, Default, Deserialize)]
pub struct Rope {
    pub rope_theta: Option<f64>,
    pub rope_type: Option<String>,
    /// The same before transformers 4.43; newer files may have both.
    #[serde(rename = "type")]
    kind: Option<String>,
    /// There where config.json has settings by kind of layer and the architecture has one kind.
    full_attention: Option<Value>,
    sliding_attention: Option<Value>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    attention_factor: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    mixed_b: Option<f64>,
    partial_rotary_factor: Option<f64>,
    truncate: Option<bool>,
    original_max_position_embeddings: Option<f64>,
}

/// Settings, none where they are null or empty.
pub fn filled<'de, D: Deserializer<'de>, T: serde::de::DeserializeOwned>(from: D) -> Result<Option<T>, D::Error> {
    match Value::deserialize(from)? {
        Value::Null => Ok(None),
        Value::Object(keys) if keys.is_empty() => Ok(None),
        settings => serde_json::from_value(settings).map(Some).map_err(serde::de::Error::custom),
    }
}

/// transformers' default for most architectures.
pub const THETA: f64 = 10_000.0;

impl Keys {
    /// What they mean for a model of so many positions whose base is `theta` where they name none.
    pub fn rotary(&self, theta: f64, positions: usize) -> Result<Rotary, String> {
        let mut rope = match (&self.rope_parameters, &self.rope_scaling) {
            (Some(parameters), None) => parameters.clone(),
            (None, Some(scaling)) => scaling.clone(),
            (None, None) => Rope::default(),
            // transformers would then forget rope_parameters, with its rope_theta.
            (Some(_), Some(_)) => return Err("rope_scaling beside rope_parameters is not supported; give one".into()),
        };
        rope.original_max_position_embeddings =
            self.original_max_position_embeddings.or(rope.original_max_position_embeddings);
        let rotary = rope.rotary(self.rope_theta.unwrap_or(theta), positions)?;
        match rotary.scaling {
            RotaryScaling::Ntk { .. } if !self.ntk => Err("rope_type 'ntk' is not supported".into()),
            _ => Ok(rotary),
        }
    }
}

impl Rope {
    /// What they mean for a model of so many positions whose base is `theta` where they name none.
    pub fn rotary(&self, theta: f64, positions: usize) -> Result<Rotary, String> {
        if self.partial_rotary_factor.is_some_and(|share| share != 1.0) {
            return Err("partial_rotary_factor other than 1 is not supported".into());
        }
        if self.full_attention.is_some() || self.sliding_attention.is_some() {
            return Err("rope_parameters by kind of layer are not supported here".into());
        }
        if self.mixed_b.is_some() {
            return Err("mixed_b is not supported".into());
        }
        let theta = self.rope_theta.unwrap_or(theta);
        if theta <= 1.0 {
            return Err(format!("rope_theta {theta} must be more than 1"));
        }
        let needed = |key: &str, value: Option<f64>| match value {
            Some(value) if value > 0.0 => Ok(value),
            _ => Err(format!("the rotary settings lack a positive {key}")),
        };
        let trained = self.original_max_position_embeddings.unwrap_or(positions as f64);
        let scaling = match self.rope_type.as_deref().or(self.kind.as_deref()) {
            None | Some("default") => RotaryScaling::Default,
            Some("linear") => RotaryScaling::Linear { factor: needed("factor", self.factor)? },
            Some("ntk") => RotaryScaling::Ntk { factor: needed("factor", self.factor)? },
            Some("llama3") => RotaryScaling::Llama3 {
                factor: needed("factor", self.factor)?,
                low_freq_factor: needed("low_freq_factor", self.low_freq_factor)?,
                high_freq_factor: needed("high_freq_factor", self.high_freq_factor)?,
                trained,
            },
            Some("yarn") => self.yarn(positions as f64 / trained, trained),
            Some(other) => return Err(format!("rope_type '{other}' is not supported")),
        };
        Ok(Rotary { theta, scaling })
    }

    fn yarn(&self, stretch: f64, trained: f64) -> RotaryScaling {
        let factor = self.factor.unwrap_or(stretch);
        let sharpened = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
        let given = |value: Option<f64>| value.filter(|value| *value != 0.0);
        let attention_factor = self.attention_factor.unwrap_or_else(|| match (self.mscale, self.mscale_all_dim) {
            (Some(mscale), Some(all)) if mscale != 0.0 && all != 0.0 => sharpened(mscale) / sharpened(all),
            _ => sharpened(1.0),
        });
        RotaryScaling::Yarn {
            factor,
            beta_fast: given(self.beta_fast).unwrap_or(32.0),
            beta_slow: given(self.beta_slow).unwrap_or(1.0),
            trained,
            attention_factor,
            truncate: self.truncate.unwrap_or(true),
        }
    }
}
