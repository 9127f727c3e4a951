//! Numbers that look random, for tests, and are the same in every run: a bound that holds once holds always.

use candle_core::{Device, Shape, Tensor};
use std::cell::Cell;

const START: u64 = 2026;

thread_local! {
    /// Every test has a thread of its own.
    static STATE: Cell<u64> = const { Cell::new(START) };
}

/// Begins anew, so that what follows has the same numbers whatever came before.
pub fn restart() {
    STATE.set(START);
}

/// Uniform in (0, 1] (splitmix64).
fn uniform() -> f64 {
    STATE.set(STATE.get().wrapping_add(0x9e37_79b9_7f4a_7c15));
    let x = STATE.get();
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (((x ^ (x >> 31)) >> 11) + 1) as f64 / (1u64 << 53) as f64
}

/// A whole number below another.
#[cfg(test)]
pub fn below(end: usize) -> usize {
    (uniform() * end as f64).ceil() as usize - 1
}

/// Normal around 0 (Box and Muller).
pub fn normal(deviation: f64, shape: impl Into<Shape>) -> Tensor {
    let shape = shape.into();
    let number = |_| (deviation * (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32;
    let numbers: Vec<f32> = (0..shape.elem_count()).map(number).collect();
    Tensor::from_vec(numbers, shape, &Device::Cpu).expect("as many numbers as the shape has")
}
