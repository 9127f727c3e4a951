//! Columns of a matrix scaled and shifted in place, each by its own numbers; sums, and differences added in place.

use super::math::vectorized;
use super::threads::{WORTH, share_chunks};
use super::view::dense;
use candle_core::{CpuStorage, CustomOp2, InplaceOp2, InplaceOp3, Layout, Result, Shape, Tensor, bail};

/// `y = y * factor + shift` column by column; `y [rows, columns]` may be a window of a larger tensor, `factor` and `shift`
/// are `[columns]`.
pub fn scale_columns(y: &Tensor, factor: &Tensor, shift: &Tensor) -> Result<()> {
    y.inplace_op3(factor, shift, &ScaleColumns)
}

/// `y += weight * (after - before)` in place; `y [rows, columns]` may be a window of a larger tensor, the others are dense.
pub fn add_difference(y: &Tensor, after: &Tensor, before: &Tensor, weight: f32) -> Result<()> {
    y.inplace_op3(after, before, &AddDifference { weight })
}

/// `y = x` in place; `y [rows, columns]` may be a window of a larger tensor, `x` is dense.
pub fn assign(y: &Tensor, x: &Tensor) -> Result<()> {
    y.inplace_op2(x, &Assign)
}

/// `a + b`, dense, of one shape.
pub fn sum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    a.apply_op2_no_bwd(b, &Sum)
}

struct Sum;

impl CustomOp2 for Sum {
    fn name(&self) -> &'static str {
        "sum"
    }

    fn cpu_fwd(&self, a: &CpuStorage, a_l: &Layout, b: &CpuStorage, b_l: &Layout) -> Result<(CpuStorage, Shape)> {
        if a_l.shape() != b_l.shape() {
            bail!("shapes of a sum: {:?} and {:?}", a_l.shape(), b_l.shape())
        }
        let mut y = dense(a, a_l)?.to_vec();
        let b = dense(b, b_l)?;
        share_chunks(&mut y, WORTH, |chunk, y| {
            let b = &b[chunk * WORTH..][..y.len()];
            vectorized(
                #[inline(always)]
                || y.iter_mut().zip(b).for_each(|(y, b)| *y += b),
            );
        });
        Ok((CpuStorage::F32(y), a_l.shape().clone()))
    }
}

struct Assign;

impl InplaceOp2 for Assign {
    fn name(&self) -> &'static str {
        "assign"
    }

    fn cpu_fwd(&self, y: &mut CpuStorage, y_l: &Layout, x: &CpuStorage, x_l: &Layout) -> Result<()> {
        let x = dense(x, x_l)?;
        for_each_row(y, y_l, |row, y| y.copy_from_slice(&x[row * y.len()..][..y.len()]))
    }
}

struct AddDifference {
    weight: f32,
}

impl InplaceOp3 for AddDifference {
    fn name(&self) -> &'static str {
        "add_difference"
    }

    fn cpu_fwd(
        &self,
        y: &mut CpuStorage,
        y_l: &Layout,
        after: &CpuStorage,
        after_l: &Layout,
        before: &CpuStorage,
        before_l: &Layout,
    ) -> Result<()> {
        let (after, before) = (dense(after, after_l)?, dense(before, before_l)?);
        for_each_row(y, y_l, |row, y| {
            let (after, before) = (&after[row * y.len()..], &before[row * y.len()..]);
            y.iter_mut().zip(after.iter().zip(before)).for_each(|(y, (a, b))| *y += self.weight * (a - b));
        })
    }
}

/// Calls `f` with every row of a window and its index.
fn for_each_row(y: &mut CpuStorage, layout: &Layout, mut f: impl FnMut(usize, &mut [f32])) -> Result<()> {
    let (CpuStorage::F32(y), &[rows, columns], &[stride, 1]) = (y, layout.dims(), layout.stride()) else {
        bail!("columns are changed in an f32 window with dense rows, got {layout:?}")
    };
    for row in 0..rows {
        let y = &mut y[layout.start_offset() + row * stride..][..columns];
        vectorized(
            #[inline(always)]
            || f(row, y),
        );
    }
    Ok(())
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
        for_each_row(y, y_l, |_, y| {
            y.iter_mut().zip(factor.iter().zip(shift)).for_each(|(y, (f, s))| *y = *y * f + s);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::sample::normal;

    #[test]
    fn a_sum_is_candles() {
        let random = |rows| normal(1.0, (rows, 400));
        let (a, b) = (random(100), random(100));
        let vectors = |t: Tensor| t.to_vec2::<f32>().unwrap();
        assert_eq!(vectors(sum(&a, &b).unwrap()), vectors((&a + &b).unwrap()));
        assert!(sum(&a, &random(50)).is_err());
    }

    #[test]
    fn a_window_is_changed_and_nothing_else() {
        let random = |rows, columns| normal(1.0, (rows, columns));
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
