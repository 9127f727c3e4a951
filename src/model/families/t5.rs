//! The encoder of T5 (arXiv:1910.10683): pre-norm, RMSNorm, no biases, a relative bias that all layers share, scores
//! that are not scaled.

use super::{Family, activation, rms_norm, table};
use crate::model::spec::{Attention, Embedding, FeedForward, Gate, Layer, Mlp, Norms, Positions, Projection, Spec};
use serde::Deserialize;

#[derive(Deserialize)]
pub struct Config {
    d_model: usize,
    d_kv: usize,
    d_ff: usize,
    num_layers: usize,
    num_heads: usize,
    vocab_size: usize,
    relative_attention_num_buckets: usize,
    #[serde(default = "relative_attention_max_distance")]
    relative_attention_max_distance: usize,
    layer_norm_epsilon: f64,
    #[serde(default = "feed_forward_proj")]
    feed_forward_proj: String,
    dense_act_fn: Option<String>,
    is_gated_act: Option<bool>,
}

/// transformers' defaults.
fn feed_forward_proj() -> String {
    "relu".into()
}
fn relative_attention_max_distance() -> usize {
    128
}

/// The architecture has no limit; the table of biases needs one.
const TOKENS_MAX: usize = 32_768;

impl Family for Config {
    fn spec(self) -> Result<Spec, String> {
        Ok(Spec {
            hidden: self.d_model,
            tokens_max: TOKENS_MAX,
            embedding: Embedding {
                // Where a file holds both, transformers runs the encoder's own.
                word_tied: Some("shared".into()),
                ..Embedding::of_words(table("embed_tokens", self.vocab_size), self.d_model)
            },
            layers: (0..self.num_layers).map(|index| self.layer(index)).collect::<Result<_, _>>()?,
            final_norm: Some(rms_norm("final_layer_norm", self.layer_norm_epsilon)),
            nested_as: "encoder",
            idle: ["shared", "decoder", "lm_head", "qa_outputs", "classification_head"].map(String::from).into(),
            tasks: None,
        })
    }
}

impl Config {
    /// The gate and the activation's name: `gated-gelu` means the tanh approximation, and keys of their own, which newer
    /// files have, come first.
    fn activation(&self) -> (Gate, &str) {
        let (gated, name) = match self.feed_forward_proj.as_str() {
            "gated-gelu" => (true, "gelu_new"),
            other => other.strip_prefix("gated-").map_or((false, other), |name| (true, name)),
        };
        let gate = if self.is_gated_act.unwrap_or(gated) { Gate::First } else { Gate::Absent };
        (gate, self.dense_act_fn.as_deref().unwrap_or(name))
    }

    fn layer(&self, index: usize) -> Result<Layer, String> {
        let (hidden, width) = (self.d_model, self.num_heads * self.d_kv);
        let at = |module: &str| format!("block.{index}.layer.{module}");
        let stacked = |columns: usize, modules: &[&str], rows: usize| {
            Projection::new(columns, false, modules.iter().map(|module| (at(module), rows)))
        };
        let pre = |module: &str| Norms::pre(rms_norm(at(module), self.layer_norm_epsilon));
        let attention = ["0.SelfAttention.q", "0.SelfAttention.k", "0.SelfAttention.v"];
        let (gate, name) = self.activation();
        let ups: &[&str] = match gate {
            Gate::Absent => &["1.DenseReluDense.wi"],
            _ => &["1.DenseReluDense.wi_0", "1.DenseReluDense.wi_1"],
        };
        Ok(Layer {
            attention_norms: pre("0.layer_norm"),
            attention: Attention {
                heads: self.num_heads,
                kv_heads: self.num_heads,
                head_width: self.d_kv,
                qkv: stacked(hidden, &attention, width),
                by_head: false,
                qv_biases: None,
                output: stacked(width, &["0.SelfAttention.o"], hidden),
                qk_norms: None,
                scale: 1.0,
                causal: false,
                window: None,
                positions: Positions::RelativeBias {
                    table: table(
                        "block.0.layer.0.SelfAttention.relative_attention_bias",
                        self.relative_attention_num_buckets,
                    ),
                    distance_max: self.relative_attention_max_distance,
                },
            },
            mlp_norms: pre("1.layer_norm"),
            mlp: FeedForward::Dense(Mlp {
                up: stacked(hidden, ups, self.d_ff),
                activation: activation("feed_forward_proj", name)?,
                gate,
                down: stacked(self.d_ff, &["1.DenseReluDense.wo"], hidden),
            }),
            convolution: None,
            known_as: None,
        })
    }
}
