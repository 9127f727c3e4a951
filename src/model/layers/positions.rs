//! What attention knows of positions, as tables made once: rotary angles, and biases by distance.

use super::Loader;
use crate::error::Result;
use crate::kernels::{Tensor, rotary_tables};
use crate::model::spec::{Rotary, RotaryScaling, Table};
use candle_core::{Device, Tensor as Host};
use std::f64::consts::PI;

/// Cosines and sines, `[tokens_max, head_width / 2]` each.
pub fn rotary(spec: &Rotary, head_width: usize, loader: &mut Loader) -> Result<(Tensor, Tensor)> {
    let tables = loader.shared(format!("{spec:?} {head_width}"), |loader| {
        let factor = match spec.scaling {
            RotaryScaling::Yarn { attention_factor, .. } => attention_factor,
            _ => 1.0,
        };
        let (cos, sin) = rotary_tables(loader.tokens_max, &frequencies(spec, head_width), factor)?;
        Ok(vec![loader.place(&cos)?, loader.place(&sin)?])
    })?;
    Ok((tables[0].clone(), tables[1].clone()))
}

/// Radians a token, one a pair of dimensions, in f32 as transformers computes them.
fn frequencies(spec: &Rotary, width: usize) -> Vec<f32> {
    let theta = match spec.scaling {
        RotaryScaling::Ntk { factor } => spec.theta * factor,
        _ => spec.theta,
    };
    let plain = (0..width / 2).map(|i| 1.0 / (theta as f32).powf((2 * i) as f32 / width as f32));
    let stretched = |i: usize, frequency: f32| match spec.scaling {
        RotaryScaling::Default => frequency,
        RotaryScaling::Linear { factor } => frequency / factor as f32,
        RotaryScaling::Ntk { factor } => frequency / factor.powf(2.0 / width as f64) as f32,
        RotaryScaling::Llama3 { factor, low_freq_factor, high_freq_factor, trained } => {
            // How far the wave is from the shortest that is stretched in full to the longest that is left alone.
            let turns = trained as f32 * frequency / (2.0 * PI) as f32;
            let smooth = (turns - low_freq_factor as f32) / (high_freq_factor - low_freq_factor) as f32;
            let smooth = smooth.clamp(0.0, 1.0);
            (1.0 - smooth) * frequency / factor as f32 + smooth * frequency
        }
        RotaryScaling::Yarn { factor, beta_fast, beta_slow, trained, truncate, .. } => {
            let dimension = |turns: f64| width as f64 * (trained / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
            let (low, high) = (dimension(beta_fast), dimension(beta_slow));
            let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
            let (low, high) = (low.max(0.0), high.min(width as f64 - 1.0));
            // An empty ramp would divide by zero.
            let high = if low == high { high + 0.001 } else { high };
            let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0) as f32;
            frequency / factor as f32 * ramp + frequency * (1.0 - ramp)
        }
    };
    plain.enumerate().map(|(i, frequency)| stretched(i, frequency)).collect()
}

/// ALiBi's penalties by distance, `[heads, 2 * tokens_max - 1]`. For a power of two of heads the slopes are the
/// geometric series that starts at 2^(-8 / heads); for another number, the series of the next smaller power, followed
/// by every other member of the one of the next larger (arXiv:2108.12409, and its authors' code).
pub fn alibi(heads: usize, loader: &mut Loader) -> Result<Tensor> {
    let tables = loader.shared(format!("alibi {heads}"), |loader| {
        let series = |count: usize| (1..=count).map(move |i| 2f64.powf(-8.0 * i as f64 / count as f64) as f32);
        let smaller = if heads.is_power_of_two() { heads } else { heads.next_power_of_two() / 2 };
        let slopes = series(smaller).chain(series(2 * smaller).step_by(2)).take(heads);
        let span = loader.tokens_max as i64;
        let penalties: Vec<f32> =
            slopes.flat_map(|slope| ((1 - span)..span).map(move |d| -slope * d.unsigned_abs() as f32)).collect();
        let penalties = Host::from_vec(penalties, (heads, 2 * loader.tokens_max - 1), &Device::Cpu)?;
        Ok(vec![loader.place(&penalties)?])
    })?;
    Ok(tables[0].clone())
}

/// A learned bias row a head, spread from buckets to every distance that a sequence can have:
/// `[heads, 2 * tokens_max - 1]`.
pub fn relative_bias(table: &Table, heads: usize, distance_max: usize, loader: &mut Loader) -> Result<Tensor> {
    let tables = loader.shared(format!("bias {}", table.path), |loader| {
        let span = loader.tokens_max as i64;
        let by_bucket = loader.tensor(&table.path, "weight", &[table.rows, heads])?;
        let distances = (1 - span)..span;
        let buckets: Vec<u32> = distances.map(|d| bucket(d, table.rows, distance_max)).collect();
        let buckets = Host::from_vec(buckets, 2 * loader.tokens_max - 1, &Device::Cpu)?;
        Ok(vec![loader.place(&by_bucket.index_select(&buckets, 0)?.t()?.contiguous()?)?])
    })?;
    Ok(tables[0].clone())
}

/// T5's bucket of `key - query`: half the buckets look ahead; of each half, the first half counts single steps and the
/// rest grows logarithmically up to `distance_max` (arXiv:1910.10683; in f32 as transformers computes it).
fn bucket(distance: i64, buckets: usize, distance_max: usize) -> u32 {
    let half = buckets / 2;
    let ahead = if distance > 0 { half } else { 0 };
    let (steps, exact) = (distance.unsigned_abs() as usize, half / 2);
    if steps < exact {
        return (ahead + steps) as u32;
    }
    let growth = (steps as f32 / exact as f32).ln() / (distance_max as f32 / exact as f32).ln();
    let step = exact + (growth * (half - exact) as f32) as usize;
    (ahead + step.min(half - 1)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_distances_have_their_own_bucket_and_far_ones_share_the_last() {
        let of = |d| bucket(d, 32, 128);
        assert_eq!([of(0), of(-1), of(-7), of(1), of(7)], [0, 1, 7, 17, 23]);
        assert_eq!([of(-8), of(8), of(-127), of(127)], [8, 24, 15, 31]);
        assert_eq!([of(-500), of(500)], [15, 31]);
    }

    #[test]
    fn llama3_leaves_short_waves_and_stretches_long_ones_in_full() {
        let scaling =
            RotaryScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, trained: 8192.0 };
        let plain = frequencies(&Rotary::new(500_000.0), 128);
        let stretched = frequencies(&Rotary { theta: 500_000.0, scaling }, 128);
        assert_eq!(plain[0], stretched[0]);
        assert_eq!(plain[63] / 8.0, stretched[63]);
        assert!(plain.iter().zip(&stretched).any(|(p, s)| p > s && *s > p / 8.0));
    }
}
