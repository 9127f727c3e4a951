//! Small square matrices down a diagonal, in f64, and the rotations that skew-symmetric ones give.

use crate::error::Result;
use candle_core::{DType, Tensor};

/// Blocks of one size, row by row.
#[derive(Clone, Debug)]
pub struct Blocks {
    size: usize,
    blocks: Vec<Vec<f64>>,
}

impl Blocks {
    /// Skew-symmetric blocks from the elements above their diagonals, row by row.
    pub fn skew_from_upper(upper: &[Vec<f32>], size: usize) -> Self {
        let block = |upper: &Vec<f32>| {
            let mut block = vec![0.0; size * size];
            let places = (0..size).flat_map(|row| (row + 1..size).map(move |column| (row, column)));
            for ((row, column), x) in places.zip(upper) {
                block[row * size + column] = f64::from(*x);
                block[column * size + row] = -f64::from(*x);
            }
            block
        };
        Self { size, blocks: upper.iter().map(block).collect() }
    }

    /// `(M - M^T) / 2` of blocks whose rows stand one below the other.
    pub fn skew_part(rows: &[Vec<f32>], size: usize) -> Self {
        let block = |rows: &[Vec<f32>]| {
            let element = |place: usize| {
                let (row, column) = (place / size, place % size);
                0.5 * (f64::from(rows[row][column]) - f64::from(rows[column][row]))
            };
            (0..size * size).map(element).collect()
        };
        Self { size, blocks: rows.chunks_exact(size).map(block).collect() }
    }

    /// Blocks longer than `most` (Frobenius norm) are cut to it.
    pub fn shorten(&mut self, most: f64) {
        for block in &mut self.blocks {
            let length = block.iter().map(|x| x * x).sum::<f64>().sqrt();
            if length > most {
                block.iter_mut().for_each(|x| *x *= most / length);
            }
        }
    }

    /// `(1 - Q) (1 + Q)^-1` of every block; none where that is not finite.
    pub fn cayley(&self) -> Option<Self> {
        let blocks = self.blocks.iter().map(|q| {
            let sign = |sign: f64| {
                let mut sum: Vec<f64> = q.iter().map(|x| sign * x).collect();
                (0..self.size).for_each(|i| sum[i * self.size + i] += 1.0);
                sum
            };
            Some(self.product(&sign(-1.0), &inverse(sign(1.0), self.size)?))
        });
        Some(Self { size: self.size, blocks: blocks.collect::<Option<_>>()? })
    }

    /// The first terms of the series of that inverse as PEFT adds them up: `1 + 2 Q + 2 Q^2 + ... + Q^n`, where the last
    /// power has the factor 1 from the third term on.
    pub fn cayley_series(&self, terms: usize) -> Option<Self> {
        let last = terms.max(4) - 1;
        let blocks = self.blocks.iter().map(|q| {
            let mut sum = vec![0.0; q.len()];
            (0..self.size).for_each(|i| sum[i * self.size + i] = 1.0);
            let mut add =
                |factor: f64, power: &[f64]| sum.iter_mut().zip(power).for_each(|(sum, x)| *sum += factor * x);
            let mut power = q.clone();
            if terms > 1 {
                add(2.0, &power);
            }
            for exponent in 2..=if terms > 2 { last } else { 1 } {
                power = self.product(&power, q);
                add(if exponent == last { 1.0 } else { 2.0 }, &power);
            }
            sum.iter().all(|x| x.is_finite()).then_some(sum)
        });
        Some(Self { size: self.size, blocks: blocks.collect::<Option<_>>()? })
    }

    /// So many blocks: these, or the only one again and again.
    pub fn repeated(self, count: usize) -> Self {
        let blocks = if self.blocks.len() == 1 { vec![self.blocks[0].clone(); count] } else { self.blocks };
        Self { blocks, ..self }
    }

    /// The block diagonal matrix times `weight [in, out]`.
    pub fn times(&self, weight: &Tensor) -> Result<Tensor> {
        let (count, size, outputs) = (self.blocks.len(), self.size, weight.dims()[1]);
        let elements: Vec<f32> = self.blocks.iter().flatten().map(|x| *x as f32).collect();
        let diagonal = Tensor::from_vec(elements, (count, size, size), weight.device())?;
        let weight = weight.to_dtype(DType::F32)?.contiguous()?.reshape((count, size, outputs))?;
        Ok(diagonal.matmul(&weight)?.reshape((count * size, outputs))?)
    }

    /// The same with rows and columns of the block diagonal matrix in another order: place `i` is what was `order[i]`.
    pub fn permuted_times(&self, order: &[u32], weight: &Tensor) -> Result<Tensor> {
        let device = weight.device();
        let mut back = vec![0u32; order.len()];
        order.iter().enumerate().for_each(|(place, from)| back[*from as usize] = place as u32);
        let before = weight.to_dtype(DType::F32)?.contiguous()?.index_select(&Tensor::new(back, device)?, 0)?;
        Ok(self.times(&before)?.index_select(&Tensor::new(order, device)?, 0)?)
    }

    fn product(&self, a: &[f64], b: &[f64]) -> Vec<f64> {
        let n = self.size;
        let element = |place: usize| (0..n).map(|k| a[place / n * n + k] * b[k * n + place % n]).sum();
        (0..n * n).map(element).collect()
    }
}

/// By Gauss and Jordan with pivots; none where there is no inverse.
fn inverse(mut a: Vec<f64>, n: usize) -> Option<Vec<f64>> {
    let mut b = vec![0.0; n * n];
    (0..n).for_each(|i| b[i * n + i] = 1.0);
    for column in 0..n {
        let pivot = (column..n).max_by(|x, y| a[x * n + column].abs().total_cmp(&a[y * n + column].abs()))?;
        for k in 0..n {
            a.swap(column * n + k, pivot * n + k);
            b.swap(column * n + k, pivot * n + k);
        }
        let head = a[column * n + column];
        for k in 0..n {
            a[column * n + k] /= head;
            b[column * n + k] /= head;
        }
        for row in (0..n).filter(|row| *row != column) {
            let factor = a[row * n + column];
            for k in 0..n {
                a[row * n + k] -= factor * a[column * n + k];
                b[row * n + k] -= factor * b[column * n + k];
            }
        }
    }
    b.iter().all(|x| x.is_finite()).then_some(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skew() -> Blocks {
        Blocks::skew_from_upper(&[vec![0.3, -0.2, 0.5, 0.1, 0.7, -0.4]], 4)
    }

    #[test]
    fn a_rotation_keeps_lengths_and_the_series_comes_near_it() {
        let exact = skew().cayley().unwrap();
        let square = exact.product(&exact.blocks[0], &transposed(&exact.blocks[0]));
        assert!((0..16).all(|i| (square[i] - f64::from(i % 5 == 0)).abs() < 1e-12));
        // (1 - Q) (1 + Q)^-1 = 1 - 2 Q + 2 Q^2 - ...; the series is that of -Q.
        let mut small = skew();
        small.shorten(0.1);
        let mut negated = small.clone();
        negated.blocks[0].iter_mut().for_each(|x| *x = -*x);
        let (exact, series) = (negated.cayley().unwrap(), small.cayley_series(12).unwrap());
        assert!(exact.blocks[0].iter().zip(&series.blocks[0]).all(|(a, b)| (a - b).abs() < 1e-9));
    }

    fn transposed(block: &[f64]) -> Vec<f64> {
        (0..16).map(|place| block[place % 4 * 4 + place / 4]).collect()
    }
}
