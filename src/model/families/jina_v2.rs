//! JinaBERT (arXiv:2310.19923): BERT with ALiBi and a gated MLP; the variant for code norms queries
//! and keys as well, and adds each residual of attention twice.

use super::post_norm::{Biases, Names, PostNorm};
use super::{Family, bert, layer_norm};
use crate::model::spec::{Activation, Gate, Positions, QkNorms, Spec};
use serde::Deserialize;

#[derive(Deserialize)]
pub struct Config {
    #[serde(flatten)]
    body: bert::Config,
    feed_forward_type: String,
}

#[derive(Deserialize)]
#[serde(transparent)]
pub struct Code(Config);

const NAMES: Names = Names { up: &["mlp.gated_layers"], down: "mlp.wo", mlp_norm: "mlp.layernorm", ..bert::NAMES };

const CODE_NAMES: Names = Names {
    attention_norm: "layer_norm_1",
    up: &["mlp.up_gated_layer"],
    down: "mlp.down_layer",
    mlp_norm: "layer_norm_2",
    ..bert::NAMES
};

impl Family for Config {
    const IS_REMOTE: bool = true;

    fn spec(self) -> Result<Spec, String> {
        self.body(NAMES, Gate::First)
    }
}

impl Family for Code {
    const IS_REMOTE: bool = true;

    fn spec(self) -> Result<Spec, String> {
        let eps = self.0.body.layer_norm_eps.unwrap_or(bert::EPS);
        let mut spec = self.0.body(CODE_NAMES, Gate::Second)?;
        for (index, layer) in spec.layers.iter_mut().enumerate() {
            let norm = |name: &str| layer_norm(format!("encoder.layer.{index}.attention.self.{name}"), eps);
            let (q, k) = (norm("layer_norm_q"), norm("layer_norm_k"));
            let own = layer_norm(format!("encoder.layer.{index}.{}", bert::NAMES.attention_norm), eps);
            (layer.attention_norms.after, layer.attention_norms.after_sum) = (Some(own), true);
            layer.attention.qk_norms = Some(QkNorms { q, k, all_heads: true });
        }
        Ok(spec)
    }
}

impl Config {
    fn body(self, names: Names, gate: Gate) -> Result<Spec, String> {
        let mut sizes = self.body.sizes(bert::EPS)?;
        sizes.activation = match self.feed_forward_type.as_str() {
            "geglu" => Activation::Gelu,
            "reglu" => Activation::Relu,
            other => return Err(format!("feed_forward_type '{other}' is not supported")),
        };
        Ok(PostNorm {
            sizes,
            names,
            also: &[],
            biases: Biases { up: false, ..Biases::all(true) },
            gate,
            tokens_max: self.body.max_position_embeddings,
            position_table: None,
            token_types: self.body.type_vocab_size,
            attention_positions: Positions::Alibi,
            nested_as: "bert",
            idle: &bert::IDLE,
        }
        .spec())
    }
}
