//! LayerNorm and RMSNorm. See the CPU twin of the same name.

use super::array::Array;
use super::launch::{BLOCK, Launch, suffix};
use crate::error::{Error, Result};
use crate::kernels::{NormKind, Normalization};
use candle_core::DType;

/// Columns up to which a warp has a row.
const OF_WARP: usize = 1024;

/// Warps of a block.
const WARPS: usize = BLOCK as usize / 32;

/// See the CPU twin. The result is f32 where `x` or the residual is, else of their type; weights are f32. Where it is to be
/// rounded too, a sum of rows in 16 bits and of a residual is in 24, see split.cuh.
pub fn norm(x: &Array, residual: Option<&Array>, norm: &Normalization<Array>) -> Result<Array> {
    let elements = x.elements();
    if let Some(residual) = residual.filter(|residual| is_split(x, residual, norm)) {
        return norm_split(x, residual.dense(elements)?, norm);
    }
    let x = &x.whole()?;
    let residual = residual.map(Array::whole).transpose()?;
    let residual = residual.as_ref().map(|residual| residual.dense(elements)).transpose()?;
    let rows = x.rows()?;
    let other = residual.map_or(x.dtype(), Array::dtype);
    let dtype = if other == x.dtype() { other } else { DType::F32 };
    let y = Array::new(x.gpu(), dtype, x.dims())?;
    // Of three types one at least is of 16 bits.
    let halves = [x.dtype(), other, norm.rounded.unwrap_or(DType::BF16)];
    let half = halves.into_iter().find(|dtype| *dtype != DType::F32).unwrap_or(DType::BF16);
    let rounded = norm.rounded.filter(|rounded| dtype == DType::F32 && *rounded == half);
    let rounded = rounded.map(|rounded| Array::new(x.gpu(), rounded, x.dims())).transpose()?;
    let launch = Launch::on(x.gpu()).array(&y).optional(rounded.as_ref()).array(x).optional(residual);
    let launch = launch.array(norm.weight).optional(norm.bias);
    let launch = launch.int(i32::from(norm.kind == NormKind::Layer)).float(norm.eps);
    let count = rows.outer * rows.inner;
    let launch = launch.sizes([count, rows.inner, rows.width, rows.outer_stride, rows.inner_stride]);
    let kernel = format!("norm_{}_{}_{}", suffix(x.dtype()), suffix(other), suffix(half));
    launch.run(&kernel, [blocks(count, rows.width), 1])?;
    Ok(y.with_rounded(rounded))
}

/// Whether the sum is passed on as numbers of 16 bits and their rest: where it is of a product and of what was passed on.
fn is_split(x: &Array, residual: &Array, norm: &Normalization<Array>) -> bool {
    let is_passed_on = residual.dtype() == DType::F32 || residual.rest().is_some() && residual.dtype() == x.dtype();
    let is_product = x.dtype() != DType::F32 && x.rest().is_none() && x.is_dense() && x.dims().len() == 2;
    norm.rounded == Some(x.dtype()) && is_product && is_passed_on
}

fn norm_split(x: &Array, residual: &Array, norm: &Normalization<Array>) -> Result<Array> {
    let [rows, width, _] = x.matrix()?;
    let (y, rest) = (Array::new(x.gpu(), x.dtype(), x.dims())?, Array::new(x.gpu(), DType::U8, x.dims())?);
    let (whole, high) = match residual.rest() {
        Some(_) => (None, Some(residual.to_dtype(x.dtype())?)),
        None => (Some(residual), None),
    };
    let launch = Launch::on(x.gpu()).array(&y).array(&rest).array(x).optional(whole).optional(high.as_ref());
    let launch = launch.optional(residual.rest()).array(norm.weight).optional(norm.bias);
    let launch = launch.int(i32::from(norm.kind == NormKind::Layer)).float(norm.eps).sizes([rows, width]);
    launch.run(&format!("norm_split_{}", suffix(x.dtype())), [blocks(rows, width), 1])?;
    Ok(y.with_rest(rest))
}

/// Numbers and their rest in f32.
pub(super) fn join(x: &Array) -> Result<Array> {
    let (high, rest) = (x.to_dtype(x.dtype())?, x.rest());
    let ([rows, width, stride], y) = (high.matrix()?, Array::new(x.gpu(), DType::F32, x.dims())?);
    if stride != width && rows > 1 {
        return Err(Error::Internal(format!("rows of {x:?} are not dense")));
    }
    let launch = Launch::on(x.gpu()).array(&y).array(&high).optional(rest).sizes([rows, width]);
    launch.run(&format!("join_{}", suffix(x.dtype())), [rows, 1])?;
    Ok(y)
}

/// See the CPU twin; of f32.
pub fn unit(x: &Array) -> Result<Array> {
    let [rows, width, stride] = x.matrix()?;
    let y = Array::new(x.gpu(), DType::F32, x.dims())?;
    let launch = Launch::on(x.gpu()).array(&y).array(x).sizes([rows, width, stride]);
    launch.run("unit_f32", [blocks(rows, width), 1])?;
    Ok(y)
}

/// A block has a wide row, or one for each of its warps.
fn blocks(rows: usize, width: usize) -> usize {
    if width > OF_WARP { rows } else { rows.div_ceil(WARPS) }
}

#[cfg(test)]
#[cfg(feature = "emulated")]
mod tests {
    use super::*;
    use crate::kernels::cuda::Gpu;
    use crate::kernels::sample::normal;
    use candle_core::Tensor;

    fn read(y: &Array) -> Vec<f32> {
        let y = y.depart().unwrap().wait().unwrap().to_dtype(DType::F32).unwrap();
        y.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Beyond the numbers of 16 bits, or none at all, it is not finite again when it is joined.
    #[test]
    fn what_is_not_finite_stays_so_when_it_is_passed_on() {
        let gpu = Gpu::emulated(16).unwrap();
        let on = |numbers: Vec<f32>, dims: &[usize]| {
            Array::of(&gpu, &Tensor::from_vec(numbers, dims, &candle_core::Device::Cpu).unwrap()).unwrap()
        };
        let x = on((0..8).map(|i| (i % 3) as f32).collect(), &[2, 4]).to_dtype(DType::F16).unwrap();
        let passed = on(vec![0.5; 8], &[2, 4]);
        let (weight, bias) = (on(vec![1.0; 4], &[4]), on(vec![7e4, f32::NAN, f32::NEG_INFINITY, 1.0], &[4]));
        let kind = NormKind::Layer;
        let norm_of = Normalization { kind, weight: &weight, bias: Some(&bias), eps: 1e-5, rounded: Some(DType::F16) };
        let y = norm(&x, Some(&passed), &norm_of).unwrap();
        assert!(y.rest().is_some());
        for row in read(&y.whole().unwrap()).chunks(4) {
            assert!(row[0] == f32::INFINITY && row[1].is_nan() && row[2] == f32::NEG_INFINITY, "{row:?}");
            assert!(row[3].is_finite());
        }
    }

    /// Sums are passed on to 16 or more bits of the number, and to products as the nearest of theirs.
    #[test]
    fn what_is_passed_on_is_the_number_in_24_bits() {
        let gpu = Gpu::emulated(64).unwrap();
        let widths = [64, 33, 384, 768, 1024, 1500];
        for (dtype, width) in widths.into_iter().flat_map(|width| [(DType::BF16, width), (DType::F16, width)]) {
            let on = |t: &Tensor, dtype: DType| Array::of(&gpu, &t.to_dtype(dtype).unwrap()).unwrap();
            let x = on(&normal(1.0, (50, width)), dtype);
            let (weight, bias) = (on(&normal(1.0, width), DType::F32), on(&normal(1.0, width), DType::F32));
            let norm_of = |rounded| {
                let (weight, bias) = (&weight, Some(&bias));
                Normalization { kind: NormKind::Layer, weight, bias, eps: 1e-5, rounded }
            };
            let mut passed = on(&normal(1.0, (50, width)), DType::F32);
            for round in 0..3 {
                // Of the very same residual.
                let exact = norm(&x, Some(&passed.whole().unwrap()), &norm_of(None)).unwrap();
                passed = norm(&x, Some(&passed), &norm_of(Some(dtype))).unwrap();
                assert!(passed.rest().is_some() && passed.dtype() == dtype, "round {round}");
                let nearest = exact.to_dtype(dtype).unwrap();
                assert_eq!(read(&passed.to_dtype(dtype).unwrap()), read(&nearest));
                // Joined, it is rounded to the same again.
                let again = passed.whole().unwrap().to_dtype(dtype).unwrap();
                assert_eq!(read(&again), read(&nearest));
                let narrowed = passed.narrow(0, 20, 30).unwrap();
                assert_eq!(read(&narrowed), read(&passed)[20 * width..]);
                for ((whole, exact), nearest) in read(&passed).iter().zip(read(&exact)).zip(read(&nearest)) {
                    let bound = if dtype == DType::BF16 { 3.1e-5 } else { 3.9e-6 } * exact.abs() + 1e-7;
                    assert!((whole - exact).abs() <= bound, "{whole} {exact} {nearest}");
                }
            }
        }
    }
}
