//! cuBLASLt: matrix products with the algorithm its heuristics name, remembered per shape.

use std::collections::HashMap;
use std::ffi::{CStr, c_void};
use std::ptr;
use std::sync::{Mutex, OnceLock, PoisonError};

use cudarc::cublaslt::sys::{self, cublasStatus_t};

use super::blas::{Matmul, Operand};
use super::{fault, library};
use crate::{DType, Error, Result};

/// A handle of the library, opened at the first product: what needs none runs without the library.
pub(super) struct Lt {
    /// 13000 for CUDA 13.0.
    driver_version: u32,
    handle: OnceLock<Handle>,
    /// `None` if there is none.
    algorithms: Mutex<HashMap<Key, Option<sys::cublasLtMatmulAlgo_t>>>,
}

struct Handle(sys::cublasLtHandle_t);

// SAFETY: the library's handle may be used from any thread.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

/// What the choice of an algorithm depends on.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    size: (usize, usize, usize, usize),
    /// Type, stride, orientation and batch stride of A, B and C.
    operands: [(DType, usize, bool, usize); 3],
    /// Alignment of A, B and C in bytes.
    alignment: [u32; 3],
    /// Alignment of the bias, if there is one.
    bias: Option<u32>,
    accumulate: bool,
}

impl Lt {
    pub(super) fn new(driver_version: u32) -> Self {
        Self { driver_version, handle: OnceLock::new(), algorithms: Mutex::default() }
    }

    fn handle(&self) -> Result<sys::cublasLtHandle_t> {
        if let Some(handle) = self.handle.get() {
            return Ok(handle.0);
        }
        let doing = "opening cuBLASLt";
        if let Some((reason, hint)) = library::missing(&["cublasLt"]) {
            return Err(Error::Cuda { doing: doing.to_owned(), reason, hint: Some(hint) });
        }
        let mut handle = ptr::null_mut();
        // SAFETY: the library is there and a context is current.
        unsafe {
            if !sys::is_culib_present() {
                return Err(fault(
                    doing,
                    "libcublasLt was found, but cannot be opened again by its name",
                ));
            }
            if let Err(error) = check(sys::cublasLtCreate(&raw mut handle), doing) {
                let major = sys::cublasLtGetCudartVersion() / 1000;
                return Err(library::too_new_for(self.driver_version, major as u32, error));
            }
        }
        Ok(self.handle.get_or_init(|| Handle(handle)).0)
    }

    /// The library thinks in columns: what is stored row by row is to it the transpose. So it is asked for `Cᵀ = Bᵀ Aᵀ`, with B
    /// as its first operand. False if it has no algorithm that also adds the bias: then nothing was started.
    pub(super) fn matmul(
        &self,
        product: &Matmul,
        (workspace, workspace_bytes): (u64, usize),
        stream: *mut c_void,
    ) -> Result<bool> {
        let handle = self.handle()?;
        let &Matmul { m, n, k, a, b, c, accumulate, bias, batch } = product;
        let doing = || format!("multiplying [{m}, {k}] by [{k}, {n}] in {}", a.dtype);
        let describe = |e: Error| match e {
            Error::Cuda { reason, hint, .. } => Error::Cuda { doing: doing(), reason, hint },
            other => other,
        };
        let run = || -> Result<bool> {
            let operation = Operation::new(&b, &a, bias, c.dtype)?;
            let first = Layout::new(&b, (n, k), batch)?;
            let second = Layout::new(&a, (k, m), batch)?;
            let result = Layout::new(&c, (n, m), batch)?;
            let algorithm = self.algorithm(
                handle,
                product,
                workspace_bytes,
                [&first, &second, &result],
                &operation,
            )?;
            let Some(algorithm) = algorithm else {
                // A result that is added to cannot take the bias first.
                return match bias {
                    Some(_) if !accumulate => Ok(false),
                    _ => Err(fault(
                        "choosing an algorithm",
                        "cuBLASLt has none for these shapes and types",
                    )),
                };
            };
            let (alpha, beta) = (1.0f32, if accumulate { 1.0f32 } else { 0.0 });
            // SAFETY: operands, result and workspace are live blocks of the sizes the layouts say.
            let status = unsafe {
                sys::cublasLtMatmul(
                    handle,
                    operation.0,
                    (&raw const alpha).cast(),
                    b.ptr as *const c_void,
                    first.0,
                    a.ptr as *const c_void,
                    second.0,
                    (&raw const beta).cast(),
                    c.ptr as *const c_void,
                    result.0,
                    c.ptr as *mut c_void,
                    result.0,
                    &raw const algorithm,
                    workspace as *mut c_void,
                    workspace_bytes,
                    stream.cast(),
                )
            };
            check(status, "cublasLtMatmul").map(|()| true)
        };
        run().map_err(describe)
    }

    fn algorithm(
        &self,
        handle: sys::cublasLtHandle_t,
        product: &Matmul,
        workspace_bytes: usize,
        [first, second, result]: [&Layout; 3],
        operation: &Operation,
    ) -> Result<Option<sys::cublasLtMatmulAlgo_t>> {
        let &Matmul { m, n, k, a, b, c, accumulate, bias, batch } = product;
        let of = |o: &Operand| (o.dtype, o.stride, o.transposed, o.batch_stride);
        let (aligned, bias) = ([a.ptr, b.ptr, c.ptr].map(alignment), bias.map(alignment));
        let key = Key {
            size: (m, n, k, batch),
            operands: [of(&a), of(&b), of(&c)],
            alignment: aligned,
            bias,
            accumulate,
        };
        let mut known = self.algorithms.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(algorithm) = known.get(&key) {
            return Ok(*algorithm);
        }
        let preference = Preference::new(workspace_bytes, aligned)?;
        let (mut found, mut n_found) = (heuristic_result(), 0);
        // SAFETY: all handles are alive, and there is room for one result.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                handle,
                operation.0,
                first.0,
                second.0,
                result.0,
                result.0,
                preference.0,
                1,
                &raw mut found,
                &raw mut n_found,
            )
        };
        // What is not valid with a bias may be valid without.
        let is_none = status == cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED
            || (bias.is_some() && status == cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE);
        if !is_none {
            check(status, "cublasLtMatmulAlgoGetHeuristic")?;
        }
        let is_found = n_found > 0 && found.state == cublasStatus_t::CUBLAS_STATUS_SUCCESS;
        let algorithm = is_found.then_some(found.algo);
        known.insert(key, algorithm);
        Ok(algorithm)
    }
}

/// The largest power of two up to 256 that divides an address.
fn alignment(ptr: u64) -> u32 {
    1 << ptr.trailing_zeros().min(8)
}

fn heuristic_result() -> sys::cublasLtMatmulHeuristicResult_t {
    // SAFETY: all fields are numbers; the status of zero is success.
    unsafe { std::mem::zeroed() }
}

fn check(status: cublasStatus_t, doing: &str) -> Result<()> {
    if status == cublasStatus_t::CUBLAS_STATUS_SUCCESS {
        return Ok(());
    }
    // SAFETY: the library gives a string of its own for every status.
    let text = unsafe { CStr::from_ptr(sys::cublasLtGetStatusString(status)) };
    Err(fault(doing, format!("{doing}: {}", text.to_string_lossy())))
}

fn data_type(dtype: DType) -> sys::cudaDataType {
    match dtype {
        DType::BF16 => sys::cudaDataType::CUDA_R_16BF,
        DType::F16 => sys::cudaDataType::CUDA_R_16F,
        DType::F32 | DType::I32 => sys::cudaDataType::CUDA_R_32F,
    }
}

/// Bytes of a value, as attributes are set.
fn bytes<V>(value: &V) -> (*const c_void, usize) {
    (ptr::from_ref(value).cast(), size_of::<V>())
}

struct Operation(sys::cublasLtMatmulDesc_t);

impl Operation {
    /// The product of `first` and `second`, both seen by columns, with `bias` over the rows of the result.
    fn new(first: &Operand, second: &Operand, bias: Option<u64>, out: DType) -> Result<Self> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let mut handle = ptr::null_mut();
        let (compute, scale) =
            (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F);
        check(
            // SAFETY: the handle is written by the call.
            unsafe { sys::cublasLtMatmulDescCreate(&raw mut handle, compute, scale) },
            "cublasLtMatmulDescCreate",
        )?;
        let operation = Self(handle);
        let set = |attribute, (value, size): (*const c_void, usize)| {
            // SAFETY: the value is alive during the call and of the attribute's type.
            let status =
                unsafe { sys::cublasLtMatmulDescSetAttribute(handle, attribute, value, size) };
            check(status, "cublasLtMatmulDescSetAttribute")
        };
        // CUBLAS_OP_N and CUBLAS_OP_T.
        let as_stored = |operand: &Operand| i32::from(operand.transposed);
        set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, bytes(&as_stored(first)))?;
        set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, bytes(&as_stored(second)))?;
        if let Some(bias) = bias {
            set(
                Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE,
                bytes(&sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS),
            )?;
            set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bytes(&bias))?;
            set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, bytes(&data_type(out)))?;
        }
        Ok(operation)
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // SAFETY: made by `new`.
        let _ = unsafe { sys::cublasLtMatmulDescDestroy(self.0) };
    }
}

struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    /// The operand as columns: `shape` is that of the transpose of what it means.
    fn new(operand: &Operand, shape: (usize, usize), batch: usize) -> Result<Self> {
        use sys::cublasLtMatrixLayoutAttribute_t as Attribute;
        let (rows, columns) = if operand.transposed { (shape.1, shape.0) } else { shape };
        let (kind, ld) = (data_type(operand.dtype), operand.stride.max(rows) as i64);
        let mut handle = ptr::null_mut();
        // SAFETY: the handle is written by the call.
        let made = unsafe {
            sys::cublasLtMatrixLayoutCreate(&raw mut handle, kind, rows as u64, columns as u64, ld)
        };
        check(made, "cublasLtMatrixLayoutCreate")?;
        let layout = Self(handle);
        if batch > 1 {
            let (count, stride) = (batch as i32, operand.batch_stride as i64);
            for (attribute, (value, size)) in [
                (Attribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, bytes(&count)),
                (Attribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, bytes(&stride)),
            ] {
                // SAFETY: the value is alive during the call and of the attribute's type.
                let status = unsafe {
                    sys::cublasLtMatrixLayoutSetAttribute(handle, attribute, value, size)
                };
                check(status, "cublasLtMatrixLayoutSetAttribute")?;
            }
        }
        Ok(layout)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made by `new`.
        let _ = unsafe { sys::cublasLtMatrixLayoutDestroy(self.0) };
    }
}

struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new(workspace_bytes: usize, [a, b, c]: [u32; 3]) -> Result<Self> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        // Parts of a sum are added in f32 and in a fixed order: not in the result itself, whose type may be a narrow one and
        // where they arrive in any order.
        let reduction =
            sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        let mut handle = ptr::null_mut();
        check(
            // SAFETY: the handle is written by the call.
            unsafe { sys::cublasLtMatmulPreferenceCreate(&raw mut handle) },
            "cublasLtMatmulPreferenceCreate",
        )?;
        let preference = Self(handle);
        for (attribute, (value, size)) in [
            (Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, bytes(&workspace_bytes)),
            (Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, bytes(&reduction)),
            // The library's A is our B.
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, bytes(&b)),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, bytes(&a)),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, bytes(&c)),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, bytes(&c)),
        ] {
            // SAFETY: the value is alive during the call and of the attribute's type.
            let status = unsafe {
                sys::cublasLtMatmulPreferenceSetAttribute(handle, attribute, value, size)
            };
            check(status, "cublasLtMatmulPreferenceSetAttribute")?;
        }
        Ok(preference)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made by `new`.
        let _ = unsafe { sys::cublasLtMatmulPreferenceDestroy(self.0) };
    }
}
