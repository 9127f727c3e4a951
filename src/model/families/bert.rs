//! BERT (arXiv:1810.04805): post-norm encoder with learned positions. RoBERTa and its kin reuse the body.

use super::{Family, activation, layer_norm, table};
use crate::model::spec::{Attention, Embedding, Layer, Mlp, Norms, PositionTable, Positions, Projection, Spec};
use serde::Deserialize;

#[derive(Deserialize)]
pub struct Config {
    pub hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    hidden_act: String,
    pub max_position_embeddings: usize,
    type_vocab_size: usize,
    vocab_size: usize,
    #[serde(default = "layer_norm_eps")]
    layer_norm_eps: f64,
    #[serde(default)]
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
}

/// transformers' default.
fn layer_norm_eps() -> f64 {
    1e-12
}

impl Family for Config {
    fn spec(self) -> Result<Spec, String> {
        self.spec_at("bert", 0)
    }
}

impl Config {
    /// The spec of a body nested as `nested_as` whose first position is row `first` of its table.
    pub fn spec_at(self, nested_as: &'static str, first: usize) -> Result<Spec, String> {
        match self.position_embedding_type.as_deref() {
            None | Some("absolute") => {}
            Some(other) => return Err(format!("position_embedding_type '{other}' is not supported")),
        }
        if self.is_decoder {
            return Err("is_decoder = true is not supported".into());
        }
        if self.max_position_embeddings <= first {
            return Err(format!("max_position_embeddings must be more than {first}"));
        }
        let positions = table("embeddings.position_embeddings", self.max_position_embeddings);
        Ok(Spec {
            hidden: self.hidden_size,
            tokens_max: self.max_position_embeddings - first,
            embedding: Embedding {
                word: table("embeddings.word_embeddings", self.vocab_size),
                position: Some(PositionTable { table: positions, first }),
                token_type: Some(table("embeddings.token_type_embeddings", self.type_vocab_size)),
                norm: Some(layer_norm("embeddings.LayerNorm", self.layer_norm_eps)),
            },
            layers: (0..self.num_hidden_layers).map(|i| self.layer(i)).collect::<Result<_, _>>()?,
            final_norm: None,
            nested_as,
            idle: ["pooler", "embeddings.position_ids", "cls", "lm_head", "classifier"].map(String::from).into(),
        })
    }

    fn layer(&self, index: usize) -> Result<Layer, String> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let at = |module: &str| format!("encoder.layer.{index}.{module}");
        let qkv = ["query", "key", "value"].map(|part| (at(&format!("attention.self.{part}")), hidden));
        Ok(Layer {
            norms: Norms::Post {
                attention: layer_norm(at("attention.output.LayerNorm"), self.layer_norm_eps),
                mlp: layer_norm(at("output.LayerNorm"), self.layer_norm_eps),
            },
            attention: Attention {
                heads: self.num_attention_heads,
                kv_heads: self.num_attention_heads,
                head_width: hidden / self.num_attention_heads,
                qkv: Projection::new(hidden, true, qkv),
                output: Projection::new(hidden, true, [(at("attention.output.dense"), hidden)]),
                qk_norms: None,
                causal: false,
                positions: Positions::Absent,
            },
            mlp: Mlp {
                up: Projection::new(hidden, true, [(at("intermediate.dense"), inner)]),
                activation: activation("hidden_act", &self.hidden_act)?,
                gated: false,
                down: Projection::new(inner, true, [(at("output.dense"), hidden)]),
            },
        })
    }
}
