//! The kernels on the host, compiled from the same files, and a plain matrix product in the place of cuBLASLt. Every
//! address is one of this process.
#![expect(unsafe_code, reason = "kernels take raw addresses")]

use super::command::{Argument, Command};
use super::gpu::{Arrival, Backend, Bytes, Graph, Lane};
use super::matmul::{Element, Epilogue, Matmul};
use crate::error::{Error, Result};
use half::{bf16, f16};
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

unsafe extern "C" {
    /// 0: done; 1: there is no such kernel; 2: threads of a block waited for different things; 3: it shares too much; 4: a
    /// thread did not wait for its copies; 5: there is a race.
    fn emulated_launch(
        kernel: *const c_char,
        grid: *const u32,
        block: *const u32,
        shared_bytes: u32,
        arguments: *mut *mut c_void,
    ) -> c_int;

    /// What two threads did.
    fn emulated_race() -> *const c_char;

    /// Memory of the device begins to be, or is no more.
    fn emulated_allocated(address: u64, bytes: usize);
    fn emulated_freed(address: u64);
}

/// What a kernel that wants as many blocks gets.
const MULTIPROCESSORS: usize = 5;

/// So much memory.
pub struct Emulated {
    memory: Mutex<Memory>,
    bytes: usize,
}

struct Memory {
    /// By address, in pieces that any element is aligned in.
    pieces: HashMap<u64, Vec<u128>>,
    free: usize,
}

impl Emulated {
    /// Nothing in so many bytes.
    pub fn new(bytes: usize) -> Self {
        Self { memory: Mutex::new(Memory { pieces: HashMap::new(), free: bytes }), bytes }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backend for Emulated {
    fn name(&self) -> &str {
        "an emulated GPU"
    }

    fn allocate(&self, _: Lane, bytes: usize) -> Result<u64> {
        let mut memory = self.memory();
        let elements = bytes.div_ceil(16).max(1);
        memory.free = memory.free.checked_sub(elements * size_of::<u128>()).ok_or(Error::OutOfMemory(bytes))?;
        // What was never written is NaN in every type, and so is what is made of it.
        let piece = vec![u128::MAX; elements];
        let address = piece.as_ptr() as u64;
        // SAFETY: an address is only noted.
        unsafe { emulated_allocated(address, size_of_val(piece.as_slice())) };
        memory.pieces.insert(address, piece);
        Ok(address)
    }

    fn free(&self, _: Lane, address: u64) {
        // SAFETY: an address is only noted.
        unsafe { emulated_freed(address) };
        let mut memory = self.memory();
        let piece = memory.pieces.remove(&address);
        memory.free += piece.map_or(0, |piece| size_of_val(piece.as_slice()));
    }

    fn upload(&self, _: Lane, address: u64, bytes: &[u8]) -> Result<()> {
        // SAFETY: whoever asks has so much memory there.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
        Ok(())
    }

    fn download(&self, address: u64, bytes: usize) -> Result<Box<dyn Arrival>> {
        // SAFETY: whoever asks has so much memory there.
        Ok(Box::new(Here(unsafe { std::slice::from_raw_parts(address as *const u8, bytes) }.to_vec())))
    }

    fn run(&self, command: &Command) -> Result<()> {
        run(command)
    }

    fn capture(&self, commands: &[Command]) -> Result<Box<dyn Graph>> {
        Ok(Box::new(List(commands.to_vec())))
    }

    fn synchronize(&self, _: Lane) -> Result<()> {
        Ok(())
    }

    fn is_emulated(&self) -> bool {
        true
    }

    fn warpgroups(&self) -> Option<usize> {
        Some(MULTIPROCESSORS)
    }

    fn memory(&self) -> Result<(usize, usize)> {
        Ok((self.memory().free, self.bytes))
    }
}

/// A graph is what it is of.
struct List(Vec<Command>);

impl Graph for List {
    fn launch(&self) -> Result<()> {
        self.0.iter().try_for_each(run)
    }
}

fn run(command: &Command) -> Result<()> {
    match command {
        Command::Launch { kernel, grid, block, shared, arguments } => {
            launch(kernel, *grid, [*block, *shared], arguments)
        }
        Command::Multiply(matmul) => {
            #[cfg(test)]
            asked::note("multiply");
            match (matmul.element, matmul.element_out) {
                (Element::Bf16, Element::F32) => multiply::<bf16, f32>(matmul),
                (Element::Bf16, _) => multiply::<bf16, bf16>(matmul),
                (Element::F16, Element::F32) => multiply::<f16, f32>(matmul),
                (Element::F16, _) => multiply::<f16, f16>(matmul),
                (Element::F32, _) => multiply::<f32, f32>(matmul),
            }
            Ok(())
        }
    }
}

fn launch(kernel: &str, grid: [u32; 3], [block, shared]: [u32; 2], arguments: &[Argument]) -> Result<()> {
    let name = CString::new(kernel).map_err(|e| Error::Internal(e.to_string()))?;
    let mut pointers: Vec<*mut c_void> = arguments.iter().map(Argument::pointer).collect();
    let block = [block, 1, 1];
    #[cfg(test)]
    if asked::is_left_out(kernel) {
        return Ok(());
    }
    // SAFETY: the arguments are those that the kernel takes, and outlive the call, in which it runs to its end.
    match unsafe { emulated_launch(name.as_ptr(), grid.as_ptr(), block.as_ptr(), shared, pointers.as_mut_ptr()) } {
        0 => Ok(()),
        1 => Err(Error::Internal(format!("there is no kernel '{kernel}'"))),
        3 => Err(Error::Internal(format!("a block of '{kernel}' shares {shared} bytes and more"))),
        4 => Err(Error::Internal(format!("a thread of '{kernel}' does not wait for its copies"))),
        // SAFETY: it is text that stays until this thread's next launch.
        5 => Err(Error::Internal(format!(
            "'{kernel}': {}",
            unsafe { CStr::from_ptr(emulated_race()) }.to_string_lossy()
        ))),
        _ => Err(Error::Internal(format!("the threads of '{kernel}' wait for each other"))),
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

fn multiply<T: Number, Y: Number>(matmul: &Matmul) {
    let Matmul { x, w, y, .. } = matmul;
    // What cuBLASLt insists on.
    let width = if matmul.is_transposed { matmul.inputs } else { matmul.outputs };
    assert!(x.stride >= matmul.inputs && w.stride >= width && y.stride >= matmul.outputs, "strides of {matmul:?}");
    let (row_stride, column_stride) = if matmul.is_transposed { (1, w.stride) } else { (w.stride, 1) };
    let read = |address: u64, place: usize| {
        // SAFETY: the matrices have these places.
        unsafe { (address as *const T).add(place).read() }.wide()
    };
    for row in 0..matmul.rows {
        for output in 0..matmul.outputs {
            let term = |input: usize| {
                let weight = read(w.address, input * row_stride + output * column_stride);
                read(x.address, row * x.stride + input) * weight
            };
            let sum: f32 = (0..matmul.inputs).map(term).sum();
            // SAFETY: the result has this place, and nobody else writes to it.
            let place = unsafe { &mut *(y.address as *mut Y).add(row * y.stride + output) };
            let before = if matmul.accumulate { place.wide() } else { 0.0 };
            // SAFETY: a bias has a number an output.
            let bias = matmul.bias.map_or(0.0, |bias| unsafe { (bias as *const Y).add(output).read() }.wide());
            let sum = before + sum + bias;
            *place = Y::of(match matmul.epilogue {
                // Not `max`, which makes 0 of NaN.
                Epilogue::Relu if sum < 0.0 => 0.0,
                Epilogue::GeluTanh => 0.5 * sum * (1.0 + (0.797_884_6 * (sum + 0.044_715 * sum.powi(3))).tanh()),
                _ => sum,
            });
        }
    }
}

/// Bytes that are there.
struct Here(Vec<u8>);

impl Arrival for Here {
    fn wait(self: Box<Self>) -> Result<Bytes> {
        Ok(Box::new(self.0))
    }
}

/// What this thread has asked of emulated devices.
#[cfg(test)]
pub mod asked {
    use std::cell::{Cell, RefCell};

    thread_local! {
        static NAMES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
        static LEFT_OUT: Cell<&'static str> = const { Cell::new("") };
    }

    pub(super) fn note(name: &str) {
        NAMES.with_borrow_mut(|names| names.push(name.to_owned()));
    }

    /// The same of a kernel, which may be one that is not to run.
    pub(super) fn is_left_out(kernel: &str) -> bool {
        note(kernel);
        LEFT_OUT.get() == kernel
    }

    /// What `run` gives where a kernel does nothing.
    pub fn without<T>(kernel: &'static str, run: impl FnOnce() -> T) -> T {
        LEFT_OUT.set(kernel);
        let made = run();
        LEFT_OUT.set("");
        made
    }

    /// Kernels and products since this was asked last, in order.
    pub fn names() -> Vec<String> {
        NAMES.take()
    }
}

#[cfg(all(test, feature = "races"))]
mod tests {
    use super::*;
    use crate::kernels::cuda::gpu::Lane;

    /// What a block of `affine_f32` has.
    const ELEMENTS: u64 = 1024;

    /// The numbers of two blocks move so many places.
    fn shift(places: u64) -> Result<()> {
        let emulated = Emulated::new(1 << 20);
        let bytes = 4 * (2 * ELEMENTS + places) as usize;
        let x = emulated.allocate(Lane::Main, bytes)?;
        emulated.upload(Lane::Main, x, &vec![0; bytes])?;
        let from = Argument::Address(x + 4 * places);
        let arguments = vec![Argument::Address(x), from, Argument::Float(0), Argument::Long(2 * ELEMENTS as i64)];
        emulated.run(&Command::Launch {
            kernel: "affine_f32".into(),
            grid: [2, 1, 1],
            block: 128,
            shared: 0,
            arguments,
        })
    }

    #[test]
    fn what_one_thread_reads_and_another_one_writes_is_a_race_within_a_block_and_between_two() {
        shift(0).unwrap();
        for (places, block) in [(128, "of block 0"), (ELEMENTS, "of block 1")] {
            let error = shift(places).unwrap_err().to_string();
            assert!(error.contains("in any order") && error.contains(block), "{error}");
        }
    }
}
