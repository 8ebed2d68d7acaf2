//! cuBLASLt: matrix products with the algorithm that its heuristics choose, cached per shape.

mod descriptors;

use std::collections::HashMap;
use std::ffi::{CStr, c_void};
use std::ptr;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use cudarc::cublaslt::sys::{self, cublasStatus_t};

use descriptors::{MatrixLayout, Operation, Preference};

use super::blas::{Element, Epilogue, Matmul, Operand};
use super::{fault, library};
use lehr_kernels::{Error, Result};

/// A handle of the library, opened at the first product, so that other work runs without it.
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

/// The key of the cache: everything that the choice of an algorithm depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    size: (usize, usize, usize, usize),
    /// Type, stride, orientation and batch stride of A, B and C.
    operands: [(Element, usize, bool, usize); 3],
    /// Alignment of A, B and C in bytes.
    alignment: [u32; 3],
    epilogue: Ends,
    accumulate: bool,
}

/// The epilogue, with the alignment of its operands.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Ends {
    None,
    Bias(u32),
    Gelu { bias: Option<u32>, aux: u32 },
    GeluSlope { aux: u32 },
}

impl Ends {
    fn new(epilogue: Epilogue) -> Self {
        match epilogue {
            Epilogue::None => Self::None,
            Epilogue::Bias(bias) => Self::Bias(alignment(bias)),
            Epilogue::Gelu { bias, aux } => {
                Self::Gelu { bias: bias.map(alignment), aux: alignment(aux) }
            }
            Epilogue::GeluSlope { aux } => Self::GeluSlope { aux: alignment(aux) },
        }
    }
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

    /// The library stores matrices by columns, so a matrix stored by rows is a transpose to it. The
    /// call therefore computes `Cᵀ = Bᵀ Aᵀ`, with B as the first operand. Returns false, and starts
    /// nothing, if an optional product has no algorithm.
    pub(super) fn matmul(
        &self,
        product: &Matmul,
        (workspace, workspace_bytes): (u64, usize),
        stream: *mut c_void,
    ) -> Result<bool> {
        let handle = self.handle()?;
        let &Matmul { m, n, k, a, b, c, accumulate, batch, .. } = product;
        let doing = || format!("multiplying [{m}, {k}] by [{k}, {n}] in {:?}", a.element);
        let describe = |e: Error| match e {
            Error::Cuda { reason, hint, .. } => Error::Cuda { doing: doing(), reason, hint },
            other => other,
        };
        let run = || -> Result<bool> {
            let operation = Operation::new(product)?;
            let first = MatrixLayout::new(&b, (n, k), batch)?;
            let second = MatrixLayout::new(&a, (k, m), batch)?;
            let result = MatrixLayout::new(&c, (n, m), batch)?;
            let key = Key::new(product);
            let layouts = [&first, &second, &result];
            let Some(algorithm) =
                self.algorithm(handle, product, &key, workspace_bytes, layouts, &operation)?
            else {
                return match product.is_optional() {
                    true => Ok(false),
                    false => Err(fault(
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
            // Refused before anything starts, and not tried again.
            if product.is_optional() && is_refusal(status) {
                self.known().insert(key, None);
                return Ok(false);
            }
            check(status, "cublasLtMatmul").map(|()| true)
        };
        run().map_err(describe)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Key, Option<sys::cublasLtMatmulAlgo_t>>> {
        self.algorithms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn algorithm(
        &self,
        handle: sys::cublasLtHandle_t,
        product: &Matmul,
        key: &Key,
        workspace_bytes: usize,
        [first, second, result]: [&MatrixLayout; 3],
        operation: &Operation,
    ) -> Result<Option<sys::cublasLtMatmulAlgo_t>> {
        let mut known = self.known();
        if let Some(algorithm) = known.get(key) {
            return Ok(*algorithm);
        }
        let preference = Preference::new(workspace_bytes, key.alignment)?;
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
        // An invalid product with an epilogue or 8-bit elements may be valid without them.
        let is_none = status == cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED
            || (product.is_optional() && is_refusal(status));
        if !is_none {
            check(status, "cublasLtMatmulAlgoGetHeuristic")?;
        }
        let is_found = n_found > 0 && found.state == cublasStatus_t::CUBLAS_STATUS_SUCCESS;
        let algorithm = is_found.then_some(found.algo);
        known.insert(*key, algorithm);
        Ok(algorithm)
    }
}

impl Key {
    fn new(product: &Matmul) -> Self {
        let &Matmul { m, n, k, a, b, c, accumulate, epilogue, batch } = product;
        let of = |o: &Operand| (o.element, o.stride, o.transposed, o.batch_stride);
        Self {
            size: (m, n, k, batch),
            operands: [of(&a), of(&b), of(&c)],
            alignment: [a.ptr, b.ptr, c.ptr].map(alignment),
            epilogue: Ends::new(epilogue),
            accumulate,
        }
    }
}

/// Returns whether the library has no such product, as opposed to a failure.
fn is_refusal(status: cublasStatus_t) -> bool {
    matches!(
        status,
        cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED | cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE
    )
}

/// Returns the largest power of two up to 256 that divides an address.
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
