//! How a kernel sees a candle tensor on the CPU: f32 rows in a slice, with checked strides.

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor, bail};
use std::ops::{Deref, Range};

/// Rows of a tensor of rank 2 `[rows, width]` or 3 `[outer, inner, width]`, whatever the strides of all but the last.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    data: &'a [f32],
    /// Rows in all.
    pub count: usize,
    /// Elements of a row.
    pub width: usize,
    inner: usize,
    outer_stride: usize,
    inner_stride: usize,
}

impl<'a> Rows<'a> {
    /// The view, or an error where elements are not f32 or rows not dense.
    pub fn of(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        let data = &storage.as_slice::<f32>()?[layout.start_offset()..];
        let (outer, inner, width, outer_stride, inner_stride) = match (layout.dims(), layout.stride()) {
            // A row of one element is dense whatever its stride is called.
            (&[rows, width], &[stride, step]) if step == 1 || width == 1 => (rows, 1, width, stride, 0),
            (&[outer, inner, width], &[outer_stride, inner_stride, step]) if step == 1 || width == 1 => {
                (outer, inner, width, outer_stride, inner_stride)
            }
            (dims, stride) => bail!("kernel needs dense rows, got shape {dims:?} with strides {stride:?}"),
        };
        Ok(Self { data, count: outer * inner, width, inner, outer_stride, inner_stride })
    }

    /// Row `index`, counted with the inner dimension fastest.
    #[inline(always)]
    pub fn row(&self, index: usize) -> &'a [f32] {
        let start = index / self.inner * self.outer_stride + index % self.inner * self.inner_stride;
        &self.data[start..start + self.width]
    }

    /// The matrix that all rows are, where they are equally far from each other.
    pub fn all(&self) -> Option<Matrix<'a>> {
        (self.inner == 1).then(|| self.matrix(0..self.count, 0))
    }

    /// The matrix of rows `outer` at one `inner` index: for `[tokens, heads, width]`, some tokens of one head.
    pub fn matrix(&self, outer: Range<usize>, inner: usize) -> Matrix<'a> {
        let start = outer.start * self.outer_stride + inner * self.inner_stride;
        Matrix {
            data: self.data.get(start..).unwrap_or_default(),
            rows: outer.len(),
            columns: self.width,
            row_stride: self.outer_stride,
            column_stride: 1,
        }
    }
}

/// A strided matrix that is read.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    /// From its first element on.
    pub data: &'a [f32],
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Elements from one row to the next.
    pub row_stride: usize,
    /// Elements from one column to the next.
    pub column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// One whose rows follow each other.
    pub fn dense(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self { data, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// Its rows, which must be dense.
    pub fn each_row(self) -> impl Iterator<Item = &'a [f32]> {
        let (data, columns, stride) = (self.data, self.columns, self.row_stride);
        (0..self.rows).map(move |row| &data[row * stride..][..columns])
    }

    /// The same elements with rows and columns exchanged.
    pub fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// A matrix that is written; its rows are dense.
pub struct MatrixMut<'a> {
    /// From its first element on.
    pub data: &'a mut [f32],
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Elements from one row to the next.
    pub row_stride: usize,
}

/// A tensor of rank 2 with dense rows.
pub fn matrix<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<Matrix<'a>> {
    match Rows::of(storage, layout)?.all() {
        Some(matrix) => Ok(matrix),
        None => bail!("kernel needs a matrix, got shape {:?}", layout.dims()),
    }
}

/// A dense tensor's elements.
pub fn dense<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("kernel needs a dense tensor, got strides {:?}", layout.stride()),
    }
}

/// A tensor that is a field of an operation, not one of its arguments.
pub struct Lent<'a> {
    storage: Box<dyn Deref<Target = Storage> + 'a>,
    layout: &'a Layout,
}

impl<'a> Lent<'a> {
    /// The tensor, lent.
    pub fn of(tensor: &'a Tensor) -> Self {
        let (storage, layout) = tensor.storage_and_layout();
        Self { storage: Box::new(storage), layout }
    }

    /// The elements of a dense one.
    pub fn dense(&self) -> Result<&[f32]> {
        dense(self.cpu()?, self.layout)
    }

    /// The matrix that one of rank 2 is.
    pub fn matrix(&self) -> Result<Matrix<'_>> {
        matrix(self.cpu()?, self.layout)
    }

    fn cpu(&self) -> Result<&CpuStorage> {
        match &**self.storage {
            Storage::Cpu(storage) => Ok(storage),
            _ => bail!("kernel operand lies on another device"),
        }
    }
}

/// Calls `f` with the elements of a dense tensor that is a field of an operation.
pub fn with_dense<R>(tensor: Option<&Tensor>, f: impl FnOnce(Option<&[f32]>) -> Result<R>) -> Result<R> {
    match tensor {
        Some(tensor) => f(Some(Lent::of(tensor).dense()?)),
        None => f(None),
    }
}
