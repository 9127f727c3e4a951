//! Products of matrices that are too small to be worth packing: what attention multiplies, sequence by sequence and head
//! by head. With AVX-512 by a kernel of their own, elsewhere by the `gemm` crate.
#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "bounds are checked once a product"))]

use super::math::vectorized;
use super::packed::rounded;
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

/// Whether this machine multiplies numbers of bf16, two and two.
pub fn has_pairs() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// As [`multiply`], of numbers of bf16: of `a` two neighbours in a row stand in the place of one of f32, of `b` two in a
/// column; see [`pairs`] and [`pairs_of_rows`].
///
/// # Panics
/// As [`multiply`], and where the machine has no such product.
pub fn multiply_pairs(y: MatrixMut, add: bool, a: Matrix, b: Matrix) {
    assert!(has_pairs() && (a.column_stride, b.column_stride) == (1, 1), "dense rows of pairs");
    #[cfg(target_arch = "x86_64")]
    avx512::multiply_pairs(y, add, a, b);
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!("{} {add} {} {}", y.rows, a.rows, b.rows);
}

/// Neighbours of each row in pairs of bf16: `[rows, columns]` to `[rows, columns / 2]`, rounded up. Returns that width.
pub fn pairs(to: &mut Vec<f32>, from: Matrix) -> usize {
    let width = from.columns.div_ceil(2);
    to.resize(from.rows * width, 0.0);
    #[cfg(target_arch = "x86_64")]
    if has_pairs() {
        avx512::pairs(to, from);
        return width;
    }
    vectorized(
        #[inline(always)]
        || {
            for (row, to) in to.chunks_exact_mut(width.max(1)).enumerate() {
                let (both, last) = from.data[row * from.row_stride..][..from.columns].as_chunks::<2>();
                to.iter_mut().zip(both).for_each(|(to, [a, b])| *to = pair(*a, *b));
                if let (Some(to), [a]) = (to.last_mut(), last) {
                    *to = pair(*a, 0.0);
                }
            }
        },
    );
    width
}

/// Rows in pairs of bf16, number by number: `[rows, columns]` to `[rows / 2, columns]`, rounded up. Returns that height.
pub fn pairs_of_rows(to: &mut Vec<f32>, from: Matrix) -> usize {
    let height = from.rows.div_ceil(2);
    to.resize(height * from.columns, 0.0);
    vectorized(
        #[inline(always)]
        || {
            for (place, to) in to.chunks_exact_mut(from.columns.max(1)).enumerate() {
                let row = |row: usize| &from.data[row * from.row_stride..][..from.columns];
                let first = row(2 * place);
                if 2 * place + 1 < from.rows {
                    let second = row(2 * place + 1);
                    to.iter_mut().zip(first.iter().zip(second)).for_each(|(to, (a, b))| *to = pair(*a, *b));
                } else {
                    to.iter_mut().zip(first).for_each(|(to, a)| *to = pair(*a, 0.0));
                }
            }
        },
    );
    height
}

#[inline(always)]
fn pair(a: f32, b: f32) -> f32 {
    f32::from_bits(rounded(a).to_bits() >> 16 | rounded(b).to_bits())
}

/// The rows of `from` as columns of `to`, whose rows have `from.rows` numbers and then zeros up to `stride`.
pub fn transpose(to: &mut Vec<f32>, from: Matrix, stride: usize) {
    to.clear();
    to.resize(from.columns * stride, 0.0);
    let mut rows = 0;
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") && from.columns.is_multiple_of(16) {
        rows = from.rows / 16 * 16;
        avx512::transpose(to, from, rows, stride);
    }
    for row in rows..from.rows {
        let numbers = &from.data[row * from.row_stride..][..from.columns];
        to[row..].iter_mut().step_by(stride).zip(numbers).for_each(|(to, x)| *to = *x);
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{Matrix, MatrixMut};
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
        let mask = |count: usize| if count < 16 { (1u16 << count) - 1 } else { !0 };
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
                    let mask = |vector: usize| match left.saturating_sub(16 * vector) {
                        16.. => !0,
                        some => (1u16 << some) - 1,
                    };
                    let mut row = 0;
                    // SAFETY: rows are counted here, columns masked.
                    unsafe {
                        while row < rows {
                            let at = [row, column];
                            row += match (rows - row, left > 16) {
                                (12.., true) => block::<12, 2>(task, at, [mask(0), mask(1)]),
                                (12.., false) => block::<12, 1>(task, at, [mask(0)]),
                                (4.., true) => block::<4, 2>(task, at, [mask(0), mask(1)]),
                                (4.., false) => block::<4, 1>(task, at, [mask(0)]),
                                (_, true) => block::<1, 2>(task, at, [mask(0), mask(1)]),
                                (_, false) => block::<1, 1>(task, at, [mask(0)]),
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

    /// The first rows, a multiple of 16 of them, as columns; both matrices are as `super::transpose` has them.
    pub fn transpose(to: &mut [f32], from: Matrix, rows: usize, stride: usize) {
        assert!(rows.is_multiple_of(16) && from.columns.is_multiple_of(16) && rows <= stride, "whole vectors");
        assert!(rows == 0 || (rows - 1) * from.row_stride + from.columns <= from.data.len(), "from in bounds");
        assert!(from.columns * stride <= to.len(), "to in bounds");
        for row in (0..rows).step_by(16) {
            for column in (0..from.columns).step_by(16) {
                // SAFETY: the machine has AVX-512, and 16 rows of 16 numbers lie inside of either, by the assertions.
                unsafe {
                    let from = (from.data.as_ptr().add(row * from.row_stride + column), from.row_stride);
                    turn(to.as_mut_ptr().add(column * stride + row), stride, from);
                }
            }
        }
    }

    /// 16 rows of 16 numbers, with their strides.
    #[target_feature(enable = "avx512f")]
    unsafe fn turn(to: *mut f32, stride: usize, (from, from_stride): (*const f32, usize)) {
        // SAFETY: as the caller has it.
        let mut rows: [__m512; 16] = std::array::from_fn(|i| unsafe { _mm512_loadu_ps(from.add(i * from_stride)) });
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
    fn pairs_give_the_product_of_rounded_numbers() {
        if !has_pairs() {
            return println!("skipped: no BF16");
        }
        let numbers = |count: usize| (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect::<Vec<f32>>();
        for [rows, depth, columns] in [[1, 1, 1], [13, 32, 48], [30, 17, 33], [5, 64, 100]] {
            let (a, b) = (numbers(rows * depth), numbers(depth * columns));
            let matrix = |data, rows, columns| Matrix { data, rows, columns, row_stride: columns, column_stride: 1 };
            let (mut a_pairs, mut b_pairs, mut y) = (vec![7.0], vec![7.0], vec![0.0; rows * columns]);
            let width = pairs(&mut a_pairs, matrix(&a, rows, depth));
            assert_eq!(pairs_of_rows(&mut b_pairs, matrix(&b, depth, columns)), width);
            let target = MatrixMut { data: &mut y, rows, columns, row_stride: columns };
            multiply_pairs(target, false, matrix(&a_pairs, rows, width), matrix(&b_pairs, width, columns));
            for (place, y) in y.iter().enumerate() {
                let (row, column) = (place / columns, place % columns);
                let dot = (0..depth).map(|k| rounded(a[row * depth + k]) * rounded(b[k * columns + column]));
                assert!((y - dot.sum::<f32>()).abs() < 1e-4, "{rows} {depth} {columns} {place}");
            }
        }
    }

    #[test]
    fn whole_blocks_of_rows_become_columns_too() {
        let data: Vec<f32> = (0..40 * 35).map(|i| i as f32).collect();
        let from = Matrix { data: &data, rows: 37, columns: 32, row_stride: 35, column_stride: 1 };
        let mut to = Vec::new();
        transpose(&mut to, from, 48);
        let expected = (0..32 * 48).map(|i| if i % 48 < 37 { data[i % 48 * 35 + i / 48] } else { 0.0 });
        assert!(expected.zip(&to).all(|(a, b)| a == *b));
    }

    #[test]
    fn rows_become_columns() {
        let data = [1.0, 2.0, 9.0, 3.0, 4.0, 9.0];
        let mut to = vec![7.0; 100];
        transpose(&mut to, Matrix { data: &data, rows: 2, columns: 2, row_stride: 3, column_stride: 1 }, 3);
        assert_eq!(to, [1.0, 3.0, 0.0, 2.0, 4.0, 0.0]);
    }
}
