//! Attention as plain data, and how it knows of positions.

use super::{Norm, Projection, Table};

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
    /// Rows of `qkv` are stacked head by head instead, each head's query, key and value.
    pub by_head: bool,
    /// Parameters added to all queries and to all values, `[heads * head_width]` each.
    pub qv_biases: Option<(String, String)>,
    /// Back to the hidden width.
    pub output: Projection,
    /// Norms of queries and keys, before rotation.
    pub qk_norms: Option<QkNorms>,
    /// Factor on every score.
    pub scale: f64,
    /// Whether a token sees only itself and what stands before it.
    pub causal: bool,
    /// How many tokens away the farthest is that a token sees; none: it sees all.
    pub window: Option<usize>,
    /// How positions enter the scores.
    pub positions: Positions,
}

/// Norms of queries and keys.
#[derive(Clone, Debug, PartialEq)]
pub struct QkNorms {
    /// Of queries.
    pub q: Norm,
    /// Of keys.
    pub k: Norm,
    /// Over all heads at once instead of each by itself.
    pub all_heads: bool,
}

/// How positions enter the attention scores.
#[derive(Clone, Debug, PartialEq)]
pub enum Positions {
    /// Not here: learned absolute positions, or none.
    Absent,
    /// Queries and keys rotated by position.
    Rotary(Rotary),
    /// A learned bias by bucketed distance, `[buckets, heads]` (T5, arXiv:1910.10683, section 2.1).
    RelativeBias {
        /// The matrix.
        table: Table,
        /// Distances from here on share the last bucket.
        distance_max: usize,
    },
    /// Scores fall linearly with distance, in both directions, with a slope a head (arXiv:2108.12409).
    Alibi,
    /// Content and relative position attend to each other (DeBERTa, arXiv:2006.03654).
    Disentangled(Disentangled),
}

/// Rotary positions: base and stretching of the wavelengths.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    /// How a longer context than the trained one is reached.
    pub scaling: RotaryScaling,
}

/// Stretching of rotary wavelengths, by the names of transformers' `rope_type`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RotaryScaling {
    /// As trained.
    Default,
    /// All by one factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// A larger base and all wavelengths by factor^(2 / head width), as the GTE models.
    Ntk {
        /// The factor.
        factor: f64,
    },
    /// Long waves by a factor, short ones not, in between by interpolation (Llama 3.1).
    Llama3 {
        /// The factor.
        factor: f64,
        /// Trained length over this is the shortest wave that is stretched in full.
        low_freq_factor: f64,
        /// Trained length over this is the longest wave that is left alone.
        high_freq_factor: f64,
        /// Trained length, in tokens.
        trained: f64,
    },
    /// The same by a ramp over the dimensions, and scores sharpened (YaRN, arXiv:2309.00071).
    Yarn {
        /// The factor.
        factor: f64,
        /// Turns within the trained length from which on a wave is left alone.
        beta_fast: f64,
        /// Turns below which it is stretched in full.
        beta_slow: f64,
        /// Trained length, in tokens.
        trained: f64,
        /// Factor on cosines and sines.
        attention_factor: f64,
        /// Whether the ramp's ends are rounded to whole dimensions.
        truncate: bool,
    },
}

/// Relative positions with vectors of their own.
#[derive(Clone, Debug, PartialEq)]
pub struct Disentangled {
    /// `[2 * span, hidden]`, shared by all layers.
    pub table: Table,
    /// Of the table's rows.
    pub norm: Option<Norm>,
    /// Queries attend to the position of keys: what projects the table to keys.
    pub key: Option<PositionProjection>,
    /// Keys attend to the position of queries: what projects the table to queries.
    pub query: Option<PositionProjection>,
    /// Distances are counted singly up to half of this and logarithmically up to `distance_max`; none: all singly.
    pub buckets: Option<usize>,
    /// Farther distances count as this.
    pub distance_max: usize,
}

/// What projects relative positions.
#[derive(Clone, Debug, PartialEq)]
pub enum PositionProjection {
    /// The layer's own for content: its query or key module.
    Shared,
    /// One of its own.
    Own(Projection),
}

impl Attention {
    /// Whether its sizes fit each other and a model of width `hidden`; the reason where they do not.
    pub(super) fn check(&self, hidden: usize) -> Result<(), String> {
        let Self { heads, kv_heads, head_width, qkv, .. } = self;
        let (rows, expected) = (qkv.rows(), heads.saturating_add(2 * kv_heads).saturating_mul(*head_width));
        if *kv_heads == 0 || *head_width == 0 || heads % kv_heads != 0 || rows != expected {
            return Err(format!(
                "{heads} heads over {kv_heads} key heads, of width {head_width}, do not fit {rows} rows over a width of \
                 {hidden}"
            ));
        }
        match &self.positions {
            Positions::Rotary(_) if head_width % 2 != 0 => {
                Err(format!("heads of width {head_width} cannot be rotated"))
            }
            // Half of the buckets look ahead, and half of these count single steps.
            Positions::RelativeBias { table, distance_max }
                if table.rows < 4 || table.rows % 4 != 0 || *distance_max <= table.rows / 4 =>
            {
                let buckets = table.rows;
                Err(format!("{buckets} buckets of relative positions up to {distance_max} tokens are not supported"))
            }
            Positions::Disentangled(relative)
                if relative.table.rows < 2
                    || relative.buckets.is_some_and(|b| b < 4 || relative.distance_max <= b / 2 + 1) =>
            {
                Err("so few relative positions are not supported".into())
            }
            _ => Ok(()),
        }
    }
}

impl Rotary {
    /// Unstretched.
    pub fn new(theta: f64) -> Self {
        Self { theta, scaling: RotaryScaling::Default }
    }
}
