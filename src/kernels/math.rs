//! Branch-free elementary functions that a compiler turns into vector code, and their run-time dispatch.

/// Runs a loop with the widest vector instructions this machine has.
#[inline(always)]
pub fn vectorized<R>(loop_body: impl FnOnce() -> R) -> R {
    // `pulp` implements dispatch for closures through this adapter only.
    struct Body<F>(F);
    impl<R, F: FnOnce() -> R> pulp::NullaryFnOnce for Body<F> {
        type Output = R;
        #[inline(always)]
        fn call(self) -> R {
            (self.0)()
        }
    }
    pulp::Arch::new().dispatch(Body(loop_body))
}

/// The first of 16 numbers, so many of them, as the bits of a mask.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn mask(count: usize) -> u16 {
    if count < 16 { (1 << count) - 1 } else { !0 }
}

/// e^x, relative error below 3e-7: 2^n times the Taylor series of e^r, |r| <= ln(2)/2.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer without a rounding instruction.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let series = 1.0 / 5040.0;
    let series = series * r + 1.0 / 720.0;
    let series = series * r + 1.0 / 120.0;
    let series = series * r + 1.0 / 24.0;
    let series = series * r + 1.0 / 6.0;
    let series = series * r + 0.5;
    let series = series * r + 1.0;
    let series = series * r + 1.0;
    let exponent = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    series * f32::from_bits(((exponent + 127) << 23) as u32)
}

/// tanh(x) by the exponential.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// Coefficients of [`erf`], highest power first: those of Eigen's in single precision.
pub const ERF_TOP: [f32; 7] =
    [-2.726_142_3e-10, 2.770_681_4e-8, -2.101_024e-6, -5.692_506_4e-5, -7.349_906_3e-4, -2.954_6e-3, -1.609_603_3e-2];
/// See [`ERF_TOP`].
pub const ERF_BOTTOM: [f32; 5] = [-1.456_607_2e-5, -2.133_740_6e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2];

/// The error function, absolute error below 5e-7: a rational minimax in x, odd over even, for |x| <= 4.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let x2 = x * x;
    let horner = |terms: &[f32]| terms.iter().fold(0.0, |sum, term| sum * x2 + term);
    let (top, bottom) = (horner(&ERF_TOP), horner(&ERF_BOTTOM));
    x * top / bottom
}

/// Sixteen numbers made one, by halves, so that few steps wait for each other.
#[inline(always)]
fn reduced(mut lanes: [f32; 16], f: impl Fn(f32, f32) -> f32) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] = f(lanes[i], lanes[i + half]);
        }
    }
    lanes[0]
}

/// The largest of a slice, -inf for an empty one; sixteen partial maxima, so that it vectorizes.
#[inline(always)]
pub fn maximum(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let chunks = values.chunks_exact(16);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = lane.max(*value);
        }
    }
    let rest = rest.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    reduced(lanes, f32::max).max(rest)
}

/// Sum of `f` over a slice; many partial sums, so that it vectorizes, waits little, and rounds less than one.
#[inline(always)]
pub fn sum(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let (wide, rest) = values.as_chunks::<64>();
    let mut all = [0f32; 64];
    for chunk in wide {
        for i in 0..64 {
            all[i] += f(chunk[i]);
        }
    }
    let mut lanes = [0f32; 16];
    for i in 0..16 {
        lanes[i] = (all[i] + all[i + 16]) + (all[i + 32] + all[i + 48]);
    }
    let (chunks, rest) = rest.as_chunks::<16>();
    for chunk in chunks {
        for i in 0..16 {
            lanes[i] += f(chunk[i]);
        }
    }
    let rest: f32 = rest.iter().map(|v| f(*v)).sum();
    reduced(lanes, |a, b| a + b) + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(low: f32, high: f32) -> impl Iterator<Item = f32> {
        (0..=20_000).map(move |i| low + (high - low) * i as f32 / 20_000.0)
    }

    #[test]
    fn exp_is_within_3e7_of_the_double() {
        for x in over(-80.0, 80.0) {
            let exact = f64::from(x).exp();
            assert!(((f64::from(exp(x)) - exact) / exact).abs() < 3e-7, "exp({x})");
        }
        assert!(exp(-1e30) < 1e-30);
    }

    #[test]
    fn tanh_is_within_3e7_of_the_double() {
        for x in over(-20.0, 20.0) {
            assert!((f64::from(tanh(x)) - f64::from(x).tanh()).abs() < 3e-7, "tanh({x})");
        }
    }

    #[test]
    fn erf_is_within_5e7_of_its_series() {
        // erf(x) = 2/sqrt(pi) * sum (-1)^n x^(2n+1) / (n! (2n+1)), summed in f64.
        let series = |x: f64| {
            let (mut term, mut total) = (x, x);
            for n in 1..120 {
                term *= -x * x / f64::from(n);
                total += term / f64::from(2 * n + 1);
            }
            total * std::f64::consts::FRAC_2_SQRT_PI
        };
        for x in over(-4.5, 4.5) {
            assert!((f64::from(erf(x)) - series(f64::from(x))).abs() < 5e-7, "erf({x})");
        }
    }

    #[test]
    fn maximum_and_sum_take_the_tail_along() {
        let values: Vec<f32> = (0..37).map(|i| i as f32).collect();
        assert_eq!(maximum(&values), 36.0);
        assert_eq!(sum(&values, |v| v * 2.0), 1332.0);
        assert_eq!(maximum(&[]), f32::NEG_INFINITY);
    }
}
