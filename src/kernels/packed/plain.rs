//! Integers by loops that any machine runs.

use super::tiles::{Sums, TILE, Tile, WIDTH};
use crate::kernels::math::vectorized;

/// Some rows of a block times a panel of columns, both of integers.
pub fn multiply(rows: &[Tile], columns: &[Tile], y: &mut [Sums]) {
    vectorized(
        #[inline(always)]
        || {
            for (place, y) in y.iter_mut().enumerate() {
                let mut sums = [0i32; 2 * WIDTH];
                for (row, columns) in rows.iter().zip(columns.as_chunks::<2>().0) {
                    let row = &row.0[place * 64..(place + 1) * 64];
                    for (sums, tile) in sums.chunks_exact_mut(WIDTH).zip(columns) {
                        for (row, column) in row.chunks_exact(4).zip(tile.0.chunks_exact(TILE / WIDTH)) {
                            for (sum, column) in sums.iter_mut().zip(column.chunks_exact(4)) {
                                *sum += (0..4).map(|i| i32::from(row[i]) * i32::from(column[i] as i8)).sum::<i32>();
                            }
                        }
                    }
                }
                *y = sums.map(|sum| f32::from_bits(sum as u32));
            }
        },
    );
}
