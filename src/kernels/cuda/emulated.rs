//! The kernels on the host, compiled from the same files, and a plain matrix product in the place of cuBLASLt. Every
//! address is one of this process.
#![expect(unsafe_code, reason = "kernels take raw addresses")]

use super::gpu::{Backend, Multiplication};
use super::launch::Argument;
use crate::error::{Error, Result};
use candle_core::DType;
use half::{bf16, f16};
use std::collections::HashMap;
use std::ffi::{CString, c_char, c_int, c_void};
use std::sync::{Mutex, PoisonError};

unsafe extern "C" {
    /// 0: done; 1: there is no such kernel; 2: threads of a block waited for different things.
    fn emulated_launch(
        kernel: *const c_char,
        grid: *const u32,
        block: *const u32,
        arguments: *mut *mut c_void,
    ) -> c_int;
}

/// Memory, by address, in pieces that any element is aligned in.
#[derive(Default)]
pub struct Emulated {
    memory: Mutex<HashMap<u64, Vec<u128>>>,
}

impl Backend for Emulated {
    fn name(&self) -> &str {
        "an emulated GPU"
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        // What was never written is NaN in every type, and so is what is made of it.
        let piece = vec![u128::MAX; bytes.div_ceil(16).max(1)];
        let address = piece.as_ptr() as u64;
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).insert(address, piece);
        Ok(address)
    }

    fn free(&self, address: u64) {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).remove(&address);
    }

    fn upload(&self, address: u64, bytes: &[u8]) -> Result<()> {
        // SAFETY: whoever asks has so much memory there.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
        Ok(())
    }

    fn download(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        // SAFETY: whoever asks has so much memory there.
        unsafe { std::ptr::copy_nonoverlapping(address as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn launch(&self, kernel: &str, grid: [u32; 3], block: u32, arguments: &[Argument]) -> Result<()> {
        let name = CString::new(kernel).map_err(|e| Error::Internal(e.to_string()))?;
        let mut pointers: Vec<*mut c_void> = arguments.iter().map(Argument::pointer).collect();
        let block = [block, 1, 1];
        // SAFETY: the arguments are those that the kernel takes, and outlive the call, in which it runs to its end.
        match unsafe { emulated_launch(name.as_ptr(), grid.as_ptr(), block.as_ptr(), pointers.as_mut_ptr()) } {
            0 => Ok(()),
            1 => Err(Error::Internal(format!("there is no kernel '{kernel}'"))),
            _ => Err(Error::Internal(format!("the threads of '{kernel}' wait for each other"))),
        }
    }

    fn multiply(&self, product: &Multiplication) -> Result<()> {
        match product.dtype {
            DType::BF16 => with_outputs::<bf16>(product),
            DType::F16 => with_outputs::<f16>(product),
            _ => multiply::<f32, f32>(product),
        }
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn is_emulated(&self) -> bool {
        true
    }

    fn memory(&self) -> Result<(usize, usize)> {
        Ok((1 << 30, 1 << 30))
    }
}

/// A type of numbers.
trait Number: Copy {
    fn wide(self) -> f32;
    fn of(wide: f32) -> Self;
}

impl Number for f32 {
    fn wide(self) -> f32 {
        self
    }
    fn of(wide: f32) -> Self {
        wide
    }
}

impl Number for bf16 {
    fn wide(self) -> f32 {
        self.to_f32()
    }
    fn of(wide: f32) -> Self {
        Self::from_f32(wide)
    }
}

impl Number for f16 {
    fn wide(self) -> f32 {
        self.to_f32()
    }
    fn of(wide: f32) -> Self {
        Self::from_f32(wide)
    }
}

fn with_outputs<T: Number>(product: &Multiplication) {
    match product.dtype_out {
        DType::F32 => multiply::<T, f32>(product),
        _ => multiply::<T, T>(product),
    }
}

fn multiply<T: Number, Y: Number>(product: &Multiplication) {
    let ((x, x_stride), (w, w_stride), (y, y_stride)) = (product.x, product.w, product.y);
    let (row_stride, column_stride) = if product.is_transposed { (1, w_stride) } else { (w_stride, 1) };
    let read = |address: u64, place: usize| {
        // SAFETY: the matrices have these places.
        unsafe { (address as *const T).add(place).read() }.wide()
    };
    for row in 0..product.rows {
        for output in 0..product.outputs {
            let term =
                |input: usize| read(x, row * x_stride + input) * read(w, input * row_stride + output * column_stride);
            let sum: f32 = (0..product.inputs).map(term).sum();
            // SAFETY: the result has this place, and nobody else writes to it.
            let place = unsafe { &mut *(y as *mut Y).add(row * y_stride + output) };
            let before = if product.accumulate { place.wide() } else { 0.0 };
            // SAFETY: a bias has a number an output.
            let bias = product.bias.map_or(0.0, |bias| unsafe { (bias as *const Y).add(output).read() }.wide());
            *place = Y::of(before + sum + bias);
        }
    }
}
