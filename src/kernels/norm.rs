//! LayerNorm and RMSNorm over the last dimension, with the residual added first where there is one.
#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "loads and stores of vectors"))]

use super::math::{sum, vectorized};
use super::threads::made_rows;
use super::view::{Rows, dense, with_dense};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Layout, Result, Shape, Tensor};

/// Which normalization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Mean removed, divided by the standard deviation.
    Layer,
    /// Divided by the root of the mean square.
    Rms,
}

/// A normalization with its parameters; tensors of `T`.
pub struct Normalization<'a, T> {
    /// Which one.
    pub kind: NormKind,
    /// `[width]`.
    pub weight: &'a T,
    /// `[width]`.
    pub bias: Option<&'a T>,
    /// Added to the variance.
    pub eps: f32,
    /// On a GPU: the type of 16 bits in which the result is wanted too, as products take it.
    pub rounded: Option<DType>,
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
                    let residual = residual.map(|all| &all[i * width..(i + 1) * width]);
                    self.row(y, rows.row(i), residual, weight, bias);
                });
                Ok(y)
            })
        })?;
        Ok((CpuStorage::F32(y), x_l.shape().clone()))
    }
}

impl Norm<'_> {
    fn row(&self, y: &mut [f32], x: &[f32], residual: Option<&[f32]>, weight: &[f32], bias: Option<&[f32]>) {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512f") {
            return avx512::row(self, y, x, residual, weight, bias);
        }
        y.copy_from_slice(x);
        vectorized(
            #[inline(always)]
            || self.change(y, residual, weight, bias),
        );
    }

    #[inline(always)]
    fn change(&self, y: &mut [f32], residual: Option<&[f32]>, weight: &[f32], bias: Option<&[f32]>) {
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

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{Norm, NormKind};
    use crate::kernels::math::mask;
    use std::arch::x86_64::*;

    /// See [`Norm::change`](super::Norm::change).
    ///
    /// # Panics
    /// Where slices are not of one length, or the machine has no AVX-512.
    pub fn row(norm: &Norm, y: &mut [f32], x: &[f32], residual: Option<&[f32]>, weight: &[f32], bias: Option<&[f32]>) {
        let all = [Some(x), residual, Some(weight), bias];
        assert!(all.into_iter().flatten().all(|slice| slice.len() == y.len()), "slices of one length");
        assert!(is_x86_feature_detected!("avx512f"), "AVX-512");
        // SAFETY: the machine has AVX-512, and all slices are of one length.
        unsafe { vectors(norm, y, x, residual, weight, bias) }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn vectors(
        norm: &Norm,
        y: &mut [f32],
        x: &[f32],
        residual: Option<&[f32]>,
        w: &[f32],
        bias: Option<&[f32]>,
    ) {
        let (length, y) = (y.len(), y.as_mut_ptr());
        // What of a vector lies before the end.
        let inside = |at: usize| mask(length.saturating_sub(at));
        // SAFETY: the mask leaves what lies in a slice.
        let load = |from: *const f32, at: usize| unsafe { _mm512_maskz_loadu_ps(inside(at), from.wrapping_add(at)) };
        // SAFETY: as above.
        let store = |at: usize, v: __m512| unsafe { _mm512_mask_storeu_ps(y.wrapping_add(at), inside(at), v) };
        let summed = sum(length, |at| {
            let x = load(x.as_ptr(), at);
            let v = residual.map_or(x, |residual| _mm512_add_ps(x, load(residual.as_ptr(), at)));
            store(at, v);
            v
        });
        let mean = _mm512_set1_ps(match norm.kind {
            NormKind::Layer => summed / length as f32,
            NormKind::Rms => 0.0,
        });
        let squares = sum(length, |at| {
            // Behind the end stands no distance from the mean.
            let v = _mm512_maskz_sub_ps(inside(at), load(y, at), mean);
            _mm512_mul_ps(v, v)
        });
        let scale = _mm512_set1_ps(1.0 / (squares / length as f32 + norm.eps).sqrt());
        for at in (0..length).step_by(16) {
            let v = _mm512_mul_ps(_mm512_mul_ps(_mm512_sub_ps(load(y, at), mean), scale), load(w.as_ptr(), at));
            store(at, bias.map_or(v, |bias| _mm512_add_ps(v, load(bias.as_ptr(), at))));
        }
    }

    /// The sum of all that `f` gives for every 16th place, four vectors side by side.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn sum(length: usize, f: impl Fn(usize) -> __m512) -> f32 {
        let mut sums = [_mm512_setzero_ps(); 4];
        for first in (0..length).step_by(64) {
            for (vector, sum) in sums.iter_mut().enumerate() {
                *sum = _mm512_add_ps(*sum, f(first + 16 * vector));
            }
        }
        let [a, b, c, d] = sums;
        _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)))
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
    fn every_length_is_the_plain_loops() {
        for width in [1, 15, 16, 17, 64, 77, 100, 384] {
            let numbers = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let [x, r, w, b] = [0, 1, 2, 3].map(|i| numbers(random((i + 1, width)))[i * width..].to_vec());
            for (kind, residual, bias) in
                [(NormKind::Layer, Some(r.as_slice()), None), (NormKind::Rms, None, Some(b.as_slice()))]
            {
                let norm = Norm { residual: None, kind, bias: None, eps: 1e-5 };
                let (mut ours, mut plain) = (vec![7.0; width], x.clone());
                norm.row(&mut ours, &x, residual, &w, bias);
                norm.change(&mut plain, residual, &w, bias);
                assert!(ours.iter().zip(&plain).all(|(a, b)| (a - b).abs() < 1e-5), "{kind:?} {width}");
            }
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
