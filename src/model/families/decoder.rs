//! What Llama (arXiv:2302.13971) and its heirs share: pre-norm blocks with RMSNorm, rotary positions, grouped keys and
//! a gated MLP, causal or not.

use super::rope;
use super::{activation, rms_norm, table};
use crate::model::spec::{
    Activation, Attention, Embedding, FeedForward, Gate, Layer, Mlp, Norm, Norms, Positions, Projection, QkNorms,
    Rotary, Spec,
};
use serde::Deserialize;

/// The keys of config.json that they share.
#[derive(Deserialize)]
pub struct Keys {
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: usize,
    #[serde(default = "hidden_act")]
    hidden_act: String,
    pub max_position_embeddings: usize,
    vocab_size: usize,
    rms_norm_eps: f64,
    pub is_causal: Option<bool>,
    pub layer_types: Option<Vec<String>>,
    #[serde(flatten)]
    pub rope: rope::Keys,
}

/// transformers' default.
fn hidden_act() -> String {
    "silu".into()
}

/// transformers' default of `sliding_window`; null in config.json means that nothing slides.
pub fn sliding_window() -> Option<usize> {
    Some(4096)
}

/// Those of transformers' classes for other tasks.
const HEADS: [&str; 5] = ["lm_head", "score", "classifier", "dense", "qa_outputs"];

/// Everything in which they differ.
pub struct Decoder {
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_width: usize,
    pub inner: usize,
    pub vocabulary: usize,
    pub tokens_max: usize,
    pub activation: Activation,
    pub eps: f64,
    /// As `is_causal` says, which transformers heeds in all of them; true where it says nothing.
    pub causal: bool,
    /// Factor on every score.
    pub scale: f64,
    pub qkv_bias: bool,
    pub output_bias: bool,
    pub mlp_bias: bool,
    /// Whether queries and keys are normed.
    pub qk_norms: bool,
    /// Whether norms stand also behind each step, and all hold their weight less 1 (Gemma).
    pub sandwich: bool,
    /// Factor on the word rows.
    pub embedding_scale: Option<f64>,
    /// How each layer sees.
    pub layers: Vec<Sight>,
}

/// What a layer's tokens see of each other.
#[derive(Clone)]
pub struct Sight {
    pub rotary: Rotary,
    /// See [`Attention::window`].
    pub window: Option<usize>,
}

impl Keys {
    /// A plain heir, without biases; every layer sees all.
    pub fn decoder(&self) -> Result<Decoder, String> {
        let head_width = self.head_dim.or(self.hidden_size.checked_div(self.num_attention_heads)).unwrap_or_default();
        let rotary = self.rope.rotary(rope::THETA, self.max_position_embeddings)?;
        Ok(Decoder {
            hidden: self.hidden_size,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
            head_width,
            inner: self.intermediate_size,
            vocabulary: self.vocab_size,
            tokens_max: self.max_position_embeddings,
            activation: activation("hidden_act", &self.hidden_act)?,
            eps: self.rms_norm_eps,
            causal: self.is_causal.unwrap_or(true),
            scale: (head_width as f64).sqrt().recip(),
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            qk_norms: false,
            sandwich: false,
            embedding_scale: None,
            layers: vec![Sight { rotary, window: None }; self.num_hidden_layers],
        })
    }
}

impl Decoder {
    /// Limits the layers for which `slides` holds to `tokens`: a causal one to so many with itself, another to so many
    /// on either side, as transformers' masks have it.
    pub fn slide(&mut self, tokens: usize, slides: impl Fn(usize) -> bool) -> Result<(), String> {
        if tokens == 0 {
            return Err("sliding_window must not be 0".into());
        }
        let window = if self.causal { tokens - 1 } else { tokens };
        let sliding = self.layers.iter_mut().enumerate().filter(|(index, _)| slides(*index));
        sliding.for_each(|(_, layer)| layer.window = Some(window));
        Ok(())
    }

    /// The whole body.
    pub fn spec(self) -> Result<Spec, String> {
        let embedding = Embedding {
            scale: self.embedding_scale,
            ..Embedding::of_words(table("embed_tokens", self.vocabulary), self.hidden)
        };
        Ok(Spec {
            hidden: self.hidden,
            tokens_max: self.tokens_max,
            embedding,
            layers: self.layers.iter().enumerate().map(|(index, sight)| self.layer(index, sight)).collect(),
            final_norm: Some(self.norm("norm")),
            nested_as: "model",
            idle: HEADS.map(String::from).into(),
            tasks: None,
        })
    }

    fn norm(&self, path: impl Into<String>) -> Norm {
        Norm { less_one: self.sandwich, ..rms_norm(path, self.eps) }
    }

    fn layer(&self, index: usize, sight: &Sight) -> Layer {
        let (hidden, inner) = (self.hidden, self.inner);
        let at = |module: &str| format!("layers.{index}.{module}");
        let norm = |module: &str| Some(self.norm(at(module)));
        let (attention_norms, mlp_norms) = if self.sandwich {
            let around = |before, after| Norms { before: norm(before), after: norm(after), ..Norms::default() };
            let mlp = around("pre_feedforward_layernorm", "post_feedforward_layernorm");
            (around("input_layernorm", "post_attention_layernorm"), mlp)
        } else {
            let pre = |module: &str| Norms::pre(self.norm(at(module)));
            (pre("input_layernorm"), pre("post_attention_layernorm"))
        };
        let (q_width, kv_width) = (self.heads * self.head_width, self.kv_heads * self.head_width);
        let qkv = [("q_proj", q_width), ("k_proj", kv_width), ("v_proj", kv_width)];
        let qkv = qkv.map(|(part, rows)| (at(&format!("self_attn.{part}")), rows));
        let qk_norms =
            || QkNorms { q: self.norm(at("self_attn.q_norm")), k: self.norm(at("self_attn.k_norm")), all_heads: false };
        let up = [(at("mlp.gate_proj"), inner), (at("mlp.up_proj"), inner)];
        Layer {
            attention_norms,
            attention: Attention {
                heads: self.heads,
                kv_heads: self.kv_heads,
                head_width: self.head_width,
                qkv: Projection::new(hidden, self.qkv_bias, qkv)
                    .also([(at("self_attn.qkv_proj"), q_width + 2 * kv_width)]),
                by_head: false,
                qv_biases: None,
                output: Projection::new(q_width, self.output_bias, [(at("self_attn.o_proj"), hidden)]),
                qk_norms: self.qk_norms.then(qk_norms),
                scale: self.scale,
                causal: self.causal,
                window: sight.window,
                positions: Positions::Rotary(sight.rotary.clone()),
            },
            mlp_norms,
            mlp: FeedForward::Dense(Mlp {
                up: Projection::new(hidden, self.mlp_bias, up).also([(at("mlp.gate_up_proj"), 2 * inner)]),
                activation: self.activation,
                gate: Gate::First,
                down: Projection::new(inner, self.mlp_bias, [(at("mlp.down_proj"), hidden)]),
            }),
            convolution: None,
            known_as: None,
        }
    }
}
