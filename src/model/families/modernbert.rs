//! ModernBERT (arXiv:2412.13663): pre-norm encoder with fused projections, layers that see all between layers that see
//! a window, and rotary positions of a base each.

use super::rope::{self, Rope};
use super::{Family, activation, layer_norm, sliding, table};
use crate::model::spec::{
    Attention, Embedding, FeedForward, Gate, Layer, Mlp, Norm, Norms, Positions, Projection, Rotary, Spec,
};
use serde::Deserialize;

#[derive(Deserialize)]
pub struct Config {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    hidden_activation: String,
    max_position_embeddings: usize,
    vocab_size: usize,
    norm_eps: f64,
    #[serde(default)]
    norm_bias: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    local_attention: usize,
    layer_types: Option<Vec<String>>,
    #[serde(default = "global_attn_every_n_layers")]
    global_attn_every_n_layers: usize,
    global_rope_theta: Option<f64>,
    local_rope_theta: Option<f64>,
    #[serde(default)]
    rope_parameters: RopeByLayer,
    #[serde(default, deserialize_with = "rope::filled")]
    rope_scaling: Option<Rope>,
}

/// Since transformers 5.
#[derive(Default, Deserialize)]
struct RopeByLayer {
    #[serde(default)]
    full_attention: Rope,
    #[serde(default)]
    sliding_attention: Rope,
}

/// transformers' defaults.
fn global_attn_every_n_layers() -> usize {
    3
}
const GLOBAL_THETA: f64 = 160_000.0;

impl Family for Config {
    fn spec(self) -> Result<Spec, String> {
        if self.rope_scaling.is_some() {
            return Err("rope_scaling is not supported here".into());
        }
        let (rope, positions) = (&self.rope_parameters, self.max_position_embeddings);
        let global = rope.full_attention.rotary(self.global_rope_theta.unwrap_or(GLOBAL_THETA), positions)?;
        let local = rope.sliding_attention.rotary(self.local_rope_theta.unwrap_or(rope::THETA), positions)?;
        let every = self.global_attn_every_n_layers.max(1);
        let slides = |index: usize| !index.is_multiple_of(every);
        let slides = sliding(self.layer_types.as_ref(), self.num_hidden_layers, slides)?;
        let layer = |index: usize| {
            let (rotary, window) =
                if slides[index] { (&local, Some(self.local_attention / 2)) } else { (&global, None) };
            self.layer(index, rotary.clone(), window)
        };
        Ok(Spec {
            hidden: self.hidden_size,
            tokens_max: positions,
            embedding: Embedding {
                norm: Some(self.norm("embeddings.norm")),
                ..Embedding::of_words(table("embeddings.tok_embeddings", self.vocab_size), self.hidden_size)
            },
            layers: (0..self.num_hidden_layers).map(layer).collect::<Result<_, _>>()?,
            final_norm: Some(self.norm("final_norm")),
            nested_as: "model",
            idle: ["head", "decoder", "classifier", "qa_outputs"].map(String::from).into(),
            tasks: None,
        })
    }
}

impl Config {
    fn norm(&self, path: impl Into<String>) -> Norm {
        Norm { bias: self.norm_bias, ..layer_norm(path, self.norm_eps) }
    }

    fn layer(&self, index: usize, rotary: Rotary, window: Option<usize>) -> Result<Layer, String> {
        let (hidden, heads, inner) = (self.hidden_size, self.num_attention_heads, self.intermediate_size);
        let at = |module: &str| format!("layers.{index}.{module}");
        let one = |columns: usize, bias: bool, module: &str, rows: usize| {
            Projection::new(columns, bias, [(at(module), rows)])
        };
        let head_width = hidden.checked_div(heads).unwrap_or_default();
        Ok(Layer {
            // The first layer follows the embedding's norm.
            attention_norms: Norms { before: (index > 0).then(|| self.norm(at("attn_norm"))), ..Norms::default() },
            attention: Attention {
                heads,
                kv_heads: heads,
                head_width,
                qkv: one(hidden, self.attention_bias, "attn.Wqkv", 3 * hidden)
                    .also(["q_proj", "k_proj", "v_proj"].map(|part| (at(&format!("attn.{part}")), hidden))),
                by_head: false,
                qv_biases: None,
                output: one(hidden, self.attention_bias, "attn.Wo", hidden),
                qk_norms: None,
                scale: (head_width as f64).sqrt().recip(),
                causal: false,
                window,
                positions: Positions::Rotary(rotary),
            },
            mlp_norms: Norms::pre(self.norm(at("mlp_norm"))),
            mlp: FeedForward::Dense(Mlp {
                // As elsewhere, the gate is the half that goes through the activation.
                up: one(hidden, self.mlp_bias, "mlp.Wi", 2 * inner)
                    .also(["gate_proj", "up_proj"].map(|part| (at(&format!("mlp.{part}")), inner))),
                activation: activation("hidden_activation", &self.hidden_activation)?,
                gate: Gate::First,
                down: one(inner, self.mlp_bias, "mlp.Wo", hidden),
            }),
            convolution: None,
            known_as: None,
        })
    }
}
