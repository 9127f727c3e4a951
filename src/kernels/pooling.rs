//! Token vectors to one vector a sequence, as sentence-transformers' `Pooling` defines the modes.

use super::math::vectorized;
use super::view::Rows;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// A pooling mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pooling {
    /// The first token.
    Cls,
    /// Elementwise maximum.
    Max,
    /// Sum over the number of tokens.
    Mean,
    /// Sum over the root of the number of tokens.
    MeanSqrtLen,
    /// Mean weighted by 1, 2, 3, ...
    WeightedMean,
    /// The last token.
    LastToken,
}

/// `hidden [tokens, width]` and the sequences' offsets -> `[sequences, width]`. Sums are in f32. The mean of an empty
/// sequence is 0; other modes are not for one.
pub fn pool(hidden: &Tensor, offsets: &[usize], mode: Pooling) -> Result<Tensor> {
    hidden.apply_op1_no_bwd(&Pool { offsets, mode })
}

struct Pool<'a> {
    offsets: &'a [usize],
    mode: Pooling,
}

impl CustomOp1 for Pool<'_> {
    fn name(&self) -> &'static str {
        "pool"
    }

    fn cpu_fwd(&self, hidden: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let rows = Rows::of(hidden, layout)?;
        let sequences = self.offsets.len() - 1;
        let mut y = vec![0f32; sequences * rows.width];
        y.par_chunks_exact_mut(rows.width).zip(self.offsets.par_windows(2)).for_each(|(y, span)| {
            let tokens = span[0]..span[1];
            match self.mode {
                Pooling::Cls => y.copy_from_slice(rows.row(tokens.start)),
                Pooling::LastToken => y.copy_from_slice(rows.row(tokens.end - 1)),
                Pooling::Max => {
                    y.fill(f32::NEG_INFINITY);
                    tokens.for_each(|t| {
                        y.iter_mut()
                            .zip(rows.row(t))
                            .for_each(|(y, x)| *y = if *x > *y || x.is_nan() { *x } else { *y })
                    });
                }
                Pooling::Mean => weighted(y, rows, span, |_| 1.0, |n| n),
                Pooling::MeanSqrtLen => weighted(y, rows, span, |_| 1.0, f32::sqrt),
                Pooling::WeightedMean => weighted(y, rows, span, |i| i as f32 + 1.0, |n| n * (n + 1.0) / 2.0),
            }
        });
        Ok((CpuStorage::F32(y), Shape::from((sequences, rows.width))))
    }
}

/// Sum of `weight(i)` times token `i`, over `divisor(tokens)`.
fn weighted(y: &mut [f32], rows: Rows, span: &[usize], weight: impl Fn(usize) -> f32, divisor: impl Fn(f32) -> f32) {
    let tokens = span[1] - span[0];
    vectorized(
        #[inline(always)]
        || {
            for i in 0..tokens {
                let weight = weight(i);
                y.iter_mut().zip(rows.row(span[0] + i)).for_each(|(y, x)| *y += weight * x);
            }
            let divisor = divisor(tokens as f32).max(1e-9);
            y.iter_mut().for_each(|y| *y /= divisor);
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn every_mode_does_what_its_name_says() {
        let hidden =
            Tensor::new(&[[9f32, 9.0], [1.0, -8.0], [3.0, -2.0], [5.0, -5.0], [5.0, -5.0]], &Device::Cpu).unwrap();
        let root = 4f32.sqrt();
        for (mode, expected) in [
            (Pooling::Cls, [1.0, -8.0]),
            (Pooling::Max, [5.0, -2.0]),
            (Pooling::Mean, [3.5, -5.0]),
            (Pooling::MeanSqrtLen, [14.0 / root, -20.0 / root]),
            (Pooling::WeightedMean, [(1.0 + 6.0 + 15.0 + 20.0) / 10.0, (-8.0 - 4.0 - 15.0 - 20.0) / 10.0]),
            (Pooling::LastToken, [5.0, -5.0]),
        ] {
            let pooled: Vec<Vec<f32>> = pool(&hidden, &[0, 1, 5], mode).unwrap().to_vec2().unwrap();
            assert_eq!(pooled, [vec![9.0, 9.0], expected.to_vec()], "{mode:?}");
        }
    }
}
