//! Products of matrices that are too small to be worth packing: what attention multiplies, sequence by sequence and head
//! by head. With AVX-512 by a kernel of their own, elsewhere by the `gemm` crate.
#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "bounds are checked once a product"))]

use super::view::{Matrix, MatrixMut};

/// `y = a b`, or `y += a b`. Rows of `a` and of `b` are dense.
///
/// # Panics
/// Where shapes do not fit, or a matrix reaches beyond its slice.
pub fn multiply(y: MatrixMut, add: bool, a: Matrix, b: Matrix) {
    assert_eq!((a.column_stride, b.column_stride), (1, 1), "dense rows");
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        return avx512::multiply(y, add, a, b);
    }
    super::product::multiply(y, add, a, b);
}

/// The rows of `from` as columns of `to`, whose rows have `from.rows` numbers and then zeros up to `stride`.
pub fn transpose(to: &mut Vec<f32>, from: Matrix, stride: usize) {
    to.clear();
    to.resize(from.columns * stride, 0.0);
    for row in 0..from.rows {
        let numbers = &from.data[row * from.row_stride..][..from.columns];
        to[row..].iter_mut().step_by(stride).zip(numbers).for_each(|(to, x)| *to = *x);
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{Matrix, MatrixMut};
    use std::arch::x86_64::*;

    pub fn multiply(y: MatrixMut, add: bool, a: Matrix, b: Matrix) {
        assert_eq!((y.rows, y.columns, a.columns), (a.rows, b.columns, b.rows), "shapes of a product");
        let reach = |rows: usize, columns: usize, stride: usize| match rows * columns {
            0 => 0,
            _ => (rows - 1) * stride + columns,
        };
        assert!(reach(y.rows, y.columns, y.row_stride) <= y.data.len(), "y in bounds");
        assert!(reach(a.rows, a.columns, a.row_stride) <= a.data.len(), "a in bounds");
        assert!(reach(b.rows, b.columns, b.row_stride) <= b.data.len(), "b in bounds");
        let task = Task {
            y: y.data.as_mut_ptr(),
            y_stride: y.row_stride,
            a: a.data.as_ptr(),
            a_stride: a.row_stride,
            b: b.data.as_ptr(),
            b_stride: b.row_stride,
            depth: a.columns,
            add,
        };
        // SAFETY: the machine has AVX-512, and every element that is reached lies inside its matrix.
        unsafe { task.run(y.rows, y.columns) }
    }

    /// Three matrices by their first elements and strides.
    struct Task {
        y: *mut f32,
        y_stride: usize,
        a: *const f32,
        a_stride: usize,
        b: *const f32,
        b_stride: usize,
        depth: usize,
        add: bool,
    }

    impl Task {
        #[target_feature(enable = "avx512f")]
        unsafe fn run(&self, rows: usize, columns: usize) {
            for column in (0..columns).step_by(32) {
                let left = columns - column;
                let mask = |vector: usize| match left.saturating_sub(16 * vector) {
                    16.. => !0,
                    some => (1u16 << some) - 1,
                };
                let mut row = 0;
                // SAFETY: rows are counted here, columns masked.
                unsafe {
                    while row < rows {
                        let count = match (rows - row, left > 16) {
                            (12.., true) => self.block::<12, 2>(row, column, [mask(0), mask(1)]),
                            (12.., false) => self.block::<12, 1>(row, column, [mask(0)]),
                            (4.., true) => self.block::<4, 2>(row, column, [mask(0), mask(1)]),
                            (4.., false) => self.block::<4, 1>(row, column, [mask(0)]),
                            (_, true) => self.block::<1, 2>(row, column, [mask(0), mask(1)]),
                            (_, false) => self.block::<1, 1>(row, column, [mask(0)]),
                        };
                        row += count;
                    }
                }
            }
        }

        /// Some rows of some vectors of columns, of which the mask leaves a part; how many rows.
        #[inline]
        #[target_feature(enable = "avx512f")]
        unsafe fn block<const ROWS: usize, const WIDTH: usize>(
            &self,
            row: usize,
            column: usize,
            masks: [u16; WIDTH],
        ) -> usize {
            let mut sums = [[_mm512_setzero_ps(); WIDTH]; ROWS];
            // SAFETY: as the caller has it.
            unsafe {
                let (mut a, mut b) = (self.a.add(row * self.a_stride), self.b.add(column));
                for _ in 0..self.depth {
                    let mut vectors = [_mm512_setzero_ps(); WIDTH];
                    for j in 0..WIDTH {
                        vectors[j] = _mm512_maskz_loadu_ps(masks[j], b.add(16 * j));
                    }
                    for (i, sums) in sums.iter_mut().enumerate() {
                        let x = _mm512_set1_ps(*a.add(i * self.a_stride));
                        for (sum, vector) in sums.iter_mut().zip(&vectors) {
                            *sum = _mm512_fmadd_ps(x, *vector, *sum);
                        }
                    }
                    (a, b) = (a.add(1), b.add(self.b_stride));
                }
                for (i, sums) in sums.iter().enumerate() {
                    for j in 0..WIDTH {
                        let target = self.y.add((row + i) * self.y_stride + column + 16 * j);
                        let before = match self.add {
                            true => _mm512_maskz_loadu_ps(masks[j], target),
                            false => _mm512_setzero_ps(),
                        };
                        _mm512_mask_storeu_ps(target, masks[j], _mm512_add_ps(before, sums[j]));
                    }
                }
            }
            ROWS
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_plain_product() {
        let numbers = |count: usize| (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect::<Vec<f32>>();
        for [rows, depth, columns] in [[1, 1, 1], [13, 32, 48], [30, 17, 33], [5, 64, 100], [16, 8, 8], [0, 4, 4]] {
            let (a, b) = (numbers(rows * (depth + 2)), numbers(depth * (columns + 3)));
            let matrix = |data, rows, columns, row_stride| Matrix { data, rows, columns, row_stride, column_stride: 1 };
            for add in [false, true] {
                let mut y = numbers(rows * (columns + 1));
                let before = y.clone();
                let (a, b) = (matrix(&a, rows, depth, depth + 2), matrix(&b, depth, columns, columns + 3));
                multiply(MatrixMut { data: &mut y, rows, columns, row_stride: columns + 1 }, add, a, b);
                for (place, y) in y.iter().enumerate() {
                    let (row, column) = (place / (columns + 1), place % (columns + 1));
                    let dot = (0..depth)
                        .map(|k| a.data[row * (depth + 2) + k] * b.data[k * (columns + 3) + column % columns]);
                    let expected = match column < columns {
                        true => dot.sum::<f32>() + if add { before[place] } else { 0.0 },
                        false => before[place],
                    };
                    assert!((y - expected).abs() < 1e-4, "{rows} {depth} {columns} {place}");
                }
            }
        }
    }

    #[test]
    fn rows_become_columns() {
        let data = [1.0, 2.0, 9.0, 3.0, 4.0, 9.0];
        let mut to = vec![7.0; 100];
        transpose(&mut to, Matrix { data: &data, rows: 2, columns: 2, row_stride: 3, column_stride: 1 }, 3);
        assert_eq!(to, [1.0, 3.0, 0.0, 2.0, 4.0, 0.0]);
    }
}
