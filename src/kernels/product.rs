//! Matrix products: `x W + b`, and the same added in place to a window of a larger matrix.
//! The arithmetic is the `gemm` crate's; this file is the only one that calls it. Weights lie `[in, out]`, not as
//! checkpoints have them: with `[out, in]` gemm takes another summation order for small batches, and a row's result
//! would depend on how many rows go with it.
#![expect(unsafe_code, reason = "gemm takes raw pointers")]

use super::math::vectorized;
use super::small;
use super::threads::{share_chunks, share_rows, threads};
use super::view::{Matrix, MatrixMut, matrix, with_dense};
use candle_core::{CpuStorage, CustomOp2, InplaceOp3, Layout, Result, Shape, Tensor, bail};

/// `x [rows, in]`, `weight [in, out]`, `bias [out]` -> `x weight + bias`, `[rows, out]`. A weight in bf16 or f16 takes
/// half the memory; it is widened tile by tile, and all arithmetic is in f32.
pub fn product(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    x.apply_op2_no_bwd(weight, &Product { bias })
}

/// `y += x weight` in place; `y [rows, out]` may be a window of a larger tensor.
pub fn add_product(y: &Tensor, x: &Tensor, weight: &Tensor) -> Result<()> {
    y.inplace_op3(x, weight, &ProductInto { accumulate: true })
}

/// `y = x weight` in place; `y [rows, out]` may be a window of a larger tensor.
pub fn set_product(y: &Tensor, x: &Tensor, weight: &Tensor) -> Result<()> {
    y.inplace_op3(x, weight, &ProductInto { accumulate: false })
}

struct Product<'a> {
    bias: Option<&'a Tensor>,
}

impl CustomOp2 for Product<'_> {
    fn name(&self) -> &'static str {
        "product"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_l: &Layout, w: &CpuStorage, w_l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, columns) = (matrix(x, x_l)?, w_l.dims()[1]);
        let rows = x.rows;
        let mut y = vec![0f32; rows * columns];
        with_dense(self.bias, |bias| {
            if let Some(bias) = bias {
                y.chunks_exact_mut(columns).for_each(|row| row.copy_from_slice(bias));
            }
            let accumulate = bias.is_some();
            match w {
                CpuStorage::BF16(all) => widened(&mut y, accumulate, x, dense_part(all, w_l)?, columns),
                CpuStorage::F16(all) => widened(&mut y, accumulate, x, dense_part(all, w_l)?, columns),
                _ => {
                    let target = MatrixMut { data: &mut y, rows, columns, row_stride: columns };
                    multiply_shared(target, accumulate, x, matrix(w, w_l)?);
                }
            }
            Ok(())
        })?;
        Ok((CpuStorage::F32(y), Shape::from((rows, columns))))
    }
}

/// Columns of a weight that are widened at once: few enough for the tile to stay in cache.
const TILE: usize = 256;

/// `y = x weight`, or `y += x weight`, of a dense `weight [in, columns]` in half precision.
fn widened<T: Copy + Into<f32> + Sync>(y: &mut [f32], accumulate: bool, x: Matrix, weight: &[T], columns: usize) {
    let mut tile = vec![0f32; x.columns * TILE.min(columns)];
    for first in (0..columns).step_by(TILE) {
        let width = TILE.min(columns - first);
        let tile = &mut tile[..x.columns * width];
        share_rows(tile, width, |row, wide| {
            let half = &weight[row * columns + first..][..width];
            vectorized(
                #[inline(always)]
                || wide.iter_mut().zip(half).for_each(|(wide, half)| *wide = (*half).into()),
            );
        });
        let weight = Matrix::dense(tile, x.columns, width);
        let data = y.get_mut(first..).unwrap_or_default();
        let target = MatrixMut { data, rows: x.rows, columns: width, row_stride: columns };
        multiply_shared(target, accumulate, x, weight);
    }
}

fn dense_part<'a, T>(all: &'a [T], layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&all[start..end]),
        None => bail!("a weight in half precision must be dense, got strides {:?}", layout.stride()),
    }
}

struct ProductInto {
    accumulate: bool,
}

impl InplaceOp3 for ProductInto {
    fn name(&self) -> &'static str {
        "product_into"
    }

    fn cpu_fwd(
        &self,
        y: &mut CpuStorage,
        y_l: &Layout,
        x: &CpuStorage,
        x_l: &Layout,
        w: &CpuStorage,
        w_l: &Layout,
    ) -> Result<()> {
        let (x, weight) = (matrix(x, x_l)?, matrix(w, w_l)?);
        let (CpuStorage::F32(data), &[rows, columns], &[row_stride, 1]) = (y, y_l.dims(), y_l.stride()) else {
            bail!("a product needs an f32 window with dense rows, got {y_l:?}")
        };
        let target = MatrixMut { data: &mut data[y_l.start_offset()..], rows, columns, row_stride };
        multiply_shared(target, self.accumulate, x, weight);
        Ok(())
    }
}

/// Multiplications that are worth a thread's while.
const WORTH: usize = 1 << 20;

/// Inputs or outputs of a weight that is not worth packing, such as one of low rank.
const THIN: usize = 64;

/// As [`multiply`], rows shared out where they are worth it.
fn multiply_shared(y: MatrixMut, accumulate: bool, a: Matrix, b: Matrix) {
    let rows = y.rows.div_ceil(threads()).max(WORTH / (1 + y.columns * a.columns));
    let MatrixMut { data, columns, row_stride, .. } = y;
    let end = data.len().min(y.rows * row_stride);
    share_chunks(&mut data[..end], rows * row_stride, |chunk, data| {
        let some = rows.min(y.rows - chunk * rows);
        let a = Matrix { data: a.data.get(chunk * rows * a.row_stride..).unwrap_or_default(), rows: some, ..a };
        let target = MatrixMut { data, rows: some, columns, row_stride };
        // By what the weight is, not the rows, so that a row's result is the same whatever goes with it.
        match a.columns.min(columns) {
            0..=THIN if (a.column_stride, b.column_stride) == (1, 1) => small::multiply(target, accumulate, a, b),
            _ => multiply(target, accumulate, a, b),
        }
    });
}

/// `y = a b`, or `y += a b`.
///
/// # Panics
/// Where shapes do not fit, or a matrix reaches beyond its slice.
pub(super) fn multiply(y: MatrixMut, accumulate: bool, a: Matrix, b: Matrix) {
    assert_eq!((y.rows, y.columns, a.columns), (a.rows, b.columns, b.rows), "shapes of a product");
    if y.rows == 0 || y.columns == 0 {
        return;
    }
    let reach = |rows: usize, columns: usize, row_stride: usize, column_stride: usize| match rows * columns {
        0 => 0,
        _ => (rows - 1) * row_stride + (columns - 1) * column_stride + 1,
    };
    assert!(reach(y.rows, y.columns, y.row_stride, 1) <= y.data.len(), "y in bounds");
    assert!(y.rows == 1 || y.row_stride >= y.columns, "rows of y do not overlap");
    for m in [a, b] {
        assert!(reach(m.rows, m.columns, m.row_stride, m.column_stride) <= m.data.len(), "operand in bounds");
    }
    // SAFETY: all three pointers come from live slices, and the assertions above keep every element that the
    // shapes and strides reach inside them; `y` is borrowed mutably, so it overlaps neither operand.
    unsafe {
        gemm::gemm(
            y.rows,
            y.columns,
            a.columns,
            y.data.as_mut_ptr(),
            1,
            y.row_stride as isize,
            accumulate,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1f32,
            1f32,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::sample::normal;
    use candle_core::DType;

    fn random(shape: (usize, usize)) -> Tensor {
        normal(1.0, shape)
    }

    fn difference(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    #[test]
    fn product_is_candles_matmul_plus_bias() {
        let (x, w, b) = (random((13, 40)), random((40, 70)), random((1, 70)).squeeze(0).unwrap());
        let plain = x.matmul(&w).unwrap();
        assert!(difference(&product(&x, &w, None).unwrap(), &plain) < 1e-5);
        let plain = plain.broadcast_add(&b).unwrap();
        assert!(difference(&product(&x, &w, Some(&b)).unwrap(), &plain) < 1e-5);
    }

    #[test]
    fn add_product_changes_its_window_and_nothing_else() {
        let (y, x, w) = (random((9, 30)), random((4, 6)), random((6, 10)));
        let before = y.copy().unwrap();
        add_product(&y.narrow(0, 3, 4).unwrap().narrow(1, 20, 10).unwrap(), &x, &w).unwrap();
        let change = (y - before).unwrap();
        let plain = x.matmul(&w).unwrap();
        let plain = plain.pad_with_zeros(0, 3, 2).unwrap().pad_with_zeros(1, 20, 0).unwrap();
        assert!(difference(&change, &plain) < 1e-5);
    }

    #[test]
    fn a_row_does_not_depend_on_how_many_go_with_it() {
        let (x, w) = (random((200, 384)), random((384, 96)));
        let together = product(&x, &w, None).unwrap();
        for rows in [2, 3, 7, 30, 64] {
            let alone = product(&x.narrow(0, 100, rows).unwrap(), &w, None).unwrap();
            assert_eq!(difference(&alone, &together.narrow(0, 100, rows).unwrap()), 0.0, "{rows} rows");
        }
    }

    #[test]
    fn half_precision_is_the_product_with_the_rounded_weight() {
        let (x, w, b) = (random((13, 40)), random((40, 600)), random((1, 600)).squeeze(0).unwrap());
        for dtype in [DType::BF16, DType::F16] {
            let half = w.to_dtype(dtype).unwrap();
            let rounded = half.to_dtype(DType::F32).unwrap();
            for bias in [None, Some(&b)] {
                let ours = product(&x, &half, bias).unwrap();
                assert!(difference(&ours, &product(&x, &rounded, bias).unwrap()) < 1e-5, "{dtype:?}");
            }
        }
    }

    #[test]
    fn a_product_over_nothing_is_the_bias() {
        let (x, w, b) = (random((0, 4)), random((4, 3)), random((1, 3)).squeeze(0).unwrap());
        assert_eq!(product(&x, &w, Some(&b)).unwrap().dims(), [0, 3]);
    }

    #[test]
    #[should_panic(expected = "shapes of a product")]
    fn shapes_that_do_not_fit_are_refused() {
        let _ = product(&random((2, 4)), &random((5, 3)), None);
    }
}
