//! Products by cuBLASLt. It has columns where we have rows: to it our `y` is its own transpose `[outputs, rows]`, which
//! is `w^T x^T`, and what it calls A is `w`, B `x`, and C and D are `y`.
#![expect(unsafe_code, reason = "cuBLASLt is C")]

use super::Failure;
use super::device::{Device, Owned};
use super::matmul::{Key, alignment};
use super::stream::Stream;
use crate::kernels::cuda::matmul::{Element, Matmul, Operand};
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::{self, cublasStatus_t as Status};
use cudarc::driver::result as driver;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

/// What NVIDIA recommends for Hopper, and more than it does for others.
const WORKSPACE_BYTES: usize = 32 << 20;
/// `CUBLAS_OP_T`, which the bindings lack.
const TRANSPOSE: i32 = 1;
/// Algorithms that are remembered; with more, all are forgotten.
const ALGORITHMS_MAX: usize = 4096;

/// cuBLASLt on a device. Its workspace is used by one product at a time, as they are all of one stream.
pub struct Multiplier {
    handle: Owned<sys::cublasLtHandle_t, CublasError>,
    workspace: Owned<u64>,
    algorithms: Mutex<HashMap<Key, sys::cublasLtMatmulAlgo_t>>,
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
            let by_algorithm_for = |rows: &Matmul| self.submit(stream, matmul, &terms, &self.algorithm(rows)?);
            match by_algorithm_for(&matmul.rounded()) {
                Err(CublasError(Status::CUBLAS_STATUS_NOT_SUPPORTED | Status::CUBLAS_STATUS_INVALID_VALUE)) => {
                    by_algorithm_for(matmul)
                }
                done => done,
            }
        });
        done.map_err(|error| Failure::from(error).of(&format!("cuBLASLt for {matmul:?}")))
    }

    /// The algorithm for a product, whoever asks first.
    fn algorithm(&self, matmul: &Matmul) -> Result<sys::cublasLtMatmulAlgo_t, CublasError> {
        let key = Key::of(matmul);
        if let Some(algorithm) = self.algorithms.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(*algorithm);
        }
        let algorithm = self.choose(matmul, &Terms::of(&self.device, matmul)?)?;
        let mut algorithms = self.algorithms.lock().unwrap_or_else(PoisonError::into_inner);
        if algorithms.len() >= ALGORITHMS_MAX {
            algorithms.clear();
        }
        algorithms.insert(key, algorithm);
        Ok(algorithm)
    }

    /// What cuBLASLt thinks fastest.
    fn choose(&self, matmul: &Matmul, terms: &Terms) -> Result<sys::cublasLtMatmulAlgo_t, CublasError> {
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
        // SAFETY: all of them live until the call returns.
        let chosen = unsafe {
            let (handle, operation) = (self.handle.raw(), terms.operation.raw());
            result::get_matmul_algo_heuristic(handle, operation, w, x, y, y, preference.raw())
        }?;
        Ok(chosen.algo)
    }

    fn submit(
        &self,
        stream: &Stream,
        matmul: &Matmul,
        terms: &Terms,
        algorithm: &sys::cublasLtMatmulAlgo_t,
    ) -> Result<(), CublasError> {
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
    use sys::cublasLtEpilogue_t as Epilogue;
    match (matmul.is_rectified, matmul.bias.is_some()) {
        (false, false) => Epilogue::CUBLASLT_EPILOGUE_DEFAULT,
        (false, true) => Epilogue::CUBLASLT_EPILOGUE_BIAS,
        (true, false) => Epilogue::CUBLASLT_EPILOGUE_RELU,
        (true, true) => Epilogue::CUBLASLT_EPILOGUE_RELU_BIAS,
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
