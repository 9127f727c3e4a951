//! Whether every element is a finite number.

use super::view::with_dense;
use candle_core::{Result, Tensor};

/// False where a dense tensor holds NaN or infinity.
pub fn all_finite(tensor: &Tensor) -> Result<bool> {
    // Without an early end it vectorizes.
    let finite = |values: &[f32]| values.iter().fold(true, |all, value| all & value.is_finite());
    with_dense(Some(tensor), |values| Ok(values.is_none_or(finite)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn one_element_is_enough() {
        let of =
            |last: f32| all_finite(&Tensor::new(&[0f32, f32::MAX, f32::MAX, last], &Device::Cpu).unwrap()).unwrap();
        assert!(of(-1.0));
        assert!(!of(f32::NAN) && !of(f32::NEG_INFINITY));
    }
}
