//! Numbers in a device's memory, and windows of them.
#![expect(unsafe_code, reason = "numbers are bytes to a device")]

use super::gpu::{Arrival, Bytes, Gpu, Memory};
use super::{columns, norm};
use crate::error::{Error, Result};
use candle_core::{CpuStorage, DType, Device, Storage, Tensor, WithDType};
use std::sync::Arc;

/// A window of numbers of f32, bf16, f16 or u32, of up to three dimensions; clones share the memory. Those of 16 bits may
/// have a rest, of u8: kernels refuse them then, and who calls these says which he means, `whole` or `to_dtype`.
#[derive(Clone)]
pub struct Array {
    memory: Arc<Memory>,
    dtype: DType,
    /// First element.
    start: usize,
    dims: Vec<usize>,
    /// Elements from one index to the next, a dimension each.
    strides: Vec<usize>,
    /// The same in 16 bits, where what made it made that too.
    rounded: Option<Box<Array>>,
    /// How far the numbers are from these, see split.cuh, where they are wanted in more than 16 bits: bytes, as dense.
    rest: Option<Box<Array>>,
}

/// Rows of an array: `[outer, inner, width]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rows {
    pub outer: usize,
    pub inner: usize,
    pub width: usize,
    pub outer_stride: usize,
    pub inner_stride: usize,
}

impl Array {
    /// Dense, of whatever was there.
    pub fn new(gpu: &Gpu, dtype: DType, dims: &[usize]) -> Result<Self> {
        let elements: usize = dims.iter().product();
        Ok(Self::dense_in(gpu.allocate(elements * dtype.size_in_bytes())?, dtype, dims))
    }

    fn dense_in(memory: Memory, dtype: DType, dims: &[usize]) -> Self {
        let (memory, dims, strides) = (Arc::new(memory), dims.to_vec(), dense_strides(dims));
        Self { memory, dtype, start: 0, dims, strides, rounded: None, rest: None }
    }

    /// A dense copy of a host's tensor.
    pub fn of(gpu: &Gpu, tensor: &Tensor) -> Result<Self> {
        let tensor = tensor.contiguous()?;
        let (storage, layout) = tensor.storage_and_layout();
        let elements = layout.start_offset()..layout.start_offset() + tensor.elem_count();
        let bytes = match &*storage {
            Storage::Cpu(CpuStorage::F32(numbers)) => bytes(&numbers[elements]),
            Storage::Cpu(CpuStorage::BF16(numbers)) => bytes(&numbers[elements]),
            Storage::Cpu(CpuStorage::F16(numbers)) => bytes(&numbers[elements]),
            Storage::Cpu(CpuStorage::U32(numbers)) => bytes(&numbers[elements]),
            _ => return Err(Error::Internal(format!("numbers of {:?} are not for a GPU", tensor.dtype()))),
        };
        Ok(Self::dense_in(gpu.bring(bytes)?, tensor.dtype(), tensor.dims()))
    }

    /// Numbers as they are.
    pub fn of_numbers(gpu: &Gpu, numbers: &[u32]) -> Result<Self> {
        Ok(Self::dense_in(gpu.bring(bytes(numbers))?, DType::U32, &[numbers.len()]))
    }

    /// Its way to the host, which begins once it is computed and needs nobody to wait.
    pub fn depart(&self) -> Result<Arriving> {
        if self.dims.len() == 2 && self.strides[0] == 1 && self.strides[1] != 1 {
            return Ok(Arriving { is_transposed: true, ..self.transposed()?.depart()? });
        }
        if !self.is_dense() || self.rest.is_some() {
            return self.copy()?.depart();
        }
        let bytes = self.gpu().download(self.address(), self.elements() * self.dtype.size_in_bytes())?;
        Ok(Arriving { bytes, dtype: self.dtype, dims: self.dims.clone(), is_transposed: false })
    }

    /// Where it lies.
    pub fn gpu(&self) -> &Gpu {
        &self.memory.gpu
    }

    /// Address of its first element.
    pub(super) fn address(&self) -> u64 {
        self.memory.address + (self.start * self.dtype.size_in_bytes()) as u64
    }

    /// Sizes.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Elements from one index to the next, a dimension each.
    pub(super) fn strides(&self) -> &[usize] {
        &self.strides
    }

    /// What its numbers are.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// How many numbers.
    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }

    /// Whether its elements lie side by side, in order.
    pub fn is_dense(&self) -> bool {
        let dense = dense_strides(&self.dims);
        self.dims.iter().zip(&self.strides).zip(dense).all(|((dim, stride), dense)| *dim <= 1 || *stride == dense)
    }

    /// Some indices of a dimension.
    pub fn narrow(&self, dimension: usize, first: usize, count: usize) -> Result<Self> {
        if first + count > self.dims[dimension] {
            return Err(Error::Internal(format!("{count} from {first} on, of {:?}", self.dims)));
        }
        let mut part = self.clone();
        part.start += first * self.strides[dimension];
        part.dims[dimension] = count;
        let narrowed = |all: &Option<Box<Self>>| {
            all.as_ref().map(|all| all.narrow(dimension, first, count).map(Box::new)).transpose()
        };
        (part.rounded, part.rest) = (narrowed(&self.rounded)?, narrowed(&self.rest)?);
        Ok(part)
    }

    /// The same elements in other dimensions; they must lie side by side.
    pub fn reshape(&self, dims: &[usize]) -> Result<Self> {
        if !self.is_dense() || dims.iter().product::<usize>() != self.elements() {
            return Err(Error::Internal(format!("{:?} with strides {:?} is no {dims:?}", self.dims, self.strides)));
        }
        let (dims, strides) = (dims.to_vec(), dense_strides(dims));
        Ok(Self { dims, strides, rounded: None, rest: None, ..self.whole()? })
    }

    /// The last two dimensions exchanged.
    pub fn transposed(&self) -> Result<Self> {
        let rank = self.dims.len();
        if rank < 2 {
            return Err(Error::Internal("a vector has no transpose".into()));
        }
        let mut array = Self { rounded: None, rest: None, ..self.whole()? };
        array.dims.swap(rank - 2, rank - 1);
        array.strides.swap(rank - 2, rank - 1);
        Ok(array)
    }

    /// The same, whose elements must lie side by side and be as many.
    pub(super) fn dense(&self, elements: usize) -> Result<&Self> {
        match self.is_dense() && self.elements() == elements {
            true => Ok(self),
            false => Err(Error::Internal(format!("{self:?} with strides {:?} is not {elements} dense", self.strides))),
        }
    }

    /// Its rows, which must be dense each.
    pub(super) fn rows(&self) -> Result<Rows> {
        let (width, step) = (self.dims.last().copied().unwrap_or(1), self.strides.last().copied().unwrap_or(1));
        if step != 1 && width > 1 {
            return Err(Error::Internal(format!("rows of {:?} are not dense: {:?}", self.dims, self.strides)));
        }
        match (&*self.dims, &*self.strides) {
            (&[_], _) => Ok(Rows { outer: 1, inner: 1, width, outer_stride: width, inner_stride: width }),
            (&[outer, _], &[stride, _]) => {
                Ok(Rows { outer, inner: 1, width, outer_stride: stride, inner_stride: width })
            }
            (&[outer, inner, _], &[outer_stride, inner_stride, _]) => {
                Ok(Rows { outer, inner, width, outer_stride, inner_stride })
            }
            (dims, _) => Err(Error::Internal(format!("kernels take no array of {dims:?}"))),
        }
    }

    /// The rows of a matrix and their stride, in elements.
    pub(super) fn matrix(&self) -> Result<[usize; 3]> {
        match self.rows()? {
            Rows { outer, inner: 1, width, outer_stride, .. } => Ok([outer, width, outer_stride]),
            _ => Err(Error::Internal(format!("a matrix is needed, not {:?}", self.dims))),
        }
    }

    /// A dense copy.
    pub fn copy(&self) -> Result<Self> {
        if self.rest.is_some() { self.whole() } else { self.to_dtype_copied(self.dtype) }
    }

    /// The same, of which this is a copy in another type. It must not be changed in place.
    pub(super) fn with_rounded(self, rounded: Option<Self>) -> Self {
        Self { rounded: rounded.map(Box::new), ..self }
    }

    /// The same numbers with the rest of them, of which [`Array::whole`] makes f32.
    pub(super) fn with_rest(self, rest: Self) -> Self {
        Self { rest: Some(rest.into()), ..self }
    }

    /// The rest of its numbers, where they have one.
    pub(super) fn rest(&self) -> Option<&Self> {
        self.rest.as_deref()
    }

    /// In one piece: f32 where its numbers have a rest, or as it is.
    pub(super) fn whole(&self) -> Result<Self> {
        if self.rest.is_some() { norm::join(self) } else { Ok(self.clone()) }
    }

    /// In another type, or as it is.
    pub fn to_dtype(&self, dtype: DType) -> Result<Self> {
        match (&self.rounded, &self.rest) {
            (_, Some(_)) if self.dtype == dtype => Ok(Self { rest: None, ..self.clone() }),
            (_, Some(_)) => self.whole()?.to_dtype(dtype),
            _ if self.dtype == dtype => Ok(self.clone()),
            (Some(rounded), _) if rounded.dtype == dtype => Ok((**rounded).clone()),
            _ => self.to_dtype_copied(dtype),
        }
    }

    fn to_dtype_copied(&self, dtype: DType) -> Result<Self> {
        let copy = Self::new(self.gpu(), dtype, &self.dims)?;
        columns::assign(&copy, self)?;
        Ok(copy)
    }
}

/// An array on its way to the host.
pub struct Arriving {
    bytes: Box<dyn Arrival>,
    dtype: DType,
    dims: Vec<usize>,
    /// Whether it is to be a matrix's transpose.
    is_transposed: bool,
}

impl Arriving {
    /// Waits for it.
    pub fn wait(self) -> Result<Tensor> {
        let (bytes, dims) = (self.bytes.wait()?, self.dims);
        let bytes = (*bytes).as_ref();
        let tensor = match self.dtype {
            DType::BF16 => tensor(bytes, &dims, half::bf16::from_le_bytes),
            DType::F16 => tensor(bytes, &dims, half::f16::from_le_bytes),
            DType::U32 => tensor(bytes, &dims, u32::from_le_bytes),
            _ => tensor(bytes, &dims, f32::from_le_bytes),
        }?;
        Ok(if self.is_transposed { tensor.t()? } else { tensor })
    }

    /// Waits for rows of f32, dense as they are; and how many numbers a row has.
    pub fn wait_rows(self) -> Result<(Bytes, usize)> {
        match (self.dtype, &*self.dims, self.is_transposed) {
            (DType::F32, &[_, width], false) => Ok((self.bytes.wait()?, width)),
            _ => Err(Error::Internal(format!("{:?} of {:?} are no rows of f32", self.dims, self.dtype))),
        }
    }
}

fn bytes<T: WithDType>(numbers: &[T]) -> &[u8] {
    // SAFETY: numbers are bytes without gaps.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast::<u8>(), size_of_val(numbers)) }
}

fn tensor<T: WithDType, const N: usize>(bytes: &[u8], dims: &[usize], number: impl Fn([u8; N]) -> T) -> Result<Tensor> {
    let numbers: Vec<T> = bytes.as_chunks().0.iter().map(|bytes| number(*bytes)).collect();
    Ok(Tensor::from_vec(numbers, dims, &Device::Cpu)?)
}

impl std::fmt::Debug for Array {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Array{:?} of {:?}", self.dims, self.dtype)
    }
}

fn dense_strides(dims: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; dims.len()];
    for place in (1..dims.len()).rev() {
        strides[place - 1] = strides[place] * dims[place];
    }
    strides
}
