//! NomicBERT (arXiv:2402.01613): BERT with rotary positions and a gated MLP, or with a mixture of experts in every
//! other layer (arXiv:2502.07972). [`Native`] is its form in transformers 5, [`Remote`] the one of the authors' own code.

use super::post_norm::{Biases, Names, PostNorm, Sizes};
use super::rotary_bert::{self, Variant};
use super::{Family, bert, require};
use crate::model::spec::{Activation, Experts, FeedForward, Gate, Positions, Projection, Rotary, Spec};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
#[serde(transparent)]
pub struct Native(rotary_bert::Keys);

#[derive(Deserialize)]
pub struct Remote {
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    n_inner: Option<usize>,
    n_positions: usize,
    vocab_size: usize,
    type_vocab_size: usize,
    activation_function: String,
    layer_norm_epsilon: f64,
    rotary_emb_base: f64,
    #[serde(default = "bias")]
    qkv_proj_bias: bool,
    #[serde(default = "bias")]
    mlp_fc1_bias: bool,
    #[serde(default = "bias")]
    mlp_fc2_bias: bool,
    #[serde(default = "pad_vocab_size_multiple")]
    pad_vocab_size_multiple: usize,
    #[serde(default)]
    moe_every_n_layers: usize,
    #[serde(default)]
    num_experts: usize,
    #[serde(default)]
    moe_top_k: usize,
    #[serde(flatten)]
    rest: serde_json::Map<String, Value>,
}

/// The authors' defaults.
fn bias() -> bool {
    true
}
fn pad_vocab_size_multiple() -> usize {
    1
}

/// The authors'; `fc12` is what gates `fc11`.
const REMOTE_NAMES: Names = Names {
    embedding_norm: "emb_ln",
    layers: "encoder.layers",
    qkv: &["attn.Wqkv"],
    attention_output: "attn.out_proj",
    attention_norm: "norm1",
    up: &["mlp.fc12", "mlp.fc11"],
    down: "mlp.fc2",
    mlp_norm: "norm2",
};

/// transformers' default.
const THETA: f64 = 1000.0;

impl Family for Native {
    fn spec(self) -> Result<Spec, String> {
        let (names, biases) = (rotary_bert::NAMES, Biases::all(false));
        let also = &[REMOTE_NAMES, rotary_bert::FUSED_NAMES];
        self.0.spec(Variant {
            names,
            also,
            biases,
            gate: Gate::First,
            theta: THETA,
            eps: bert::EPS,
            nested_as: "nomic_bert",
        })
    }
}

/// Values of [`Remote`]'s other keys, as all published models have them.
const FIXED: [(&str, Value); 10] = [
    ("prenorm", Value::Bool(false)),
    ("use_rms_norm", Value::Bool(false)),
    ("causal", Value::Bool(false)),
    ("parallel_block", Value::Bool(false)),
    ("rotary_emb_interleaved", Value::Bool(false)),
    ("rotary_emb_scale_base", Value::Null),
    ("rotary_scaling_factor", Value::Null),
    ("scale_attn_by_inverse_layer_idx", Value::Bool(false)),
    ("expert_choice_router", Value::Bool(false)),
    ("moe_normalize_expert_weights", Value::Bool(false)),
];

impl Family for Remote {
    const IS_REMOTE: bool = true;

    fn spec(self) -> Result<Spec, String> {
        require(&self.rest, &FIXED)?;
        let numbers = [("rotary_emb_fraction", 1.0), ("num_shared_experts", 0.0), ("ffn_div", 1.0)];
        for (key, expected) in numbers {
            if self.rest.get(key).and_then(Value::as_f64).is_some_and(|value| value != expected) {
                return Err(format!("{key} other than {expected} is not supported"));
            }
        }
        let (hidden, every) = (self.n_embd, self.moe_every_n_layers);
        let (gate, activation) = match self.activation_function.as_str() {
            "swiglu" => (Gate::First, Activation::Silu),
            "geglu" => (Gate::First, Activation::Gelu),
            "gelu" => (Gate::Absent, Activation::Gelu),
            other => return Err(format!("activation_function '{other}' is not supported")),
        };
        let gated = gate != Gate::Absent;
        let inner = self.n_inner.unwrap_or(4 * hidden);
        let body = PostNorm {
            sizes: Sizes {
                hidden,
                layers: self.n_layer,
                heads: self.n_head,
                // The authors' gated MLP is widened to a multiple of 256.
                inner: if gated { inner.next_multiple_of(256) } else { inner },
                vocabulary: self.vocab_size.next_multiple_of(self.pad_vocab_size_multiple.max(1)),
                activation,
                eps: self.layer_norm_epsilon,
            },
            names: if gated { REMOTE_NAMES } else { Names { up: &["mlp.fc1"], ..REMOTE_NAMES } },
            also: if gated { &[rotary_bert::NAMES, rotary_bert::FUSED_NAMES] } else { &[] },
            biases: Biases {
                qkv: self.qkv_proj_bias,
                attention_output: self.qkv_proj_bias,
                up: self.mlp_fc1_bias,
                down: self.mlp_fc2_bias,
            },
            gate,
            tokens_max: self.n_positions,
            position_table: None,
            token_types: self.type_vocab_size,
            attention_positions: Positions::Rotary(Rotary::new(self.rotary_emb_base)),
            nested_as: "bert",
            idle: &bert::IDLE,
        };
        let mut spec = body.spec();
        for (index, layer) in spec.layers.iter_mut().enumerate().filter(|(index, _)| every > 0 && index % every == 1) {
            let at = |module: &str| format!("{}.{index}.mlp.{module}", REMOTE_NAMES.layers);
            layer.mlp = FeedForward::Experts(Experts {
                router: Projection::new(hidden, false, [(at("router.layer"), self.num_experts)]),
                active: self.moe_top_k,
                up: at("experts.mlp.w1"),
                down: at("experts.mlp.w2"),
                bias: at("experts.bias"),
                inner,
                activation,
            });
        }
        Ok(spec)
    }
}
