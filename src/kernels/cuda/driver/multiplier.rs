//! Products by cuBLASLt. It has columns where we have rows: to it our `y` is its own transpose `[outputs, rows]`, which
//! is `w^T x^T`, and what it calls A is `w`, B `x`, and C and D are `y`.
#![expect(unsafe_code, reason = "cuBLASLt is C")]

use super::Failure;
use super::device::{Device, Owned};
use super::matmul::{Key, alignment};
use super::stream::Stream;
use crate::kernels::cuda::matmul::{Element, Epilogue, Matmul, Operand, TRIED_ROWS};
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::{self, cublasStatus_t as Status};
use cudarc::driver::result as driver;
use std::collections::HashMap;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What NVIDIA recommends for Hopper, and more than it does for others.
const WORKSPACE_BYTES: usize = 32 << 20;
/// `CUBLAS_OP_T`, which the bindings lack.
const TRANSPOSE: i32 = 1;
/// Algorithms that are remembered; with more, all are forgotten.
const ALGORITHMS_MAX: usize = 4096;
/// Algorithms that are tried for a product of [`TRIED_ROWS`] or more.
const LIKELY: i32 = 8;
/// How often one is timed that takes no longer than this; others are once.
const TRIES: u32 = 4;
const SHORT: Duration = Duration::from_millis(1);

type Algorithm = sys::cublasLtMatmulAlgo_t;

/// cuBLASLt on a device. Its workspace is used by one product at a time, as they are all of one stream.
pub struct Multiplier {
    handle: Owned<sys::cublasLtHandle_t, CublasError>,
    workspace: Owned<u64>,
    algorithms: Mutex<HashMap<Key, Algorithm>>,
    device: Arc<Device>,
}

impl Multiplier {
    /// One that knows no algorithms yet.
    pub fn new(device: &Arc<Device>) -> Result<Self, Failure> {
        // SAFETY: opens libraries by their names, and closes them.
        if !unsafe { sys::is_culib_present() } {
            return Err(Failure::Other("there is no cuBLASLt: libcublasLt.so cannot be opened".into()));
        }
        let handle = result::create_handle().map_err(|error| Failure::from(error).of("cuBLASLt"))?;
        let handle = Owned::new(device, handle, result::destroy_handle);
        // SAFETY: nothing reads it but what has written to it.
        let workspace = unsafe { driver::malloc_sync(WORKSPACE_BYTES) }?;
        let workspace = Owned::new(device, workspace, driver::free_sync);
        Ok(Self { handle, workspace, algorithms: Mutex::default(), device: Arc::clone(device) })
    }

    /// Multiplies, by the algorithm for about as many rows where it can, and else by one for as many.
    pub fn run(&self, stream: &Stream, matmul: &Matmul) -> Result<(), Failure> {
        if matmul.rows == 0 || matmul.outputs == 0 {
            return Ok(());
        }
        let done = Terms::of(&self.device, matmul).and_then(|terms| {
            let product = Product { stream, matmul, terms: &terms };
            let by_algorithm_for = |rows: &Matmul| self.submit(&product, &self.algorithm(&product, rows)?);
            match by_algorithm_for(&matmul.rounded()) {
                Err(CublasError(Status::CUBLAS_STATUS_NOT_SUPPORTED | Status::CUBLAS_STATUS_INVALID_VALUE)) => {
                    by_algorithm_for(matmul)
                }
                done => done,
            }
        });
        done.map_err(|error| Failure::from(error).of(&format!("cuBLASLt for {matmul:?}")))
    }

    /// The algorithm for products like one of so many rows, whoever asks first.
    fn algorithm(&self, product: &Product, rows: &Matmul) -> Result<Algorithm, CublasError> {
        let key = Key::of(rows);
        if let Some(algorithm) = self.algorithms.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(*algorithm);
        }
        let algorithms = self.likely(rows, &Terms::of(&self.device, rows)?)?;
        // Not for f32, whose last bits are not to depend on what was a moment faster.
        let is_worth_it = rows.rows >= TRIED_ROWS && rows.element != Element::F32;
        let fastest = if is_worth_it { self.fastest(product, &algorithms) } else { None };
        let algorithm = fastest.unwrap_or(algorithms[0]);
        let mut algorithms = self.algorithms.lock().unwrap_or_else(PoisonError::into_inner);
        if algorithms.len() >= ALGORITHMS_MAX {
            algorithms.clear();
        }
        algorithms.insert(key, algorithm);
        Ok(algorithm)
    }

    /// The one of several that takes least time for a product, which is made by each; none where that would change it. Not
    /// while a stream is captured: what graphs are of has fewer rows.
    fn fastest(&self, product: &Product, algorithms: &[Algorithm]) -> Option<Algorithm> {
        let Product { matmul, stream, .. } = product;
        if matmul.accumulate {
            return None;
        }
        let together = |algorithm: &Algorithm, tries: u32| {
            let began = Instant::now();
            (0..tries).try_for_each(|_| self.submit(product, algorithm)).ok()?;
            stream.synchronize().ok()?;
            Some(began.elapsed() / tries)
        };
        let time = |algorithm: &Algorithm| {
            // The first time its code may have to be brought.
            together(algorithm, 1)?;
            let once = together(algorithm, 1)?;
            Some((if once <= SHORT { together(algorithm, TRIES)? } else { once }, *algorithm))
        };
        let times: Vec<_> = algorithms.iter().filter_map(time).collect();
        let (place, (least, fastest)) = times.iter().enumerate().min_by_key(|(_, (time, _))| *time)?;
        let (first, algorithms) = (times[0].0, times.len());
        tracing::debug!(?matmul, algorithms, ?first, ?least, place, "cuBLASLt's algorithms are tried");
        Some(*fastest)
    }

    /// What cuBLASLt thinks fast, the fastest first; one at least.
    fn likely(&self, matmul: &Matmul, terms: &Terms) -> Result<Vec<Algorithm>, CublasError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
        let preference = Owned::new(&self.device, result::create_matmul_pref()?, result::destroy_matmul_pref);
        let put = result::set_matmul_pref_attribute;
        set(put, &preference, Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE_BYTES)?;
        // Partial sums are added up as f32, not as what the result is rounded to.
        let reduction = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        let limits = [
            (Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reduction),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment(matmul.w.address)),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment(matmul.x.address)),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment(matmul.y.address)),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment(matmul.y.address)),
        ];
        for (attribute, value) in limits {
            set(put, &preference, attribute, &value)?;
        }
        let (w, x, y) = (terms.w.raw(), terms.x.raw(), terms.y.raw());
        let mut likely = [const { MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit() }; LIKELY as usize];
        let mut count = 0;
        // SAFETY: all of them live until the call returns, and there is room for as many as are asked for.
        unsafe {
            let (handle, operation) = (self.handle.raw(), terms.operation.raw());
            let (preference, results) = (preference.raw(), likely.as_mut_ptr().cast());
            sys::cublasLtMatmulAlgoGetHeuristic(
                handle,
                operation,
                w,
                x,
                y,
                y,
                preference,
                LIKELY,
                results,
                &raw mut count,
            )
            .result()?;
        }
        // SAFETY: so many were written.
        let likely = likely[..count as usize].iter().map(|result| unsafe { result.assume_init_ref() });
        let good = likely.filter(|result| result.state == Status::CUBLAS_STATUS_SUCCESS);
        let good: Vec<Algorithm> = good.map(|result| result.algo).collect();
        if good.is_empty() { Err(CublasError(Status::CUBLAS_STATUS_NOT_SUPPORTED)) } else { Ok(good) }
    }

    fn submit(&self, product: &Product, algorithm: &Algorithm) -> Result<(), CublasError> {
        let Product { stream, matmul, terms } = product;
        let (alpha, beta) = (1_f32, if matmul.accumulate { 1_f32 } else { 0.0 });
        let pointer = |operand: Operand| operand.address as *mut c_void;
        // SAFETY: descriptors and factors live until the call returns, and the workspace as long as this; that there
        // are such matrices is the caller's word.
        unsafe {
            result::matmul(
                self.handle.raw(),
                terms.operation.raw(),
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                pointer(matmul.w),
                terms.w.raw(),
                pointer(matmul.x),
                terms.x.raw(),
                pointer(matmul.y),
                terms.y.raw(),
                pointer(matmul.y),
                terms.y.raw(),
                algorithm,
                self.workspace.raw() as *mut c_void,
                WORKSPACE_BYTES,
                stream.raw().cast(),
            )
        }
    }
}

/// A product that a stream is asked for.
struct Product<'a> {
    stream: &'a Stream,
    matmul: &'a Matmul,
    terms: &'a Terms,
}

/// A product in cuBLASLt's terms.
struct Terms {
    operation: Owned<sys::cublasLtMatmulDesc_t, CublasError>,
    w: Owned<sys::cublasLtMatrixLayout_t, CublasError>,
    x: Owned<sys::cublasLtMatrixLayout_t, CublasError>,
    y: Owned<sys::cublasLtMatrixLayout_t, CublasError>,
}

impl Terms {
    fn of(device: &Arc<Device>, matmul: &Matmul) -> Result<Self, CublasError> {
        // Our rows are its columns.
        let layout = |element: Element, rows: usize, width: usize, operand: Operand| {
            let stride = operand.stride as i64;
            let raw = result::create_matrix_layout(data_type(element), width as u64, rows as u64, stride)?;
            Ok(Owned::new(device, raw, result::destroy_matrix_layout))
        };
        let (w_rows, w_width) =
            if matmul.is_transposed { (matmul.outputs, matmul.inputs) } else { (matmul.inputs, matmul.outputs) };
        Ok(Self {
            operation: operation(device, matmul)?,
            w: layout(matmul.element, w_rows, w_width, matmul.w)?,
            x: layout(matmul.element, matmul.rows, matmul.inputs, matmul.x)?,
            y: layout(matmul.element_out, matmul.rows, matmul.outputs, matmul.y)?,
        })
    }
}

fn operation(
    device: &Arc<Device>,
    matmul: &Matmul,
) -> Result<Owned<sys::cublasLtMatmulDesc_t, CublasError>, CublasError> {
    use sys::cublasLtMatmulDescAttributes_t as Attribute;
    // In full: TF32 would be a type of its own.
    let full = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
    let raw = result::create_matmul_desc(full, sys::cudaDataType::CUDA_R_32F)?;
    let operation = Owned::new(device, raw, result::destroy_matmul_desc);
    let put = result::set_matmul_desc_attribute;
    if matmul.is_transposed {
        set(put, &operation, Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSE)?;
    }
    set(put, &operation, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue(matmul))?;
    if let Some(bias) = matmul.bias {
        set(put, &operation, Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        set(put, &operation, Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &data_type(matmul.element_out))?;
    }
    Ok(operation)
}

fn epilogue(matmul: &Matmul) -> sys::cublasLtEpilogue_t {
    use sys::cublasLtEpilogue_t as Raw;
    match (matmul.epilogue, matmul.bias.is_some()) {
        (Epilogue::Absent, false) => Raw::CUBLASLT_EPILOGUE_DEFAULT,
        (Epilogue::Absent, true) => Raw::CUBLASLT_EPILOGUE_BIAS,
        (Epilogue::Relu, false) => Raw::CUBLASLT_EPILOGUE_RELU,
        (Epilogue::Relu, true) => Raw::CUBLASLT_EPILOGUE_RELU_BIAS,
        (Epilogue::GeluTanh, false) => Raw::CUBLASLT_EPILOGUE_GELU,
        (Epilogue::GeluTanh, true) => Raw::CUBLASLT_EPILOGUE_GELU_BIAS,
    }
}

fn data_type(element: Element) -> sys::cudaDataType {
    match element {
        Element::F32 => sys::cudaDataType::CUDA_R_32F,
        Element::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        Element::F16 => sys::cudaDataType::CUDA_R_16F,
    }
}

/// Sets an attribute of a descriptor to a value of the type it has.
fn set<D: Copy, A, V>(
    put: unsafe fn(D, A, *const c_void, usize) -> Result<(), CublasError>,
    descriptor: &Owned<D, CublasError>,
    attribute: A,
    value: &V,
) -> Result<(), CublasError> {
    // SAFETY: the descriptor lives, and the value is copied from where it lies.
    unsafe { put(descriptor.raw(), attribute, (&raw const *value).cast(), size_of::<V>()) }
}
