//! DeBERTa (arXiv:2006.03654) and its versions 2 and 3 (arXiv:2111.09543): BERT with disentangled attention.

use super::post_norm::{Names, PostNorm};
use super::{Family, activation, bert, layer_norm, table};
use crate::model::spec::{Convolution, Disentangled, PositionProjection, Positions, Projection, Spec};
use serde::Deserialize;

/// The keys of both versions.
#[derive(Deserialize)]
struct Keys {
    #[serde(flatten)]
    body: bert::Config,
    #[serde(default)]
    relative_attention: bool,
    #[serde(default)]
    max_relative_positions: i64,
    #[serde(default)]
    pos_att_type: Option<Directions>,
    #[serde(default = "position_biased_input")]
    position_biased_input: bool,
    embedding_size: Option<usize>,
}

/// transformers' default.
fn position_biased_input() -> bool {
    true
}

/// `"c2p|p2c"`, or a list.
#[derive(Deserialize)]
#[serde(untagged)]
enum Directions {
    One(String),
    List(Vec<String>),
}

#[derive(Deserialize)]
pub struct Deberta {
    #[serde(flatten)]
    keys: Keys,
    #[serde(default)]
    talking_head: bool,
}

#[derive(Deserialize)]
pub struct DebertaV2 {
    #[serde(flatten)]
    keys: Keys,
    #[serde(default)]
    share_att_key: bool,
    #[serde(default)]
    position_buckets: i64,
    norm_rel_ebd: Option<String>,
    #[serde(default)]
    conv_kernel_size: usize,
    conv_groups: Option<usize>,
    conv_act: Option<String>,
}

/// transformers' default.
const EPS: f64 = 1e-7;

const IDLE: [&str; 6] = ["pooler", "cls", "lm_predictions", "mask_predictions", "classifier", "qa_outputs"];

impl Keys {
    /// Whether queries attend to positions of keys, and keys to those of queries.
    fn directions(&self) -> (bool, bool) {
        let has = |name: &str| match &self.pos_att_type {
            None => false,
            Some(Directions::One(all)) => all.to_lowercase().split('|').any(|one| one.trim() == name),
            Some(Directions::List(all)) => all.iter().any(|one| one == name),
        };
        (has("c2p"), has("p2c"))
    }

    /// How many directions the key names, known or not.
    fn named_directions(&self) -> usize {
        match &self.pos_att_type {
            None => 0,
            Some(Directions::One(all)) => all.split('|').count(),
            Some(Directions::List(all)) => all.len(),
        }
    }

    /// How many single distances there are on either side.
    fn span(&self) -> usize {
        match self.max_relative_positions {
            span if span < 1 => self.body.max_position_embeddings,
            span => span as usize,
        }
    }

    /// The body with content attending to content alone, scaled for all that attends.
    fn spec(&self, names: Names) -> Result<Spec, String> {
        if self.embedding_size.is_some_and(|width| width != self.body.hidden_size) {
            return Err("embedding_size other than hidden_size is not supported".into());
        }
        let body = PostNorm::learned(self.body.sizes(EPS)?, names, self.body.max_position_embeddings, None)?;
        let position_table = body.position_table.clone().filter(|_| self.position_biased_input);
        let token_types = self.body.type_vocab_size;
        let mut spec = PostNorm { position_table, token_types, nested_as: "deberta", idle: &IDLE, ..body }.spec();
        if !self.position_biased_input {
            spec.idle.push("embeddings.position_embeddings".into());
        }
        let (keys, queries) = self.directions();
        let terms = 1.0 + f64::from(keys) + f64::from(queries);
        spec.layers.iter_mut().for_each(|layer| layer.attention.scale /= terms.sqrt());
        Ok(spec)
    }
}

impl Family for Deberta {
    fn spec(self) -> Result<Spec, String> {
        if self.talking_head {
            return Err("talking_head = true is not supported".into());
        }
        let (keys, queries) = self.keys.directions();
        if self.keys.named_directions() != usize::from(keys) + usize::from(queries) {
            return Err("pos_att_type other than c2p and p2c, each once, is not supported".into());
        }
        let (span, hidden) = (self.keys.span(), self.keys.body.hidden_size);
        let mut spec = self.keys.spec(Names { qkv: &["attention.self.in_proj"], ..bert::NAMES })?;
        for (index, attention) in spec.layers.iter_mut().map(|layer| &mut layer.attention).enumerate() {
            let at = |module: &str| format!("encoder.layer.{index}.attention.self.{module}");
            let own =
                |module: &str, bias| PositionProjection::Own(Projection::new(hidden, bias, [(at(module), hidden)]));
            attention.qkv.bias = false;
            attention.by_head = true;
            attention.qv_biases = Some((at("q_bias"), at("v_bias")));
            if self.keys.relative_attention {
                attention.positions = Positions::Disentangled(Disentangled {
                    table: table("encoder.rel_embeddings", 2 * span),
                    norm: None,
                    key: keys.then(|| own("pos_proj", false)),
                    query: queries.then(|| own("pos_q_proj", true)),
                    buckets: None,
                    distance_max: span,
                });
            }
        }
        Ok(spec)
    }
}

impl Family for DebertaV2 {
    fn spec(self) -> Result<Spec, String> {
        let (keys, queries) = self.keys.directions();
        let (span, hidden, eps) =
            (self.keys.span(), self.keys.body.hidden_size, self.keys.body.layer_norm_eps.unwrap_or(EPS));
        let buckets = usize::try_from(self.position_buckets).ok().filter(|buckets| *buckets > 0);
        let named = &["attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"];
        let mut spec = self.keys.spec(Names { qkv: named, ..bert::NAMES })?;
        let normed = self.norm_rel_ebd.as_deref().unwrap_or_default().to_lowercase();
        let normed = normed.split('|').any(|part| part.trim() == "layer_norm");
        if self.keys.relative_attention {
            for (index, layer) in spec.layers.iter_mut().enumerate() {
                let at = |module: &str| format!("encoder.layer.{index}.attention.self.{module}");
                let own = |module: &str| match self.share_att_key {
                    true => PositionProjection::Shared,
                    false => PositionProjection::Own(Projection::new(hidden, true, [(at(module), hidden)])),
                };
                layer.attention.positions = Positions::Disentangled(Disentangled {
                    table: table("encoder.rel_embeddings", 2 * buckets.unwrap_or(span)),
                    norm: normed.then(|| layer_norm("encoder.LayerNorm", eps)),
                    key: keys.then(|| own("pos_key_proj")),
                    query: queries.then(|| own("pos_query_proj")),
                    buckets,
                    distance_max: span,
                });
            }
        }
        if let (1.., Some(first)) = (self.conv_kernel_size, spec.layers.first_mut()) {
            if self.conv_groups.is_some_and(|groups| groups != 1) || self.conv_kernel_size.is_multiple_of(2) {
                return Err("conv_groups other than 1 and an even conv_kernel_size are not supported".into());
            }
            first.convolution = Some(Convolution {
                path: "encoder.conv.conv".into(),
                kernel: self.conv_kernel_size,
                activation: activation("conv_act", self.conv_act.as_deref().unwrap_or("tanh"))?,
                norm: layer_norm("encoder.conv.LayerNorm", eps),
            });
        }
        Ok(spec)
    }
}
