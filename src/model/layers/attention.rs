//! Multi-head attention over packed sequences, with whatever tells it of positions.

use super::{Linear, Loader, Norm};
use crate::error::Result;
use crate::kernels::{self, rotary_tables, rotate};
use crate::model::delta::Plan;
use crate::model::spec::{self, Positions, Table};
use candle_core::{Device, Tensor};

/// Attention with its projections.
pub struct Attention {
    heads: usize,
    kv_heads: usize,
    head_width: usize,
    qkv: Linear,
    output: Linear,
    qk_norms: Option<(Norm, Norm)>,
    causal: bool,
    /// Cosines and sines, `[tokens_max, head_width / 2]` each.
    rotary: Option<(Tensor, Tensor)>,
    /// `[heads, 2 * tokens_max - 1]`, see [`kernels::Attention`].
    bias: Option<Tensor>,
}

impl Attention {
    /// From its spec.
    pub fn load(spec: &spec::Attention, loader: &mut Loader) -> Result<Self> {
        let norm = |norm: &spec::Norm| Norm::load(norm, spec.head_width, loader);
        let qk_norms = spec.qk_norms.as_ref().map(|(q, k)| Ok::<_, crate::error::Error>((norm(q)?, norm(k)?)));
        let qk_norms = qk_norms.transpose()?;
        let (mut rotary, mut bias) = (None, None);
        match &spec.positions {
            Positions::Absent => {}
            Positions::Rotary { theta } => {
                let tables = loader.shared(format!("rotary {theta} {}", spec.head_width), |loader| {
                    let (cos, sin) = rotary_tables(loader.tokens_max, spec.head_width, *theta, loader.device)?;
                    Ok(vec![cos, sin])
                })?;
                rotary = Some((tables[0].clone(), tables[1].clone()));
            }
            Positions::RelativeBias { table, distance_max } => {
                let tables = loader.shared(format!("bias {}", table.path), |loader| {
                    Ok(vec![relative_bias(table, spec.heads, *distance_max, loader)?])
                })?;
                bias = Some(tables[0].clone());
            }
        }
        Ok(Self {
            heads: spec.heads,
            kv_heads: spec.kv_heads,
            head_width: spec.head_width,
            qkv: Linear::load(&spec.qkv, loader)?,
            output: Linear::load(&spec.output, loader)?,
            qk_norms,
            causal: spec.causal,
            rotary,
            bias,
        })
    }

    /// `[tokens, hidden]` -> `[tokens, hidden]`.
    pub fn forward(&self, x: &Tensor, offsets: &[usize], plan: &Plan) -> Result<Tensor> {
        let (heads, kv_heads) = (self.heads, self.kv_heads);
        let stacked = self.qkv.forward(x, plan)?;
        let stacked = stacked.reshape((x.dims()[0], heads + 2 * kv_heads, self.head_width))?;
        let mut q = stacked.narrow(1, 0, heads)?;
        let mut k = stacked.narrow(1, heads, kv_heads)?;
        let v = stacked.narrow(1, heads + kv_heads, kv_heads)?;
        if let Some((q_norm, k_norm)) = &self.qk_norms {
            (q, k) = (q_norm.forward(&q)?, k_norm.forward(&k)?);
        }
        if let Some((cos, sin)) = &self.rotary {
            (q, k) = (rotate(&q, cos, sin, offsets)?, rotate(&k, cos, sin, offsets)?);
        }
        let scale = 1.0 / (self.head_width as f32).sqrt();
        let attention = kernels::Attention { offsets, scale, causal: self.causal, bias: self.bias.as_ref() };
        self.output.forward(&kernels::attention(&q, &k, &v, &attention)?, plan)
    }
}

/// A bias row a head, spread from buckets to every distance that a sequence can have: `[heads, 2 * tokens_max - 1]`.
fn relative_bias(table: &Table, heads: usize, distance_max: usize, loader: &Loader) -> Result<Tensor> {
    let span = loader.tokens_max as i64;
    let by_bucket = loader.tensor(&table.path, "weight", &[table.rows, heads])?;
    let distances = (1 - span)..span;
    let buckets: Vec<u32> = distances.map(|d| bucket(d, table.rows, distance_max)).collect();
    let buckets = Tensor::from_vec(buckets, 2 * loader.tokens_max - 1, &Device::Cpu)?.to_device(loader.device)?;
    Ok(by_bucket.index_select(&buckets, 0)?.t()?.contiguous()?)
}

/// T5's bucket of `key - query`: half the buckets look ahead; of each half, the first half counts single steps and the
/// rest grows logarithmically up to `distance_max` (arXiv:1910.10683; in f32 as transformers computes it).
fn bucket(distance: i64, buckets: usize, distance_max: usize) -> u32 {
    let half = buckets / 2;
    let ahead = if distance > 0 { half } else { 0 };
    let (steps, exact) = (distance.unsigned_abs() as usize, half / 2);
    if steps < exact {
        return (ahead + steps) as u32;
    }
    let growth = (steps as f32 / exact as f32).ln() / (distance_max as f32 / exact as f32).ln();
    let step = exact + (growth * (half - exact) as f32) as usize;
    (ahead + step.min(half - 1)) as u32
}

#[cfg(test)]
mod tests {
    use super::bucket;

    #[test]
    fn near_distances_have_their_own_bucket_and_far_ones_share_the_last() {
        let of = |d| bucket(d, 32, 128);
        assert_eq!([of(0), of(-1), of(-7), of(1), of(7)], [0, 1, 7, 17, 23]);
        assert_eq!([of(-8), of(8), of(-127), of(127)], [8, 24, 15, 31]);
        assert_eq!([of(-500), of(500)], [15, 31]);
    }
}
