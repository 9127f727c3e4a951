//! What BERT and its heirs share: an embedding with learned positions, and post-norm blocks with a bias everywhere and
//! a plain MLP, under each heir's own names.

use super::{layer_norm, table};
use crate::model::spec::{
    Activation, Attention, Embedding, Layer, Mlp, Norms, PositionTable, Positions, Projection, Spec,
};

/// Everything in which they differ.
pub struct PostNorm {
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub inner: usize,
    pub activation: Activation,
    pub eps: f64,
    pub vocabulary: usize,
    /// Rows of the position table.
    pub positions: usize,
    /// The padding token, where positions are counted from it on.
    pub padding: Option<usize>,
    pub token_types: Option<usize>,
    /// What attention knows of positions beside the learned ones.
    pub attention_positions: Positions,
    /// What stands before a layer's number, and before its modules.
    pub prefix: &'static str,
    pub names: Names,
    pub nested_as: &'static str,
    pub idle: &'static [&'static str],
}

/// Modules within a layer.
pub struct Names {
    pub qkv: [&'static str; 3],
    pub attention_output: &'static str,
    pub attention_norm: &'static str,
    pub up: &'static str,
    pub down: &'static str,
    pub mlp_norm: &'static str,
}

impl PostNorm {
    /// The whole body.
    pub fn spec(self) -> Result<Spec, String> {
        let first = self.padding.map_or(0, |padding| padding + 1);
        if self.positions <= first {
            return Err(format!("max_position_embeddings must be more than {first}"));
        }
        let embedding = Embedding {
            word: table("embeddings.word_embeddings", self.vocabulary),
            position: Some(PositionTable {
                table: table("embeddings.position_embeddings", self.positions),
                first,
                skipped: self.padding.map(|padding| padding as u32),
            }),
            token_type: self.token_types.map(|rows| table("embeddings.token_type_embeddings", rows)),
            norm: Some(layer_norm("embeddings.LayerNorm", self.eps)),
        };
        Ok(Spec {
            hidden: self.hidden,
            tokens_max: self.positions - first,
            embedding,
            layers: (0..self.layers).map(|index| self.layer(index)).collect(),
            final_norm: None,
            nested_as: self.nested_as,
            idle: self.idle.iter().map(|module| (*module).to_owned()).collect(),
        })
    }

    fn layer(&self, index: usize) -> Layer {
        let (hidden, inner, names) = (self.hidden, self.inner, &self.names);
        let at = |module: &str| format!("{}.{index}.{module}", self.prefix);
        let projection =
            |columns: usize, module: &str, rows: usize| Projection::new(columns, true, [(at(module), rows)]);
        Layer {
            norms: Norms::Post {
                attention: layer_norm(at(names.attention_norm), self.eps),
                mlp: layer_norm(at(names.mlp_norm), self.eps),
            },
            attention: Attention {
                heads: self.heads,
                kv_heads: self.heads,
                head_width: hidden.checked_div(self.heads).unwrap_or_default(),
                qkv: Projection::new(hidden, true, names.qkv.map(|part| (at(part), hidden))),
                output: projection(hidden, names.attention_output, hidden),
                qk_norms: None,
                causal: false,
                positions: self.attention_positions.clone(),
            },
            mlp: Mlp {
                up: projection(hidden, names.up, inner),
                activation: self.activation,
                gated: false,
                down: projection(inner, names.down, hidden),
            },
        }
    }
}
