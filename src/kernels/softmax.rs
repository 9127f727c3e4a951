//! Scores to weights: e^(scale * score) over their sum, row by row.
#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "the loops are AVX-512's, written out"))]

use super::math::{exp, maximum, sum, vectorized};

/// In place, the first `count` of every `stride` numbers, of which there must be one; the others become 0.
///
/// # Panics
/// Where a row is shorter than `count`.
pub fn softmax(rows: &mut [f32], stride: usize, count: usize, scale: f32) {
    assert!((1..=stride).contains(&count), "numbers of a row");
    #[cfg(target_arch = "x86_64")]
    if stride.is_multiple_of(16) && is_x86_feature_detected!("avx512f") {
        // SAFETY: the machine has AVX-512, and rows are whole vectors.
        return unsafe { avx512::softmax(rows, stride, count, scale) };
    }
    plain(rows, stride, count, scale);
}

fn plain(rows: &mut [f32], stride: usize, count: usize, scale: f32) {
    for row in rows.chunks_exact_mut(stride) {
        let (row, rest) = row.split_at_mut(count);
        rest.fill(0.0);
        vectorized(
            #[inline(always)]
            || {
                row.iter_mut().for_each(|s| *s *= scale);
                let highest = maximum(row);
                row.iter_mut().for_each(|s| *s = exp(*s - highest));
                let share = 1.0 / sum(row, |s| s);
                row.iter_mut().for_each(|s| *s *= share);
            },
        );
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f")]
    pub fn softmax(rows: &mut [f32], stride: usize, count: usize, scale: f32) {
        let vectors = count.div_ceil(16);
        // Of the last vector.
        let mask = !0u16 >> (16 * vectors - count);
        for row in rows.chunks_exact_mut(stride) {
            let (row, rest) = row.split_at_mut(16 * vectors);
            rest.fill(0.0);
            let scale = _mm512_set1_ps(scale);
            let mut highest = _mm512_set1_ps(f32::NEG_INFINITY);
            for i in 0..vectors {
                let mask = if i + 1 == vectors { mask } else { !0 };
                let scaled = _mm512_mul_ps(load(row, i), scale);
                highest = _mm512_mask_max_ps(highest, mask, highest, scaled);
                store(row, i, scaled);
            }
            // A number that is none must stay so: of two, `max` gives the second.
            let highest = _mm512_set1_ps(_mm512_reduce_max_ps(highest));
            let mut total = _mm512_setzero_ps();
            for i in 0..vectors {
                let mask = if i + 1 == vectors { mask } else { !0 };
                let power = _mm512_maskz_mov_ps(mask, exp(_mm512_sub_ps(load(row, i), highest)));
                total = _mm512_add_ps(total, power);
                store(row, i, power);
            }
            let share = _mm512_set1_ps(1.0 / _mm512_reduce_add_ps(total));
            (0..vectors).for_each(|i| store(row, i, _mm512_mul_ps(load(row, i), share)));
        }
    }

    /// As `math::exp`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn exp(x: __m512) -> __m512 {
        let set = |x: f32| _mm512_set1_ps(x);
        // Below, e^x is 0 in f32; NaN stays NaN.
        let x = _mm512_max_ps(set(-104.0), x);
        let n = _mm512_roundscale_ps::<0>(_mm512_mul_ps(x, set(std::f32::consts::LOG2_E)));
        let r = _mm512_fnmadd_ps(n, set(-2.121_944_4e-4), _mm512_fnmadd_ps(n, set(0.693_359_4), x));
        let mut series = set(1.0 / 5040.0);
        for term in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            series = _mm512_fmadd_ps(series, r, set(term));
        }
        _mm512_scalef_ps(series, n)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(row: &[f32], vector: usize) -> __m512 {
        let numbers: &[f32] = &row[16 * vector..16 * vector + 16];
        // SAFETY: the slice has 16 numbers.
        unsafe { _mm512_loadu_ps(numbers.as_ptr()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn store(row: &mut [f32], vector: usize, x: __m512) {
        let numbers: &mut [f32] = &mut row[16 * vector..16 * vector + 16];
        // SAFETY: the slice has 16 numbers.
        unsafe { _mm512_storeu_ps(numbers.as_mut_ptr(), x) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_as_the_plain_ones() {
        for (stride, count) in [(16, 1), (16, 12), (48, 48), (64, 50), (7, 5)] {
            let scores: Vec<f32> = (0..5 * stride).map(|i| ((i * 53 % 97) as f32 - 40.0) * 1.7).collect();
            let (mut ours, mut expected) = (scores.clone(), scores.clone());
            softmax(&mut ours, stride, count, 0.3);
            plain(&mut expected, stride, count, 0.3);
            assert!(ours.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6), "{stride} {count}");
            let rows = ours.chunks(stride).map(|row| row.iter().sum::<f32>());
            assert!(rows.into_iter().all(|sum| (sum - 1.0).abs() < 1e-5));
        }
    }

    #[test]
    fn what_is_no_number_stays_so() {
        for place in [0, 3, 20] {
            let mut row = vec![1.0; 32];
            row[place] = f32::NAN;
            softmax(&mut row, 32, 25, 1.0);
            assert!(row[..25].iter().any(|weight| weight.is_nan()));
        }
    }
}
