//! Rotary position embedding (RoFormer, arXiv:2104.09864), halves rotated against each other as transformers does.

use super::math::vectorized;
use super::threads::made_rows;
use super::view::{Rows, dense};
use candle_core::{CpuStorage, CustomOp3, Device, Layout, Result, Shape, Tensor};

/// Cosines and sines, `[positions, frequencies]` each, of position * frequency, times `factor`; in f32 as transformers
/// computes them. Frequencies are in radians a position.
pub fn rotary_tables(positions: usize, frequencies: &[f32], factor: f64) -> Result<(Tensor, Tensor)> {
    let angles: Vec<f32> =
        (0..positions).flat_map(|position| frequencies.iter().map(move |f| position as f32 * f)).collect();
    let angles = Tensor::from_vec(angles, (positions, frequencies.len()), &Device::Cpu)?;
    Ok(((angles.cos()? * factor)?, (angles.sin()? * factor)?))
}

/// `x [tokens, heads, width]` rotated by its tokens' positions; the result is dense.
/// `offsets` are the sequences' first tokens and the total, so that positions start at 0 in each.
pub fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor, offsets: &[usize]) -> Result<Tensor> {
    x.apply_op3_no_bwd(cos, sin, &Rotate { offsets })
}

struct Rotate<'a> {
    offsets: &'a [usize],
}

impl CustomOp3 for Rotate<'_> {
    fn name(&self) -> &'static str {
        "rotate"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_l: &Layout,
        cos: &CpuStorage,
        cos_l: &Layout,
        sin: &CpuStorage,
        sin_l: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, cos, sin) = (Rows::of(x, x_l)?, dense(cos, cos_l)?, dense(sin, sin_l)?);
        let (width, heads) = (rows.width, x_l.dims()[1]);
        let half = width / 2;
        let positions: Vec<usize> = self.offsets.windows(2).flat_map(|w| 0..w[1] - w[0]).collect();
        let y = made_rows(rows.count, width, |i, y| {
            let angles = positions[i / heads] * half..(positions[i / heads] + 1) * half;
            let (cos, sin) = (&cos[angles.clone()], &sin[angles]);
            let ((x1, x2), (y1, y2)) = (rows.row(i).split_at(half), y.split_at_mut(half));
            vectorized(
                #[inline(always)]
                || {
                    for j in 0..half {
                        y1[j] = x1[j] * cos[j] - x2[j] * sin[j];
                        y2[j] = x2[j] * cos[j] + x1[j] * sin[j];
                    }
                },
            );
        });
        Ok((CpuStorage::F32(y), x_l.shape().clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::sample::normal;

    #[test]
    fn positions_restart_in_every_sequence() {
        let x = normal(1.0, (7, 3, 8));
        let (cos, sin) = rotary_tables(16, &[1.0, 0.1, 0.01, 0.001], 1.0).unwrap();
        let packed = rotate(&x, &cos, &sin, &[0, 3, 7]).unwrap();
        let alone = rotate(&x.narrow(0, 3, 4).unwrap(), &cos, &sin, &[0, 4]).unwrap();
        let same: Vec<f32> = packed.narrow(0, 3, 4).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(same, alone.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    }

    #[test]
    fn a_pair_is_turned_by_its_angle() {
        let x = Tensor::new(&[[[1f32, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]], &Device::Cpu).unwrap();
        let (cos, sin) = rotary_tables(4, &[1.0], 1.0).unwrap();
        let y: Vec<f32> = rotate(&x, &cos, &sin, &[0, 3]).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let (one, two) = (1f32, 2f32);
        let expected = [1.0, 0.0, one.cos(), one.sin(), -two.sin(), two.cos()];
        assert!(y.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{y:?}");
    }
}
