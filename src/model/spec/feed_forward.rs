//! What each token goes through by itself, or with its neighbours, as plain data.

use super::{Activation, Gate, Norm, Projection};

/// A block's second half.
#[derive(Clone, Debug, PartialEq)]
pub enum FeedForward {
    /// One network for every token.
    Dense(Mlp),
    /// Several, of which each token takes some.
    Experts(Experts),
}

/// A token's feed-forward network.
#[derive(Clone, Debug, PartialEq)]
pub struct Mlp {
    /// From the hidden width; where gated, both halves stacked by rows.
    pub up: Projection,
    /// Between the two.
    pub activation: Activation,
    /// Whether one half of `up` is a gate, and which.
    pub gate: Gate,
    /// Back to the hidden width.
    pub down: Projection,
}

/// A mixture of experts: the sum of a token's best networks, weighted by the softmax of the router's scores.
#[derive(Clone, Debug, PartialEq)]
pub struct Experts {
    /// From the hidden width to a score an expert.
    pub router: Projection,
    /// How many a token takes.
    pub active: usize,
    /// Parameter `[experts * inner, hidden]`, each expert's way up.
    pub up: String,
    /// Parameter `[experts * inner, hidden]`, each expert's way down, transposed.
    pub down: String,
    /// Parameter `[hidden]`, added to the sum.
    pub bias: String,
    /// Width between an expert's two products.
    pub inner: usize,
    /// Between the two.
    pub activation: Activation,
}

/// A convolution over the tokens of a sequence, zeros beyond its ends: `norm(x + f(conv(first hidden states)))`.
#[derive(Clone, Debug, PartialEq)]
pub struct Convolution {
    /// Checkpoint path of the module.
    pub path: String,
    /// Tokens that one output sees, an odd number.
    pub kernel: usize,
    /// On the convolution's output.
    pub activation: Activation,
    /// Of the sum.
    pub norm: Norm,
}
