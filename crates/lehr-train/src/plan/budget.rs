//! The budget of a fitted run: time, and the measured speed of the machine.

use std::time::Instant;

use lehr_model::Compute;
use lehr_tensor::gemm::{Matrix, gemm};
use lehr_tensor::{DType, Device, bf16, cuda};

use crate::Result;

/// The budget of a fitted run.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Seconds of the run; `None` = no limit.
    pub seconds: Option<f64>,
    /// Tokens per weight of the matrix products, if seconds are `None`.
    pub tokens_per_weight: f64,
    /// GFLOP/s of matrix products on this machine ([`device_gflops`]): a first guess, if steps are
    /// measured.
    pub gflops: f64,
    /// The device and type in which steps of the fitted model are timed. `None` = none are: the
    /// plan then follows from the other two numbers alone, and leaves no time for anything but
    /// steps.
    pub measure: Option<(Device, DType)>,
}

/// Share of the matrix-product rate that a training step reaches on a CPU, from experience. It only
/// sets the length of a run; reported speeds are measured.
const STEP_EFFICIENCY: f64 = 0.6;

/// The same share on a GPU, relative to the CPU's. Small models do not fill a GPU, so their
/// products are much slower than the large ones measured.
const GPU_SHARE: f64 = 0.25;

/// Seconds of measurement, long enough to average out cores that wake up and other programs.
const MEASURING_SECONDS: f64 = 0.5;

impl Budget {
    /// Tokens per weight of the matrix products of a run without a limit of time, as in nanochat.
    pub const TOKENS_PER_WEIGHT: f64 = 12.0;

    /// Returns the floating-point operations available for training, if time is limited.
    pub(super) fn flops(&self) -> Option<f64> {
        Some(self.seconds? * self.gflops * 1e9 * STEP_EFFICIENCY)
    }

    /// Returns the same budget for a machine that makes `flops` of training in `seconds`.
    pub(super) fn with_measured(self, flops: f64, seconds: f64) -> Self {
        Self { gflops: flops / seconds / 1e9 / STEP_EFFICIENCY, ..self }
    }

    /// Returns the seconds that so many floating-point operations of training take.
    pub(super) fn seconds_for(&self, flops: f64) -> f64 {
        flops / (self.gflops * 1e9 * STEP_EFFICIENCY)
    }
}

/// Measures the GFLOP/s of an f32 matrix product of a typical training shape: the best run within
/// half a second.
#[must_use]
pub fn machine_gflops() -> f64 {
    let (m, n, k) = (1024, 1024, 512);
    let (a, b, mut c) = (vec![0.5f32; m * k], vec![0.5f32; n * k], vec![0.0f32; m * n]);
    let mut best = f64::MAX;
    let begin = Instant::now();
    while begin.elapsed().as_secs_f64() < MEASURING_SECONDS {
        let start = Instant::now();
        let (a, b) = (Matrix::rows(&a, k), Matrix::transposed(&b, k));
        if gemm((m, n, k), a, b, &mut c, n, false, None).is_err() {
            return 1.0;
        }
        best = best.min(start.elapsed().as_secs_f64());
    }
    2.0 * (m * n * k) as f64 / best / 1e9
}

/// Time of everything but products in a training step on the CPU, as a multiple of the time that
/// its products take in f32, from experience ("bf16 on the CPU" in docs/experiments.md).
const CPU_OTHER_TIME: f64 = 0.55;

/// The GFLOP/s of products in f32 at which a step would be as fast as with products in bf16 that
/// take `time` times as long as in f32.
fn as_if_in_f32(gflops: f64, time: f64) -> f64 {
    gflops * (1.0 + CPU_OTHER_TIME) / (time + CPU_OTHER_TIME)
}

/// Returns the GFLOP/s that matrix products reach on the device of `compute` in its type: the
/// ceiling of a training step.
///
/// # Errors
/// If the device cannot be used.
pub fn product_gflops(compute: &Compute) -> Result<f64> {
    match (compute.device, compute.dtype) {
        (Device::Cpu, DType::BF16) => Ok(machine_gflops() / bf16::time_against_f32()?),
        (Device::Cpu, _) => Ok(machine_gflops()),
        (Device::Cuda(ordinal), dtype) => Ok(cuda::matmul_gflops(ordinal, dtype)?),
    }
}

/// Returns the GFLOP/s to plan with on the device of `compute`: [`machine_gflops`] on the CPU, more
/// if products are in bf16 and faster, a quarter of the measured speed of large products on a GPU.
///
/// # Errors
/// If the device cannot be used.
pub fn device_gflops(compute: &Compute) -> Result<f64> {
    match compute.device {
        Device::Cpu if compute.dtype == DType::BF16 => {
            Ok(as_if_in_f32(machine_gflops(), bf16::time_against_f32()?))
        }
        Device::Cpu => Ok(machine_gflops()),
        Device::Cuda(ordinal) => Ok(GPU_SHARE * cuda::matmul_gflops(ordinal, compute.dtype)?),
    }
}
