//! Token vectors to one vector a sequence, as sentence-transformers' `Pooling` defines the modes.

use super::math::vectorized;
use super::threads::share_chunks;
use super::view::Rows;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use std::ops::Range;

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

impl Pooling {
    /// Every mode.
    pub const ALL: [Self; 6] =
        [Self::Cls, Self::Max, Self::Mean, Self::MeanSqrtLen, Self::WeightedMean, Self::LastToken];
}

/// `hidden [tokens, width]` and the sequences' offsets -> `[sequences, width]`. Of each sequence the first `left_out`
/// tokens, one number a sequence, do not count; none of them: an empty slice. Sums are in f32. Where no token counts, a
/// mean and the last token are 0, the maximum is -inf, and `Cls` is the first token after all, of which a sequence must
/// have one.
pub fn pool(hidden: &Tensor, offsets: &[usize], left_out: &[usize], mode: Pooling) -> Result<Tensor> {
    hidden.apply_op1_no_bwd(&Pool { offsets, left_out, mode })
}

struct Pool<'a> {
    offsets: &'a [usize],
    left_out: &'a [usize],
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
        share_chunks(&mut y, rows.width, |i, y| {
            let (start, end) = (self.offsets[i], self.offsets[i + 1]);
            let left_out = self.left_out.get(i).map_or(0, |left_out| *left_out);
            let tokens = (start + left_out).min(end)..end;
            match self.mode {
                Pooling::Cls if tokens.is_empty() => y.copy_from_slice(rows.row(start)),
                Pooling::Cls => y.copy_from_slice(rows.row(tokens.start)),
                Pooling::LastToken if tokens.is_empty() => {}
                Pooling::LastToken => y.copy_from_slice(rows.row(end - 1)),
                Pooling::Max => {
                    y.fill(f32::NEG_INFINITY);
                    tokens.for_each(|t| {
                        y.iter_mut()
                            .zip(rows.row(t))
                            .for_each(|(y, x)| *y = if *x > *y || x.is_nan() { *x } else { *y })
                    });
                }
                Pooling::Mean => weighted(y, rows, tokens, |_| 1.0, |n| n),
                Pooling::MeanSqrtLen => weighted(y, rows, tokens, |_| 1.0, f32::sqrt),
                // Tokens that are left out are counted all the same.
                Pooling::WeightedMean => weighted(y, rows, tokens, |t| (t - start + 1) as f32, |n| n),
            }
        });
        Ok((CpuStorage::F32(y), Shape::from((sequences, rows.width))))
    }
}

/// Sum of `weight(t)` times token `t`, over `divisor` of the sum of the weights.
fn weighted(
    y: &mut [f32],
    rows: Rows,
    tokens: Range<usize>,
    weight: impl Fn(usize) -> f32,
    divisor: impl Fn(f32) -> f32,
) {
    vectorized(
        #[inline(always)]
        || {
            let mut sum = 0.0;
            for t in tokens {
                let weight = weight(t);
                sum += weight;
                y.iter_mut().zip(rows.row(t)).for_each(|(y, x)| *y += weight * x);
            }
            let divisor = divisor(sum.max(1e-9));
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
            let pooled: Vec<Vec<f32>> = pool(&hidden, &[0, 1, 5], &[], mode).unwrap().to_vec2().unwrap();
            assert_eq!(pooled, [vec![9.0, 9.0], expected.to_vec()], "{mode:?}");
        }
    }

    #[test]
    fn tokens_that_are_left_out_do_not_count() {
        let hidden = Tensor::new(&[[9f32], [1.0], [2.0], [6.0], [7.0]], &Device::Cpu).unwrap();
        for (mode, expected, of_none) in [
            (Pooling::Cls, 2.0, 7.0),
            (Pooling::Max, 6.0, f32::NEG_INFINITY),
            (Pooling::Mean, 4.0, 0.0),
            (Pooling::MeanSqrtLen, 8.0 / 2f32.sqrt(), 0.0),
            (Pooling::WeightedMean, (3.0 * 2.0 + 4.0 * 6.0) / 7.0, 0.0),
            (Pooling::LastToken, 6.0, 0.0),
        ] {
            let pooled: Vec<Vec<f32>> = pool(&hidden, &[0, 4, 5], &[2, 3], mode).unwrap().to_vec2().unwrap();
            assert_eq!(pooled, [[expected], [of_none]], "{mode:?}");
        }
    }
}
