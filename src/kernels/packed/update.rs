//! Updates of low rank, added to what a product sums up while that is in the nearest cache.
#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "memory is asked for ahead"))]

use super::tiles::{PANEL, Sums};
use crate::kernels::small;
use crate::kernels::view::{Lent, Matrix, MatrixMut};
use candle_core::{Result, Tensor};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
use std::ops::Range;

/// `y[rows, outputs] += left right`, of a product `y`.
pub struct Update {
    /// Rows of the product.
    pub rows: Range<usize>,
    /// Outputs of the product.
    pub outputs: Range<usize>,
    /// `[rows, rank]`.
    pub left: Tensor,
    /// `[rank, outputs]`.
    pub right: Tensor,
}

/// The same, with its numbers at hand.
pub struct Lending<'a> {
    update: &'a Update,
    left: Lent<'a>,
    right: Lent<'a>,
}

impl<'a> Lending<'a> {
    pub fn of(update: &'a Update) -> Self {
        Self { update, left: Lent::of(&update.left), right: Lent::of(&update.right) }
    }

    pub fn matrices(&self) -> Result<Matrices<'_>> {
        let Update { rows, outputs, .. } = self.update;
        let (left, right) = (self.left.matrix()?, self.right.matrix()?);
        Ok(Matrices { first_row: rows.start, first_output: outputs.start, left, right })
    }
}

/// An update's factors, and where the first row and the first output of their product belong.
#[derive(Clone, Copy)]
pub struct Matrices<'a> {
    first_row: usize,
    first_output: usize,
    left: Matrix<'a>,
    right: Matrix<'a>,
}

impl Matrices<'_> {
    /// What there is of it at some outputs.
    pub fn at(mut self, outputs: &Range<usize>) -> Option<Self> {
        let (start, end) =
            (outputs.start.max(self.first_output), outputs.end.min(self.first_output + self.right.columns));
        self.right.data = self.right.data.get(start - self.first_output..)?;
        (self.first_output, self.right.columns) = (start, end.checked_sub(start).filter(|columns| *columns > 0)?);
        Some(self)
    }

    /// Asks memory for what there is of it at some outputs: its rows there lie too far apart for the machine to foresee them.
    #[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables, reason = "elsewhere it is not asked"))]
    pub fn foresee(&self, outputs: &Range<usize>) {
        #[cfg(target_arch = "x86_64")]
        for part in self.at(outputs).into_iter().flat_map(|part| part.right.each_row()) {
            for line in part.chunks(16) {
                // SAFETY: it is no access.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
            }
        }
    }

    /// Adds it to the sums of rows from `row` on, in which the output `output` stands at `place`. It has none before, and
    /// none behind those that the sums have.
    pub fn add(&self, sums: &mut [Sums], row: usize, output: usize, place: usize) {
        let (start, end) = (row.max(self.first_row), (row + sums.len()).min(self.first_row + self.left.rows));
        if start >= end {
            return;
        }
        let first = (start - self.first_row) * self.left.row_stride;
        let left = Matrix { data: &self.left.data[first..], rows: end - start, ..self.left };
        let data = &mut sums.as_flattened_mut()[(start - row) * PANEL + place + self.first_output - output..];
        let target = MatrixMut { data, rows: end - start, columns: self.right.columns, row_stride: PANEL };
        small::multiply(target, true, left, self.right);
    }
}
