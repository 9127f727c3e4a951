//! Qwen3 (arXiv:2505.09388): pre-norm decoder with rotary positions, grouped keys, normed queries and keys, gated MLP.

use super::{Family, activation, rms_norm, table};
use crate::model::spec::{Attention, Embedding, Layer, Mlp, Norms, Positions, Projection, Spec};
use serde::Deserialize;

#[derive(Deserialize)]
pub struct Config {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    intermediate_size: usize,
    hidden_act: String,
    max_position_embeddings: usize,
    vocab_size: usize,
    rms_norm_eps: f64,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(default)]
    layer_types: Vec<String>,
    rope_theta: Option<f64>,
    rope_parameters: Option<Rope>,
    rope_scaling: Option<Rope>,
    is_causal: Option<bool>,
}

/// Either spelling of the rotary settings, before and after transformers 5.
#[derive(Clone, Deserialize)]
struct Rope {
    rope_theta: Option<f64>,
    #[serde(alias = "type")]
    rope_type: Option<String>,
}

impl Family for Config {
    fn spec(self) -> Result<Spec, String> {
        if self.use_sliding_window || self.layer_types.iter().any(|kind| kind != "full_attention") {
            return Err("sliding-window attention is not supported".into());
        }
        let theta = self.theta()?;
        Ok(Spec {
            hidden: self.hidden_size,
            tokens_max: self.max_position_embeddings,
            embedding: Embedding {
                word: table("embed_tokens", self.vocab_size),
                position: None,
                token_type: None,
                norm: None,
            },
            layers: (0..self.num_hidden_layers).map(|i| self.layer(i, theta)).collect::<Result<_, _>>()?,
            final_norm: Some(rms_norm("norm", self.rms_norm_eps)),
            nested_as: "model",
            idle: vec!["lm_head".into()],
        })
    }
}

impl Config {
    fn theta(&self) -> Result<f64, String> {
        let nested = [&self.rope_parameters, &self.rope_scaling];
        for rope in nested.into_iter().flatten() {
            match rope.rope_type.as_deref() {
                None | Some("default") => {}
                Some(other) => return Err(format!("rope_type '{other}' is not supported")),
            }
        }
        let nested = nested.into_iter().flatten().find_map(|rope| rope.rope_theta);
        nested.or(self.rope_theta).ok_or_else(|| "rope_theta is missing".into())
    }

    fn layer(&self, index: usize, theta: f64) -> Result<Layer, String> {
        let (hidden, inner, bias) = (self.hidden_size, self.intermediate_size, self.attention_bias);
        let at = |module: &str| format!("layers.{index}.{module}");
        let (q_width, kv_width) = (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        let qkv = [("q_proj", q_width), ("k_proj", kv_width), ("v_proj", kv_width)];
        let qkv = qkv.map(|(part, rows)| (at(&format!("self_attn.{part}")), rows));
        let qk_norm = |part: &str| rms_norm(at(&format!("self_attn.{part}")), self.rms_norm_eps);
        Ok(Layer {
            norms: Norms::Pre {
                attention: rms_norm(at("input_layernorm"), self.rms_norm_eps),
                mlp: rms_norm(at("post_attention_layernorm"), self.rms_norm_eps),
            },
            attention: Attention {
                heads: self.num_attention_heads,
                kv_heads: self.num_key_value_heads,
                head_width: self.head_dim,
                qkv: Projection::new(hidden, bias, qkv),
                output: Projection::new(q_width, bias, [(at("self_attn.o_proj"), hidden)]),
                qk_norms: Some((qk_norm("q_norm"), qk_norm("k_norm"))),
                causal: self.is_causal.unwrap_or(true),
                positions: Positions::Rotary { theta },
            },
            mlp: Mlp {
                up: Projection::new(hidden, false, [(at("mlp.gate_proj"), inner), (at("mlp.up_proj"), inner)]),
                activation: activation("hidden_act", &self.hidden_act)?,
                gated: true,
                down: Projection::new(inner, false, [(at("mlp.down_proj"), hidden)]),
            },
        })
    }
}
