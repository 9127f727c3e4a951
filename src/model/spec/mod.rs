//! A transformer as plain data: what a family's configuration means, with every module's checkpoint path.
//! The forward pass reads nothing else, so an architecture is a value and not a type.

mod attention;
mod feed_forward;

pub use crate::kernels::{Activation, Gate, NormKind};
pub use attention::{Attention, Disentangled, PositionProjection, Positions, QkNorms, Rotary, RotaryScaling};
pub use feed_forward::{Convolution, Experts, FeedForward, Mlp};

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
    /// Adapters inside the base's own checkpoint.
    pub tasks: Option<Tasks>,
}

/// Low-rank updates that a checkpoint holds beside its weights, one a task, stacked: `<module>.lora_A [tasks, rank, in]`
/// and `<module>.lora_B [tasks, out, rank]`; of an embedding `[tasks, rows, rank]` and `[tasks, rank, width]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Tasks {
    /// Their names, in the order of the stack.
    pub names: Vec<String>,
    /// Of every update.
    pub rank: usize,
    /// Factor on every update.
    pub scale: f64,
}

/// Token ids to hidden states.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// Width of all tables.
    pub width: usize,
    /// One row a token of the vocabulary.
    pub word: Table,
    /// The path of another module with the same rows, which checkpoints may hold in its place.
    pub word_tied: Option<String>,
    /// Factor on the word's row.
    pub scale: Option<f64>,
    /// One row a position, where positions are learned.
    pub position: Option<PositionTable>,
    /// One row a segment type; a lone text is type 0 throughout.
    pub token_type: Option<Table>,
    /// After the sum.
    pub norm: Option<Norm>,
    /// From `width` to the hidden width, where they differ.
    pub projection: Option<Projection>,
}

/// An embedding matrix, `[rows, width]`.
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
    /// Around attention.
    pub attention_norms: Norms,
    /// Tokens look at each other.
    pub attention: Attention,
    /// Around the feed-forward network.
    pub mlp_norms: Norms,
    /// Each token by itself.
    pub mlp: FeedForward,
    /// A convolution of the first hidden states, added to what this block returns.
    pub convolution: Option<Convolution>,
    /// Of a repeated block: the beginning of its checkpoint paths, and what adapters know in its place.
    pub known_as: Option<(String, String)>,
}

/// The norms around a step `f` of a block: `sum(x + after(f(before(x))))`, or `sum(x + after(x + f(before(x))))`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Norms {
    /// Of what goes into the step.
    pub before: Option<Norm>,
    /// Of what comes out of it.
    pub after: Option<Norm>,
    /// Whether `after` is already of the sum with the residual.
    pub after_sum: bool,
    /// Of the sum with the residual.
    pub sum: Option<Norm>,
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
    /// Whether checkpoints hold the weight less 1.
    pub less_one: bool,
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
    /// Rows that adapters know by other names, from a form of the model in which they are fused or split otherwise.
    pub also: Vec<Span>,
}

/// Rows of a projection under another module's name.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// The module's path.
    pub path: String,
    /// First row.
    pub first: usize,
    /// How many.
    pub rows: usize,
}

/// The rows that one checkpoint module contributes.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Checkpoint path of the module.
    pub path: String,
    /// Output width.
    pub rows: usize,
}

/// Longest sequence for which tables of positions are made.
const TOKENS_MAX: usize = 1 << 22;

impl Spec {
    /// Whether the sizes fit each other; the reason where they do not.
    pub fn check(&self) -> Result<(), String> {
        if self.tokens_max == 0 || self.embedding.word.rows == 0 || self.hidden == 0 || self.embedding.width == 0 {
            return Err("a size is 0".into());
        }
        if self.tokens_max > TOKENS_MAX {
            return Err(format!("sequences of {} tokens are not supported, of {TOKENS_MAX} are", self.tokens_max));
        }
        let norms = self.layers.iter().flat_map(Layer::norms).chain(&self.embedding.norm).chain(&self.final_norm);
        if let Some(norm) = norms.into_iter().find(|norm| norm.eps.is_nan() || norm.eps < 0.0) {
            return Err(format!("the epsilon {} of '{}' is not a positive number", norm.eps, norm.path));
        }
        self.layers.iter().try_for_each(|layer| layer.check(self.hidden))
    }
}

impl Layer {
    /// The norms around its two steps.
    fn norms(&self) -> impl Iterator<Item = &Norm> {
        let norms = [&self.attention_norms, &self.mlp_norms].into_iter();
        norms.flat_map(|norms| [&norms.before, &norms.after, &norms.sum]).flatten()
    }

    fn check(&self, hidden: usize) -> Result<(), String> {
        self.attention.check(hidden)?;
        match &self.mlp {
            FeedForward::Dense(mlp) if mlp.down.columns == 0 || mlp.up.rows() == 0 => {
                Err("the feed-forward network has no width".into())
            }
            FeedForward::Experts(experts) if experts.inner == 0 => Err("the experts have no width".into()),
            FeedForward::Experts(experts) if experts.active == 0 || experts.active > experts.router.rows() => {
                Err(format!("a token cannot take {} of {} experts", experts.active, experts.router.rows()))
            }
            _ => Ok(()),
        }
    }
}

impl Norms {
    /// norm(x + f(x)), as in BERT.
    pub fn post(norm: Norm) -> Self {
        Self { sum: Some(norm), ..Self::default() }
    }

    /// x + f(norm(x)), as in most decoders.
    pub fn pre(norm: Norm) -> Self {
        Self { before: Some(norm), ..Self::default() }
    }
}

impl Embedding {
    /// Word rows and nothing more.
    pub fn of_words(word: Table, width: usize) -> Self {
        Self {
            width,
            word,
            word_tied: None,
            scale: None,
            position: None,
            token_type: None,
            norm: None,
            projection: None,
        }
    }
}

impl Projection {
    /// Modules of `rows` outputs each over one input of `columns`.
    pub fn new(columns: usize, bias: bool, parts: impl IntoIterator<Item = (String, usize)>) -> Self {
        let parts = parts.into_iter().map(|(path, rows)| Part { path, rows }).collect();
        Self { parts, columns, bias, also: Vec::new() }
    }

    /// Lets adapters know its rows by the modules of another projection of the same rows.
    pub fn also_as(&mut self, other: Self) {
        let mut first = 0;
        for Part { path, rows } in other.parts {
            let known = self.parts.iter().map(|part| &part.path).chain(self.also.iter().map(|span| &span.path));
            if known.into_iter().all(|known| *known != path) {
                self.also.push(Span { path, first, rows });
            }
            first += rows;
        }
    }

    /// The same, which adapters may know by these modules of so many outputs each, too.
    pub fn also(mut self, parts: impl IntoIterator<Item = (String, usize)>) -> Self {
        self.also_as(Self::new(self.columns, self.bias, parts));
        self
    }

    /// Output width.
    pub fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.rows).sum()
    }
}
