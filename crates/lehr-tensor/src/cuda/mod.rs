//! GPUs, as tensors see them: the crate `lehr-cuda`, the list of all kernels, and what needs
//! tensors.

mod measure;
pub(crate) mod sources;
#[cfg(test)]
mod tests;

pub(crate) use lehr_cuda::{
    Arg, Cuda, CudaBuffer, Extent, Offloaded, Source, args, blas, int, is_recorder, source,
};
pub use lehr_cuda::{
    CompileReport, DeviceInfo, FP8_CAPABILITY, FP8_MULTIPLE, Graph, LibraryReport, StepGraph,
    arena_stats, device_count, device_info, libraries, reset_peak, synchronize, timed, usable,
    use_emulator,
};
pub use measure::{copy_rate, matmul_gflops};

pub use crate::inplace::overwrite_ids;
pub use crate::ops::linear::fp8::n_refused as fp8_refused;
use crate::{DType, Result};

/// Compiles every kernel for each of `archs` (such as `sm_90a`): [`lehr_cuda::compile_all`].
///
/// # Errors
/// If NVRTC is missing or a kernel does not compile.
pub fn compile_all(archs: &[&str]) -> Result<Vec<CompileReport>> {
    lehr_cuda::compile_all(sources::ALL, archs)
}

/// Compiles the kernels that are not in the cache yet for a device and these element types, on all
/// cores: [`lehr_cuda::prepare`]. `begin` is told how many files there are, if any.
///
/// # Errors
/// If the device cannot be opened or a kernel does not compile.
pub fn prepare(ordinal: usize, dtypes: &[DType], begin: &mut dyn FnMut(usize)) -> Result<()> {
    lehr_cuda::prepare(sources::ALL, ordinal, dtypes, begin)
}

/// Runs `body`, in which every product of this thread that a library may refuse is refused.
#[cfg(test)]
pub(crate) fn with_plain_products<V>(body: impl FnOnce() -> V) -> V {
    let value = lehr_cuda::with_plain_products(body);
    crate::ops::linear::fp8::forget_refused();
    value
}
