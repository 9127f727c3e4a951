//! Small products by AVX-512, with its BF16 where the machine has it, and what prepares them.
#![expect(unsafe_code, reason = "bounds are checked once a product")]

use super::{Matrix, MatrixMut};
use crate::kernels::math::mask;
use std::arch::x86_64::*;

pub fn multiply(y: MatrixMut, add: bool, a: Matrix, b: Matrix) {
    let (task, rows, columns) = Task::new(y, add, a, b);
    // SAFETY: the machine has AVX-512, and every element that is reached lies inside its matrix.
    unsafe { single(task, rows, columns) }
}

pub fn multiply_pairs(y: MatrixMut, add: bool, a: Matrix, b: Matrix) {
    let (task, rows, columns) = Task::new(y, add, a, b);
    // SAFETY: the machine has AVX-512 with BF16, and every element that is reached lies inside its matrix.
    unsafe { half(task, rows, columns) }
}

/// As `super::pairs`, into as many numbers as that needs.
pub fn pairs(to: &mut [f32], from: Matrix) {
    let width = from.columns.div_ceil(2).max(1);
    for (row, to) in to.chunks_exact_mut(width).enumerate() {
        // SAFETY: the machine has AVX-512 with BF16, and the second has half as many numbers as the first.
        unsafe { pairs_of_row(&from.data[row * from.row_stride..][..from.columns], to) };
    }
}

/// What a mask leaves of a vector. What is loaded soon waits less for a store without a mask.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store(to: *mut f32, mask: u16, vector: __m512) {
    // SAFETY: the caller has room for as many numbers as the mask leaves.
    unsafe {
        match mask {
            0xffff => _mm512_storeu_ps(to, vector),
            _ => _mm512_mask_storeu_ps(to, mask, vector),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn pairs_of_row(from: &[f32], to: &mut [f32]) {
    for first in (0..from.len()).step_by(32) {
        let left = from.len() - first;
        // SAFETY: masks leave what lies in the slices.
        unsafe {
            let at = from.as_ptr().add(first);
            let low = _mm512_maskz_loadu_ps(mask(left), at);
            let high = _mm512_maskz_loadu_ps(mask(left.saturating_sub(16)), at.wrapping_add(16));
            let both = std::mem::transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(high, low));
            store(to.as_mut_ptr().add(first / 2), mask(left.div_ceil(2)), both);
        }
    }
}

/// Three matrices by their first elements and strides.
#[derive(Clone, Copy)]
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
    /// With the rows and columns of the result.
    ///
    /// # Panics
    /// Where shapes do not fit, or a matrix reaches beyond its slice.
    fn new(y: MatrixMut, add: bool, a: Matrix, b: Matrix) -> (Self, usize, usize) {
        assert_eq!((y.rows, y.columns, a.columns), (a.rows, b.columns, b.rows), "shapes of a product");
        let reach = |rows: usize, columns: usize, stride: usize| match rows * columns {
            0 => 0,
            _ => (rows - 1) * stride + columns,
        };
        assert!(reach(y.rows, y.columns, y.row_stride) <= y.data.len(), "y in bounds");
        assert!(reach(a.rows, a.columns, a.row_stride) <= a.data.len(), "a in bounds");
        assert!(reach(b.rows, b.columns, b.row_stride) <= b.data.len(), "b in bounds");
        let (rows, columns, depth) = (y.rows, y.columns, a.columns);
        let (a_stride, b_stride, y_stride) = (a.row_stride, b.row_stride, y.row_stride);
        let (a, b, y) = (a.data.as_ptr(), b.data.as_ptr(), y.data.as_mut_ptr());
        (Self { y, y_stride, a, a_stride, b, b_stride, depth, add }, rows, columns)
    }
}

/// A function `$name(task, rows, columns)`, in which `$dot` adds the product of `$x`, everywhere the same, and `$vector`
/// to `$sum`.
macro_rules! kernel {
    ($name:ident, $features:literal, |$sum:ident, $x:ident, $vector:ident| $dot:expr) => {
        #[target_feature(enable = $features)]
        unsafe fn $name(task: Task, rows: usize, columns: usize) {
            /// Some rows of some vectors of columns, of which the mask leaves a part; how many rows.
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn block<const ROWS: usize, const WIDTH: usize>(
                task: Task,
                [row, column]: [usize; 2],
                masks: [u16; WIDTH],
            ) -> usize {
                let mut sums = [[_mm512_setzero_ps(); WIDTH]; ROWS];
                // SAFETY: as the caller has it.
                unsafe {
                    let (mut a, mut b) = (task.a.add(row * task.a_stride), task.b.add(column));
                    for _ in 0..task.depth {
                        let mut vectors = [_mm512_setzero_ps(); WIDTH];
                        for j in 0..WIDTH {
                            vectors[j] = _mm512_maskz_loadu_ps(masks[j], b.add(16 * j));
                        }
                        for (i, sums) in sums.iter_mut().enumerate() {
                            let $x = _mm512_set1_ps(*a.add(i * task.a_stride));
                            for (sum, vector) in sums.iter_mut().zip(&vectors) {
                                let ($sum, $vector) = (*sum, *vector);
                                *sum = $dot;
                            }
                        }
                        (a, b) = (a.add(1), b.add(task.b_stride));
                    }
                    for (i, sums) in sums.iter().enumerate() {
                        for j in 0..WIDTH {
                            let target = task.y.add((row + i) * task.y_stride + column + 16 * j);
                            let before = match task.add {
                                true => _mm512_maskz_loadu_ps(masks[j], target),
                                false => _mm512_setzero_ps(),
                            };
                            store(target, masks[j], _mm512_add_ps(before, sums[j]));
                        }
                    }
                }
                ROWS
            }
            for column in (0..columns).step_by(32) {
                let left = columns - column;
                let (first, second) = (mask(left), mask(left.saturating_sub(16)));
                let mut row = 0;
                // SAFETY: rows are counted here, columns masked.
                unsafe {
                    while row < rows {
                        let at = [row, column];
                        row += match (rows - row, left > 16) {
                            (12.., true) => block::<12, 2>(task, at, [first, second]),
                            (12.., false) => block::<12, 1>(task, at, [first]),
                            (4.., true) => block::<4, 2>(task, at, [first, second]),
                            (4.., false) => block::<4, 1>(task, at, [first]),
                            (_, true) => block::<1, 2>(task, at, [first, second]),
                            (_, false) => block::<1, 1>(task, at, [first]),
                        };
                    }
                }
            }
        }
    };
}

kernel!(single, "avx512f", |sum, x, vector| _mm512_fmadd_ps(x, vector, sum));

kernel!(half, "avx512f,avx512bf16", |sum, x, vector| {
    let bits = |pairs| std::mem::transmute::<__m512, __m512bh>(pairs);
    _mm512_dpbf16_ps(sum, bits(x), bits(vector))
});

/// Rows as columns, both matrices as `super::transpose` has them, in whole vectors: there is room for zeros in the place of
/// the rows that are missing in the last.
pub fn transpose(to: &mut [f32], from: Matrix, stride: usize) {
    let rows = from.rows;
    assert!(rows.next_multiple_of(16) <= stride && from.columns.is_multiple_of(16), "whole vectors");
    assert!(rows == 0 || (rows - 1) * from.row_stride + from.columns <= from.data.len(), "from in bounds");
    assert!(from.columns * stride <= to.len(), "to in bounds");
    for row in (0..rows).step_by(16) {
        for column in (0..from.columns).step_by(16) {
            // SAFETY: the machine has AVX-512, and as many rows of 16 numbers lie inside of either, by the assertions.
            unsafe {
                let from = (from.data.as_ptr().add(row * from.row_stride + column), from.row_stride);
                turn(to.as_mut_ptr().add(column * stride + row), stride, from, rows - row);
            }
        }
    }
}

/// 16 rows of 16 numbers, with their strides; behind the first `count` rows zeros.
#[target_feature(enable = "avx512f")]
unsafe fn turn(to: *mut f32, stride: usize, (from, from_stride): (*const f32, usize), count: usize) {
    // SAFETY: as the caller has it.
    let row = |i: usize| unsafe { _mm512_loadu_ps(from.add(i * from_stride)) };
    let mut rows: [__m512; 16] = match count {
        16.. => std::array::from_fn(row),
        _ => std::array::from_fn(|i| if i < count { row(i) } else { _mm512_setzero_ps() }),
    };
    // In each quarter of the vectors, numbers of two rows side by side, then of four.
    for i in (0..16).step_by(2) {
        let [a, b] = [rows[i], rows[i + 1]];
        (rows[i], rows[i + 1]) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    }
    let mut fours = rows;
    for i in (0..16).step_by(4) {
        for j in 0..2 {
            let [a, b] = [_mm512_castps_pd(rows[i + j]), _mm512_castps_pd(rows[i + j + 2])];
            fours[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            fours[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    }
    // Then quarters of four vectors become one.
    for j in 0..4 {
        let [a, b, c, d] = [fours[j], fours[j + 4], fours[j + 8], fours[j + 12]];
        let (even, odd) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
        let (later_even, later_odd) = (_mm512_shuffle_f32x4::<0x88>(c, d), _mm512_shuffle_f32x4::<0xdd>(c, d));
        let columns = [
            (j, _mm512_shuffle_f32x4::<0x88>(even, later_even)),
            (j + 4, _mm512_shuffle_f32x4::<0x88>(odd, later_odd)),
            (j + 8, _mm512_shuffle_f32x4::<0xdd>(even, later_even)),
            (j + 12, _mm512_shuffle_f32x4::<0xdd>(odd, later_odd)),
        ];
        for (column, vector) in columns {
            // SAFETY: as the caller has it.
            unsafe { _mm512_storeu_ps(to.add(column * stride), vector) };
        }
    }
}
