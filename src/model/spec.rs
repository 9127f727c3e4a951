//! A transformer as plain data: what a family's configuration means, with every module's checkpoint path.
//! The forward pass reads nothing else, so an architecture is a value and not a type.

pub use crate::kernels::{Activation, NormKind};

/// An encoder or decoder stack over packed rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// Width of the hidden states.
    pub hidden: usize,
    /// Longest sequence that the positions allow, in tokens.
    pub tokens_max: usize,
    /// Token ids to the first hidden states.
    pub embedding: Embedding,
    /// The blocks, in order.
    pub layers: Vec<Layer>,
    /// After the last block.
    pub final_norm: Option<Norm>,
    /// The name under which transformers nests this body inside larger models (`bert`, `roberta`, `model`).
    pub nested_as: &'static str,
    /// Modules that checkpoints hold and a forward pass to the hidden states never runs (poolers, heads).
    pub idle: Vec<String>,
}

/// Token ids to hidden states.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// One row a token of the vocabulary.
    pub word: Table,
    /// One row a position, where positions are learned.
    pub position: Option<PositionTable>,
    /// One row a segment type; a lone text is type 0 throughout.
    pub token_type: Option<Table>,
    /// After the sum.
    pub norm: Option<Norm>,
}

/// An embedding matrix, `[rows, hidden]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// Checkpoint path of the module.
    pub path: String,
    /// Number of rows.
    pub rows: usize,
}

/// Learned absolute positions.
#[derive(Clone, Debug, PartialEq)]
pub struct PositionTable {
    /// The matrix.
    pub table: Table,
    /// Row of a sequence's first token.
    pub first: usize,
    /// A token that takes no position: the others are counted past it, and it reads the row before the first. It is
    /// the padding token in the RoBERTa family, where a text can spell it out.
    pub skipped: Option<u32>,
}

/// One block.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// Where the two norms stand.
    pub norms: Norms,
    /// Tokens look at each other.
    pub attention: Attention,
    /// Each token by itself.
    pub mlp: Mlp,
}

/// The place of a block's two norms.
#[derive(Clone, Debug, PartialEq)]
pub enum Norms {
    /// norm(x + f(x)), as in BERT.
    Post {
        /// After attention.
        attention: Norm,
        /// After the MLP.
        mlp: Norm,
    },
    /// x + f(norm(x)), as in most decoders.
    Pre {
        /// Before attention.
        attention: Norm,
        /// Before the MLP.
        mlp: Norm,
    },
}

/// A normalization over the last dimension.
#[derive(Clone, Debug, PartialEq)]
pub struct Norm {
    /// Checkpoint path of the module.
    pub path: String,
    /// Which one.
    pub kind: NormKind,
    /// Whether it has a bias.
    pub bias: bool,
    /// Added to the variance.
    pub eps: f64,
}

/// Multi-head attention.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; fewer than `heads` is grouped-query attention.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_width: usize,
    /// Stacked rows: all queries, then keys, then values.
    pub qkv: Projection,
    /// Back to the hidden width.
    pub output: Projection,
    /// Norms of each query and each key head, before rotation.
    pub qk_norms: Option<(Norm, Norm)>,
    /// Whether a token sees only itself and what stands before it.
    pub causal: bool,
    /// How positions enter the scores.
    pub positions: Positions,
}

/// How positions enter the attention scores.
#[derive(Clone, Debug, PartialEq)]
pub enum Positions {
    /// Not here: learned absolute positions, or none.
    Absent,
    /// Queries and keys rotated by position.
    Rotary {
        /// Base of the geometric series of wavelengths.
        theta: f64,
    },
    /// A learned bias by bucketed distance, `[buckets, heads]` (T5, arXiv:1910.10683, section 2.1).
    RelativeBias {
        /// The matrix.
        table: Table,
        /// Distances from here on share the last bucket.
        distance_max: usize,
    },
}

/// A token's feed-forward network.
#[derive(Clone, Debug, PartialEq)]
pub struct Mlp {
    /// From the hidden width; where `gated`, stacked rows: the gate, then what it gates.
    pub up: Projection,
    /// Between the two.
    pub activation: Activation,
    /// Whether the activation of one half multiplies the other.
    pub gated: bool,
    /// Back to the hidden width.
    pub down: Projection,
}

/// One matrix made of the rows of one or more checkpoint modules, so that separate and fused projections are the same.
#[derive(Clone, Debug, PartialEq)]
pub struct Projection {
    /// The modules, stacked by rows in this order; each is a site for adapters.
    pub parts: Vec<Part>,
    /// Input width.
    pub columns: usize,
    /// Whether each module has a bias.
    pub bias: bool,
}

/// The rows that one checkpoint module contributes.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Checkpoint path of the module.
    pub path: String,
    /// Output width.
    pub rows: usize,
}

impl Spec {
    /// Whether the sizes fit each other; the reason where they do not.
    pub fn check(&self) -> Result<(), String> {
        for Layer { attention, .. } in &self.layers {
            let Attention { heads, kv_heads, head_width, qkv, positions, .. } = attention;
            let rows: usize = qkv.parts.iter().map(|part| part.rows).sum();
            if *kv_heads == 0
                || *head_width == 0
                || heads % kv_heads != 0
                || rows != (heads + 2 * kv_heads) * head_width
            {
                return Err(format!(
                    "{heads} heads over {kv_heads} key heads do not divide a width of {}",
                    self.hidden
                ));
            }
            if matches!(positions, Positions::Rotary { .. }) && head_width % 2 != 0 {
                return Err(format!("heads of width {head_width} cannot be rotated"));
            }
        }
        if self.tokens_max == 0 || self.embedding.word.rows == 0 || self.hidden == 0 {
            return Err("a size is 0".into());
        }
        Ok(())
    }
}

impl Projection {
    /// Modules of `rows` outputs each over one input of `columns`.
    pub fn new(columns: usize, bias: bool, parts: impl IntoIterator<Item = (String, usize)>) -> Self {
        let parts = parts.into_iter().map(|(path, rows)| Part { path, rows }).collect();
        Self { parts, columns, bias }
    }
}
