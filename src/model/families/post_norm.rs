//! What BERT and its heirs share: word rows with token types, and post-norm blocks, under each heir's own names.

use super::{bert, layer_norm, table};
use crate::model::spec::{
    Activation, Attention, Embedding, FeedForward, Gate, Layer, Mlp, Norms, PositionTable, Positions, Projection, Spec,
};

/// Everything in which they differ.
pub struct PostNorm {
    pub sizes: Sizes,
    pub names: Names,
    /// The names that adapters may have from other forms of the same model.
    pub also: &'static [Names],
    /// Whether linear modules have a bias.
    pub biases: Biases,
    /// Whether one half of the MLP's way up gates the other.
    pub gate: Gate,
    /// Longest sequence, in tokens.
    pub tokens_max: usize,
    /// Learned positions.
    pub position_table: Option<PositionTable>,
    /// Rows of the token types' table; 0: there is none.
    pub token_types: usize,
    /// What attention knows of positions.
    pub attention_positions: Positions,
    /// The name under which larger models nest it.
    pub nested_as: &'static str,
    /// Modules that no forward pass runs.
    pub idle: &'static [&'static str],
}

/// Its numbers.
pub struct Sizes {
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    /// Width between the MLP's two products.
    pub inner: usize,
    pub vocabulary: usize,
    pub activation: Activation,
    pub eps: f64,
}

/// Module names; all but the first two stand within a layer.
pub struct Names {
    pub embedding_norm: &'static str,
    /// What stands before a layer's number.
    pub layers: &'static str,
    /// Query, key and value, or one for all three.
    pub qkv: &'static [&'static str],
    pub attention_output: &'static str,
    pub attention_norm: &'static str,
    /// The way up, or its two halves where it is gated and they are modules of their own.
    pub up: &'static [&'static str],
    pub down: &'static str,
    pub mlp_norm: &'static str,
}

/// Which modules have a bias.
#[derive(Clone, Copy)]
pub struct Biases {
    pub qkv: bool,
    pub attention_output: bool,
    pub up: bool,
    pub down: bool,
}

impl Biases {
    /// Every one, or none.
    pub fn all(bias: bool) -> Self {
        Self { qkv: bias, attention_output: bias, up: bias, down: bias }
    }
}

impl PostNorm {
    /// A body with `rows` learned positions, as BERT's: biases everywhere, a plain MLP, no token types. `padding` is the
    /// padding token where positions are counted from it on.
    pub fn learned(sizes: Sizes, names: Names, rows: usize, padding: Option<usize>) -> Result<Self, String> {
        let first = padding.map_or(0, |padding| padding + 1);
        if rows <= first {
            return Err(format!("max_position_embeddings must be more than {first}"));
        }
        let skipped = padding.map(|padding| padding as u32);
        let table = table("embeddings.position_embeddings", rows);
        Ok(Self {
            sizes,
            names,
            also: &[],
            biases: Biases::all(true),
            gate: Gate::Absent,
            tokens_max: rows - first,
            position_table: Some(PositionTable { table, first, skipped }),
            token_types: 0,
            attention_positions: Positions::Absent,
            nested_as: "bert",
            idle: &bert::IDLE,
        })
    }

    /// The whole body.
    pub fn spec(self) -> Spec {
        let layers = (0..self.sizes.layers).map(|index| self.numbered(index)).collect();
        self.with_layers(layers)
    }

    /// The body around these layers.
    pub fn with_layers(self, layers: Vec<Layer>) -> Spec {
        let Sizes { hidden, vocabulary, eps, .. } = self.sizes;
        let token_type = (self.token_types > 0).then(|| table("embeddings.token_type_embeddings", self.token_types));
        let embedding = Embedding {
            position: self.position_table.clone(),
            token_type,
            norm: Some(layer_norm(self.names.embedding_norm, eps)),
            ..Embedding::of_words(table("embeddings.word_embeddings", vocabulary), hidden)
        };
        Spec {
            hidden,
            tokens_max: self.tokens_max,
            embedding,
            layers,
            final_norm: None,
            nested_as: self.nested_as,
            idle: self.idle.iter().map(|module| (*module).to_owned()).collect(),
            tasks: None,
        }
    }

    /// The layer of this number.
    fn numbered(&self, index: usize) -> Layer {
        let of = |names: &Names| self.named(names, &format!("{}.{index}", names.layers));
        let mut layer = of(&self.names);
        for other in self.also.iter().map(of) {
            layer.attention.qkv.also_as(other.attention.qkv);
            layer.attention.output.also_as(other.attention.output);
            if let (FeedForward::Dense(mlp), FeedForward::Dense(other)) = (&mut layer.mlp, other.mlp) {
                mlp.up.also_as(other.up);
                mlp.down.also_as(other.down);
            }
        }
        layer
    }

    /// The layer at this path.
    pub fn layer(&self, path: &str) -> Layer {
        self.named(&self.names, path)
    }

    fn named(&self, names: &Names, path: &str) -> Layer {
        let (Sizes { hidden, heads, inner, activation, eps, .. }, biases) = (&self.sizes, self.biases);
        let (hidden, heads, inner) = (*hidden, *heads, *inner);
        let at = |module: &str| format!("{path}.{module}");
        // So many rows in equal parts.
        let stacked = |columns: usize, bias: bool, modules: &[&str], rows: usize| {
            Projection::new(columns, bias, modules.iter().map(|module| (at(module), rows / modules.len())))
        };
        let head_width = hidden.checked_div(heads).unwrap_or_default();
        let ups = if self.gate == Gate::Absent { 1 } else { 2 };
        Layer {
            attention_norms: Norms::post(layer_norm(at(names.attention_norm), *eps)),
            attention: Attention {
                heads,
                kv_heads: heads,
                head_width,
                qkv: stacked(hidden, biases.qkv, names.qkv, 3 * hidden),
                by_head: false,
                qv_biases: None,
                output: stacked(hidden, biases.attention_output, &[names.attention_output], hidden),
                qk_norms: None,
                scale: (head_width as f64).sqrt().recip(),
                causal: false,
                window: None,
                positions: self.attention_positions.clone(),
            },
            mlp_norms: Norms::post(layer_norm(at(names.mlp_norm), *eps)),
            mlp: FeedForward::Dense(Mlp {
                up: stacked(hidden, biases.up, names.up, ups * inner),
                activation: *activation,
                gate: self.gate,
                down: stacked(inner, biases.down, &[names.down], hidden),
            }),
            convolution: None,
            known_as: None,
        }
    }
}
