//! Pooling. See the CPU twin of the same name.

use super::array::Array;
use super::launch::{Launch, suffix};
use crate::error::{Error, Result};
use crate::kernels::Pooling;
use candle_core::DType;

/// Columns of a block.
const COLUMNS: usize = 32;

/// See the CPU twin; of f32, or of what has a [rest](Array::rest), which is read with it.
pub fn pool(hidden: &Array, offsets: &[usize], left_out: &[usize], mode: Pooling) -> Result<Array> {
    let rest = hidden.rest();
    let hidden = hidden.to_dtype(if rest.is_some() { hidden.dtype() } else { DType::F32 })?;
    let [_, width, stride] = hidden.matrix()?;
    if let Some(rest) = rest.filter(|rest| rest.strides() != hidden.strides()) {
        return Err(Error::Internal(format!("{rest:?} does not lie as {hidden:?}")));
    }
    let (gpu, sequences) = (hidden.gpu(), offsets.len() - 1);
    let numbers = |all: &[usize]| all.iter().map(|number| *number as u32).collect::<Vec<u32>>();
    let offsets = Array::of_numbers(gpu, &numbers(offsets))?;
    let left_out = match left_out {
        [] => None,
        some => Some(Array::of_numbers(gpu, &numbers(some))?),
    };
    let y = Array::new(gpu, DType::F32, &[sequences, width])?;
    let launch = Launch::on(gpu).array(&y).array(&hidden);
    let (launch, kernel) = match rest {
        Some(rest) => (launch.array(rest), format!("pool_split_{}", suffix(hidden.dtype()))),
        None => (launch, "pool_f32".into()),
    };
    let launch = launch.array(&offsets).optional(left_out.as_ref()).int(code(mode)).sizes([width, stride]);
    launch.run(&kernel, [sequences, width.div_ceil(COLUMNS)])?;
    Ok(y)
}

/// What pooling.cu calls it.
fn code(mode: Pooling) -> i32 {
    match mode {
        Pooling::Cls => 0,
        Pooling::Max => 1,
        Pooling::Mean => 2,
        Pooling::MeanSqrtLen => 3,
        Pooling::WeightedMean => 4,
        Pooling::LastToken => 5,
    }
}

#[cfg(test)]
#[cfg(feature = "emulated")]
mod tests {
    use super::*;
    use crate::kernels::cuda::{Gpu, asked, norm};
    use crate::kernels::sample::normal;
    use crate::kernels::{NormKind, Normalization};

    /// What a norm passes on in 24 bits is pooled as it is, to the bits of the same in one piece.
    #[test]
    fn what_has_a_rest_is_pooled_with_it() {
        let gpu = Gpu::emulated(64).unwrap();
        let offsets = [0, 1, 20, 30];
        for (dtype, width) in [(DType::BF16, 64), (DType::F16, 64), (DType::BF16, 33), (DType::F16, 36)] {
            let on = |tensor: candle_core::Tensor| Array::of(&gpu, &tensor).unwrap();
            let (weight, bias) = (on(normal(1.0, width)), on(normal(1.0, width)));
            let (kind, rounded) = (NormKind::Layer, Some(dtype));
            let norm_of = Normalization { kind, weight: &weight, bias: Some(&bias), eps: 1e-5, rounded };
            let x = on(normal(1.0, (40, width)).to_dtype(dtype).unwrap());
            let hidden = norm(&x, Some(&on(normal(1.0, (40, width)))), &norm_of).unwrap();
            let hidden = hidden.narrow(0, 10, 30).unwrap();
            assert!(hidden.rest().is_some());
            let whole = hidden.whole().unwrap();
            for mode in Pooling::ALL {
                let read = |hidden: &Array, left_out: &[usize]| {
                    let y = pool(hidden, &offsets, left_out, mode).unwrap();
                    y.depart().unwrap().wait().unwrap().to_vec2::<f32>().unwrap()
                };
                for left_out in [&[][..], &[0, 3, 10]] {
                    asked::names();
                    let pooled = read(&hidden, left_out);
                    assert_eq!(asked::names(), [format!("pool_split_{}", suffix(dtype))]);
                    assert_eq!(pooled, read(&whole, left_out), "{mode:?} of {dtype:?}, {width} wide");
                }
            }
        }
    }
}
