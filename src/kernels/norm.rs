//! LayerNorm and RMSNorm over the last dimension, with the residual added first where there is one.

use super::math::{sum, vectorized};
use super::threads::made_rows;
use super::view::{Rows, dense, with_dense};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

/// Which normalization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Mean removed, divided by the standard deviation.
    Layer,
    /// Divided by the root of the mean square.
    Rms,
}

/// `norm(x + residual) * weight + bias` over the last dimension of `x`; the result is dense, shaped as `x`.
/// `x` may be a window with dense rows; `weight` and `bias` are `[width]`. Mean and variance in two passes, in f32.
pub fn norm(
    x: &Tensor,
    residual: Option<&Tensor>,
    kind: NormKind,
    weight: &Tensor,
    bias: Option<&Tensor>,
    eps: f32,
) -> Result<Tensor> {
    x.apply_op2_no_bwd(weight, &Norm { residual, kind, bias, eps })
}

/// Rows of length 1, `[rows, width]`: each over the larger of its length and 1e-12, as torch.nn.functional.normalize has it.
pub fn unit(x: &Tensor) -> Result<Tensor> {
    x.apply_op1_no_bwd(&Unit)
}

struct Unit;

impl CustomOp1 for Unit {
    fn name(&self) -> &'static str {
        "unit"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let rows = Rows::of(x, layout)?;
        let y = made_rows(rows.count, rows.width, |i, y| {
            let x = rows.row(i);
            vectorized(
                #[inline(always)]
                || {
                    let length = sum(x, |x| x * x).sqrt();
                    // Not `max`, which makes 1e-12 of NaN.
                    let length = if length < 1e-12 { 1e-12 } else { length };
                    y.iter_mut().zip(x).for_each(|(y, x)| *y = x / length);
                },
            );
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }
}

struct Norm<'a> {
    residual: Option<&'a Tensor>,
    kind: NormKind,
    bias: Option<&'a Tensor>,
    eps: f32,
}

impl CustomOp2 for Norm<'_> {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_l: &Layout, w: &CpuStorage, w_l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, weight) = (Rows::of(x, x_l)?, dense(w, w_l)?);
        let width = rows.width;
        let y = with_dense(self.residual, |residual| {
            with_dense(self.bias, |bias| {
                let y = made_rows(rows.count, width, |i, y| {
                    y.copy_from_slice(rows.row(i));
                    let residual = residual.map(|all| &all[i * width..(i + 1) * width]);
                    vectorized(
                        #[inline(always)]
                        || self.row(y, residual, weight, bias),
                    );
                });
                Ok(y)
            })
        })?;
        Ok((CpuStorage::F32(y), x_l.shape().clone()))
    }
}

impl Norm<'_> {
    #[inline(always)]
    fn row(&self, y: &mut [f32], residual: Option<&[f32]>, weight: &[f32], bias: Option<&[f32]>) {
        if let Some(residual) = residual {
            y.iter_mut().zip(residual).for_each(|(y, r)| *y += r);
        }
        let n = y.len() as f32;
        let mean = match self.kind {
            NormKind::Layer => sum(y, |v| v) / n,
            NormKind::Rms => 0.0,
        };
        let variance = sum(y, |v| (v - mean) * (v - mean)) / n;
        let scale = 1.0 / (variance + self.eps).sqrt();
        y.iter_mut().zip(weight).for_each(|(y, w)| *y = (*y - mean) * scale * w);
        if let Some(bias) = bias {
            y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::sample::normal;
    use candle_core::{D, Device};

    fn random(shape: impl Into<Shape>) -> Tensor {
        normal(2.0, shape)
    }

    /// The same in candle's own operations.
    fn plain(x: &Tensor, kind: NormKind, weight: &Tensor, bias: &Tensor, eps: f64) -> Tensor {
        let centred = match kind {
            NormKind::Layer => x.broadcast_sub(&x.mean_keepdim(D::Minus1).unwrap()).unwrap(),
            NormKind::Rms => x.clone(),
        };
        let variance = (centred.sqr().unwrap().mean_keepdim(D::Minus1).unwrap() + eps).unwrap();
        let unit = centred.broadcast_div(&variance.sqrt().unwrap()).unwrap();
        unit.broadcast_mul(weight).unwrap().broadcast_add(bias).unwrap()
    }

    fn difference(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    #[test]
    fn both_kinds_with_a_residual_are_the_plain_ones() {
        let (x, r, w, b) = (random((11, 77)), random((11, 77)), random(77), random(77));
        for kind in [NormKind::Layer, NormKind::Rms] {
            let ours = norm(&x, Some(&r), kind, &w, Some(&b), 1e-5).unwrap();
            assert!(difference(&ours, &plain(&(&x + &r).unwrap(), kind, &w, &b, 1e-5)) < 1e-5, "{kind:?}");
        }
    }

    #[test]
    fn a_window_of_heads_is_normalized_head_by_head() {
        let (x, w, zero) = (random((6, 5, 16)), random(16), Tensor::zeros(16, x_dtype(), &Device::Cpu).unwrap());
        let window = x.narrow(1, 1, 3).unwrap();
        let ours = norm(&window, None, NormKind::Rms, &w, None, 1e-6).unwrap();
        assert!(difference(&ours, &plain(&window.contiguous().unwrap(), NormKind::Rms, &w, &zero, 1e-6)) < 1e-5);
    }

    fn x_dtype() -> candle_core::DType {
        candle_core::DType::F32
    }

    #[test]
    fn rows_of_length_one_keep_their_direction() {
        let x = random((5, 77));
        let length = x.sqr().unwrap().sum_keepdim(D::Minus1).unwrap().sqrt().unwrap();
        assert!(difference(&unit(&x).unwrap(), &x.broadcast_div(&length).unwrap()) < 1e-6);
        let rows = Tensor::new(&[[0f32, 0.0], [f32::NAN, 1.0]], &Device::Cpu).unwrap();
        let rows = unit(&rows).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(rows[0], [0.0, 0.0]);
        assert!(rows[1].iter().all(|x| x.is_nan()));
    }

    #[test]
    fn a_large_mean_costs_no_precision() {
        let x = (random((3, 64)) + 1000.0).unwrap();
        let (one, zero) =
            (Tensor::ones(64, x_dtype(), &Device::Cpu).unwrap(), Tensor::zeros(64, x_dtype(), &Device::Cpu).unwrap());
        let wide = x.to_dtype(candle_core::DType::F64).unwrap();
        let (one64, zero64) = (one.to_dtype(wide.dtype()).unwrap(), zero.to_dtype(wide.dtype()).unwrap());
        let exact = plain(&wide, NormKind::Layer, &one64, &zero64, 1e-12).to_dtype(x_dtype()).unwrap();
        let ours = norm(&x, None, NormKind::Layer, &one, Some(&zero), 1e-12).unwrap();
        assert!(difference(&ours, &exact) < 1e-3);
    }
}
