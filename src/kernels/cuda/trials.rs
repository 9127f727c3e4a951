//! Two ways to compute the same, of which one is sooner on some devices and with some shapes: both are tried where they are
//! first wanted, with what they are wanted for.

use super::array::Array;
use super::gpu::{Gpu, Warpgroups};
use crate::error::{Error, Result};
use candle_core::DType;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Of fewer rows other ways have little to gain, and a trial would take longer than they: those of here, and cuBLASLt's.
pub const TRIED_ROWS: usize = 4096;

/// How often each way is tried, the fastest of so many times, and launches of each time.
const ROUNDS: usize = 3;
const LAUNCHES: usize = 5;

/// Rows that are compared, at both ends and in the middle.
const COMPARED: usize = 64;

/// How far two ways may be apart, over the largest number: each rounds some times to the 8 bits of bf16.
const DIFFERENCE_MAX: f32 = 1.0 / 32.0;

/// What is computed: attention within sequences.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Trial {
    /// Of all sequences; of about as many the same is true.
    pub rows: usize,
    /// About so many are of one sequence.
    pub length: usize,
    /// Of queries, and of keys.
    pub heads: [usize; 2],
    /// Whether it is causal, in windows, or with biases.
    pub has: [bool; 3],
    /// Of all that is multiplied.
    pub dtype: DType,
}

/// What was found of a device.
#[derive(Default)]
pub struct Trials(Mutex<HashMap<Trial, bool>>);

impl Trials {
    /// Whether a new way gives what the old one gives, and sooner. Where kernels are emulated time tells nothing, and it is
    /// always taken. A row's last bits depend on the way.
    ///
    /// # Errors
    /// Those of the old way, and a device that is lost.
    pub fn prefers(
        &self,
        gpu: &Gpu,
        trial: Trial,
        new: &dyn Fn() -> Result<Array>,
        old: &dyn Fn() -> Result<Array>,
    ) -> Result<bool> {
        if gpu.is_emulated() || gpu.warpgroups_multiply() == Warpgroups::Everywhere {
            return Ok(true);
        }
        if trial.rows < TRIED_ROWS {
            return Ok(false);
        }
        let trial = Trial { rows: trial.rows.next_power_of_two(), length: trial.length.next_power_of_two(), ..trial };
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&trial).copied();
        if let Some(known) = known {
            return Ok(known);
        }
        let old_result = old()?;
        let Some(difference) = (match new() {
            Ok(new_result) => difference(&new_result, &old_result)?,
            Err(error @ Error::Lost(_)) => return Err(error),
            // Both at once have no room; the old way alone has.
            Err(Error::OutOfMemory(_)) => None,
            Err(error) => {
                tracing::error!(%error, ?trial, "kernels for warpgroups fail, and are left");
                Some(f32::INFINITY)
            }
        }) else {
            return Ok(false);
        };
        let is_same = difference <= DIFFERENCE_MAX;
        if !is_same {
            tracing::error!(?trial, difference, "kernels for warpgroups give something else, and are left");
        }
        let is_preferred = is_same && {
            let [ours, theirs] = times(gpu, [new, old])?;
            tracing::debug!(?trial, difference, ?ours, ?theirs, "kernels for warpgroups, and the others, were tried");
            ours < theirs
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(trial, is_preferred);
        Ok(is_preferred)
    }
}

/// What each way takes, in turns.
fn times(gpu: &Gpu, ways: [&dyn Fn() -> Result<Array>; 2]) -> Result<[Duration; 2]> {
    let mut least = [Duration::MAX; 2];
    for _ in 0..ROUNDS {
        for (least, way) in least.iter_mut().zip(ways) {
            gpu.synchronize()?;
            let began = Instant::now();
            (0..LAUNCHES).try_for_each(|_| way().map(drop))?;
            gpu.synchronize()?;
            *least = began.elapsed().min(*least);
        }
    }
    Ok(least.map(|time| time / LAUNCHES as u32))
}

/// The largest difference of some rows, at both ends and in the middle, over the largest number of the old way there; none
/// where that has numbers that are not finite, of which nothing follows.
fn difference(new: &Array, old: &Array) -> Result<Option<f32>> {
    let rows = old.dims()[0];
    let count = rows.min(COMPARED);
    let (mut most, mut largest) = (0f32, f32::MIN_POSITIVE);
    for first in [0, (rows - count) / 2, rows - count] {
        let read = |y: &Array| -> Result<Vec<f32>> {
            let y = y.narrow(0, first, count)?.depart()?.wait()?;
            Ok(y.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
        };
        for (new, old) in read(new)?.into_iter().zip(read(old)?) {
            if !old.is_finite() {
                return Ok(None);
            }
            largest = largest.max(old.abs());
            // `max` would leave out NaN.
            most = if (new - old).abs() <= most { most } else { (new - old).abs() };
            if most.is_nan() {
                return Ok(Some(f32::INFINITY));
            }
        }
    }
    Ok(Some(most / largest))
}

#[cfg(test)]
#[cfg(feature = "emulated")]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    #[test]
    fn a_single_number_tells_two_ways_apart() {
        let gpu = Gpu::emulated(16).unwrap();
        let on =
            |numbers: Vec<f32>| Array::of(&gpu, &Tensor::from_vec(numbers, (200, 4), &Device::Cpu).unwrap()).unwrap();
        let numbers: Vec<f32> = (0..800).map(|i| i as f32).collect();
        let with = |place: usize, number: f32| {
            let mut other = numbers.clone();
            other[place] = number;
            on(other)
        };
        let old = on(numbers.clone());
        let apart = |new: &Array| difference(new, &old).unwrap();
        assert_eq!(apart(&on(numbers.clone())), Some(0.0));
        assert_eq!(apart(&with(799, 0.0)), Some(1.0));
        for number in [f32::NAN, f32::INFINITY] {
            assert_eq!(apart(&with(5, number)), Some(f32::INFINITY));
            assert_eq!(difference(&old, &with(5, number)).unwrap(), None, "nothing follows");
        }
    }
}
