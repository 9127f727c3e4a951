//! Products of matrices that are too small to be worth packing: what attention multiplies, sequence by sequence and head
//! by head. With AVX-512 by a kernel of their own, elsewhere by the `gemm` crate.

#[cfg(target_arch = "x86_64")]
mod avx512;

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
    if has_kernel() {
        return avx512::multiply(y, add, a, b);
    }
    super::product::multiply(y, add, a, b);
}

/// Whether the kernel is there, so that a product costs no more than its multiplications.
pub fn has_kernel() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Whether this machine multiplies numbers of bf16, two and two.
pub fn has_pairs() -> bool {
    #[cfg(target_arch = "x86_64")]
    return has_kernel() && is_x86_feature_detected!("avx512bf16");
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
    let _ = (y, add);
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
    to.resize(from.columns * stride, 0.0);
    #[cfg(target_arch = "x86_64")]
    if has_kernel() && from.columns.is_multiple_of(16) && from.rows.next_multiple_of(16) == stride {
        return avx512::transpose(to, from, stride);
    }
    to.fill(0.0);
    for row in 0..from.rows {
        let numbers = &from.data[row * from.row_stride..][..from.columns];
        to[row..].iter_mut().step_by(stride).zip(numbers).for_each(|(to, x)| *to = *x);
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
            let (mut a_pairs, mut b_pairs, mut y) = (vec![7.0], vec![7.0], vec![0.0; rows * columns]);
            let width = pairs(&mut a_pairs, Matrix::dense(&a, rows, depth));
            assert_eq!(pairs_of_rows(&mut b_pairs, Matrix::dense(&b, depth, columns)), width);
            let target = MatrixMut { data: &mut y, rows, columns, row_stride: columns };
            multiply_pairs(
                target,
                false,
                Matrix::dense(&a_pairs, rows, width),
                Matrix::dense(&b_pairs, width, columns),
            );
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
