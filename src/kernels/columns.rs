//! Columns of a matrix scaled and shifted in place, each by its own numbers.

use super::math::vectorized;
use super::view::dense;
use candle_core::{CpuStorage, InplaceOp3, Layout, Result, Tensor, bail};

/// `y = y * factor + shift` column by column; `y [rows, columns]` may be a window of a larger tensor, `factor` and `shift`
/// are `[columns]`.
pub fn scale_columns(y: &Tensor, factor: &Tensor, shift: &Tensor) -> Result<()> {
    y.inplace_op3(factor, shift, &ScaleColumns)
}

struct ScaleColumns;

impl InplaceOp3 for ScaleColumns {
    fn name(&self) -> &'static str {
        "scale_columns"
    }

    fn cpu_fwd(
        &self,
        y: &mut CpuStorage,
        y_l: &Layout,
        factor: &CpuStorage,
        factor_l: &Layout,
        shift: &CpuStorage,
        shift_l: &Layout,
    ) -> Result<()> {
        let (factor, shift) = (dense(factor, factor_l)?, dense(shift, shift_l)?);
        let (CpuStorage::F32(y), &[rows, columns], &[stride, 1]) = (y, y_l.dims(), y_l.stride()) else {
            bail!("scale_columns needs an f32 window with dense rows, got {y_l:?}")
        };
        for row in 0..rows {
            let y = &mut y[y_l.start_offset() + row * stride..][..columns];
            vectorized(
                #[inline(always)]
                || y.iter_mut().zip(factor.iter().zip(shift)).for_each(|(y, (f, s))| *y = *y * f + s),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn a_window_is_changed_and_nothing_else() {
        let random = |rows, columns| Tensor::randn(0f32, 1.0, (rows, columns), &Device::Cpu).unwrap();
        let (y, factor, shift) = (random(5, 12), random(1, 4).squeeze(0).unwrap(), random(1, 4).squeeze(0).unwrap());
        let before = y.copy().unwrap();
        let window = |t: &Tensor| t.narrow(0, 1, 3).unwrap().narrow(1, 6, 4).unwrap();
        scale_columns(&window(&y), &factor, &shift).unwrap();
        let plain = window(&before).broadcast_mul(&factor).unwrap().broadcast_add(&shift).unwrap();
        let gap = |t: Tensor| t.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(gap((window(&y) - &plain).unwrap()) < 1e-6);
        let change = (plain - window(&before)).unwrap().pad_with_zeros(0, 1, 1).unwrap();
        assert!(gap(((y - before).unwrap() - change.pad_with_zeros(1, 6, 2).unwrap()).unwrap()) < 1e-6);
    }
}
