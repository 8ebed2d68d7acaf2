//! What a fitted run may cost, and how fast the machine is.

use std::time::Instant;

use lehr_model::Compute;
use lehr_tensor::gemm::{Matrix, gemm};
use lehr_tensor::{Device, cuda};

use crate::Result;

/// What a fitted run may cost.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Seconds of training.
    pub seconds: f64,
    /// GFLOP/s of matrix products on this machine ([`device_gflops`]).
    pub gflops: f64,
}

/// Share of the speed of matrix products that a training step reaches, by experience. It is planned
/// with, not reported.
const STEP_EFFICIENCY: f64 = 0.6;

/// On a GPU small models are far from the speed of large products: this share is planned with.
const GPU_SHARE: f64 = 0.25;

/// Seconds of measuring: long enough that neither waking cores nor other programs count.
const MEASURING_SECONDS: f64 = 0.5;

impl Budget {
    /// Floating-point operations that the training steps may take.
    pub(super) fn flops(&self) -> f64 {
        self.seconds * self.gflops * 1e9 * STEP_EFFICIENCY
    }
}

/// Measures GFLOP/s of an f32 matrix product of training's shape: the best of half a second.
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

/// GFLOP/s to plan with on the device of `compute`: [`machine_gflops`] on the CPU, and a quarter of
/// the measured speed of large products on a GPU.
///
/// # Errors
/// If the device cannot be used.
pub fn device_gflops(compute: &Compute) -> Result<f64> {
    match compute.device {
        Device::Cpu => Ok(machine_gflops()),
        Device::Cuda(ordinal) => Ok(GPU_SHARE * cuda::matmul_gflops(ordinal, compute.dtype)?),
    }
}
