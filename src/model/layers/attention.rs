//! Multi-head attention over packed sequences, with whatever tells it of positions.

use super::disentangled::Disentangled;
use super::{Linear, Loader, Norm, positions};
use crate::error::Result;
use crate::kernels::{self, Attended, Sequences, Tensor, add_to_each, rotate};
use crate::model::delta::Plan;
use crate::model::spec::{self, Positions};

/// Attention with its projections.
pub struct Attention {
    heads: usize,
    kv_heads: usize,
    head_width: usize,
    qkv: Linear,
    /// Of its columns.
    attended: Attended,
    by_head: bool,
    /// `[heads, head_width]` each.
    qv_biases: Option<(Tensor, Tensor)>,
    output: Linear,
    qk_norms: Option<QkNorms>,
    scale: f32,
    causal: bool,
    window: Option<usize>,
    positions: Known,
    /// See [`kernels::Attention`].
    is_half: bool,
}

/// Where queries, keys and values are read as their projection makes them.
fn attended(spec: &spec::Attention) -> Attended {
    let spec::Attention { heads, kv_heads, head_width, positions, .. } = spec;
    let is_as_made = !spec.by_head && spec.qv_biases.is_none() && !matches!(positions, Positions::Disentangled(_));
    let is_turned = spec.qk_norms.is_some() || matches!(positions, Positions::Rotary(_));
    let (end, keys) = (heads * head_width, kv_heads * head_width);
    Attended {
        queries: (is_as_made && !is_turned).then_some(0..end),
        keys: (is_as_made && !is_turned).then_some(end..end + keys),
        values: is_as_made.then_some(end + keys..end + 2 * keys),
        head_width: *head_width,
    }
}

struct QkNorms {
    q: Norm,
    k: Norm,
    all_heads: bool,
}

/// What is known of positions.
enum Known {
    Nothing,
    /// Cosines and sines, `[tokens_max, head_width / 2]` each.
    Rotary(Tensor, Tensor),
    /// `[heads, 2 * tokens_max - 1]`, see [`kernels::Attention`].
    Bias(Tensor),
    Disentangled(Box<Disentangled>),
}

impl Attention {
    /// From its spec.
    pub fn load(spec: &spec::Attention, loader: &mut Loader) -> Result<Self> {
        let qkv = Linear::load(&spec.qkv, loader)?;
        let qk_norms = spec.qk_norms.as_ref().map(|norms| -> Result<QkNorms> {
            let width = |heads: usize| if norms.all_heads { heads * spec.head_width } else { spec.head_width };
            let q = Norm::load(&norms.q, width(spec.heads), loader)?;
            Ok(QkNorms { q, k: Norm::load(&norms.k, width(spec.kv_heads), loader)?, all_heads: norms.all_heads })
        });
        let qk_norms = qk_norms.transpose()?;
        let qv_biases = spec.qv_biases.as_ref().map(|(q, v)| -> Result<(Tensor, Tensor)> {
            let shape = (spec.heads, spec.head_width);
            let load = |name: &str| loader.place(&loader.parameter(name, &[shape.0 * shape.1])?.reshape(shape)?);
            Ok((load(q)?, load(v)?))
        });
        let qv_biases = qv_biases.transpose()?;
        let positions = match &spec.positions {
            Positions::Absent => Known::Nothing,
            Positions::Rotary(rotary) => {
                let (cos, sin) = positions::rotary(rotary, spec.head_width, loader)?;
                Known::Rotary(cos, sin)
            }
            Positions::RelativeBias { table, distance_max } => {
                Known::Bias(positions::relative_bias(table, spec.heads, *distance_max, loader)?)
            }
            Positions::Alibi => Known::Bias(positions::alibi(spec.heads, loader)?),
            Positions::Disentangled(relative) => {
                let width = spec.heads * spec.head_width;
                Known::Disentangled(Disentangled::load(relative, width, &qkv, loader)?.into())
            }
        };
        Ok(Self {
            heads: spec.heads,
            kv_heads: spec.kv_heads,
            head_width: spec.head_width,
            qkv,
            attended: attended(spec),
            by_head: spec.by_head,
            qv_biases,
            output: Linear::load(&spec.output, loader)?,
            qk_norms,
            scale: spec.scale as f32,
            causal: spec.causal,
            window: spec.window,
            positions,
            is_half: loader.format.rounds(),
        })
    }

    /// `[tokens, hidden]` -> `[tokens, hidden]`.
    pub fn forward(&self, x: &Tensor, offsets: &Sequences, plan: &Plan) -> Result<Tensor> {
        let (stacked, late) = self.qkv.forward_attended(x, plan, &self.attended)?;
        let (mut q, mut k, v) = self.heads(&stacked, plan)?;
        if let Some(QkNorms { q: q_norm, k: k_norm, all_heads: false }) = &self.qk_norms {
            (q, k) = (q_norm.forward(&q, plan)?, k_norm.forward(&k, plan)?);
        }
        let mut bias = None;
        match &self.positions {
            Known::Nothing => {}
            Known::Rotary(cos, sin) => (q, k) = (rotate(&q, cos, sin, offsets)?, rotate(&k, cos, sin, offsets)?),
            Known::Bias(distances) => bias = Some(distances),
            Known::Disentangled(relative) => {
                let y = relative.attend([&q, &k, &v], offsets, self.scale, &self.qkv, plan)?;
                return self.output.forward(&y, plan);
            }
        }
        let Self { scale, causal, window, is_half, .. } = *self;
        let attention = kernels::Attention { offsets, scale, causal, window, bias, is_half };
        self.output.forward(&kernels::attention(&q, &k, &v, &attention, late.as_ref())?, plan)
    }

    /// Queries, keys and values, `[tokens, heads, head_width]` each, windows of the stacked projection.
    fn heads(&self, stacked: &Tensor, plan: &Plan) -> Result<(Tensor, Tensor, Tensor)> {
        let (heads, kv_heads, width, tokens) = (self.heads, self.kv_heads, self.head_width, stacked.dims()[0]);
        if self.by_head {
            let by_head = stacked.reshape([tokens, heads, 3 * width])?;
            let part = |i: usize| by_head.narrow(2, i * width, width);
            let (q, k, v) = (part(0)?, part(1)?, part(2)?);
            return match &self.qv_biases {
                Some((q_bias, v_bias)) => Ok((add_to_each(&q, q_bias)?, k, add_to_each(&v, v_bias)?)),
                None => Ok((q, k, v)),
            };
        }
        let all = stacked.reshape([tokens, heads + 2 * kv_heads, width])?;
        let (q, k) = match &self.qk_norms {
            Some(QkNorms { q, k, all_heads: true }) => {
                let part = |first: usize, count: usize| stacked.narrow(1, first * width, count * width);
                let q = q.forward(&part(0, heads)?, plan)?.reshape([tokens, heads, width])?;
                (q, k.forward(&part(heads, kv_heads)?, plan)?.reshape([tokens, kv_heads, width])?)
            }
            _ => (all.narrow(1, 0, heads)?, all.narrow(1, heads, kv_heads)?),
        };
        Ok((q, k, all.narrow(1, heads + kv_heads, kv_heads)?))
    }
}
