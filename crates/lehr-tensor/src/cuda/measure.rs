//! The rates of a device that everything is compared with.

use lehr_cuda::{is_emulated, timed};

use crate::ops::linear::WeightLayout;
use crate::{DType, Device, Philox, Result, Tensor};

/// Bytes per second of copies within a device, those read and those written counted.
///
/// # Errors
/// If memory runs out or the device fails.
pub fn copy_rate(ordinal: usize) -> Result<f64> {
    let (n, rounds) = (if is_emulated()? { 1 << 16 } else { 1 << 27 }, 10);
    let x = Tensor::zeros_on(Device::Cuda(ordinal), [n], DType::F32)?;
    x.duplicate()?;
    let seconds = timed(ordinal, || (0..rounds).try_for_each(|_| x.duplicate().map(drop)))?;
    Ok(8.0 * n as f64 * f64::from(rounds) / seconds)
}

/// GFLOP/s of matrix products of a training step's shape on a device, in `dtype`, by the device's
/// own clock.
///
/// # Errors
/// If memory runs out or the device fails.
pub fn matmul_gflops(ordinal: usize, dtype: DType) -> Result<f64> {
    let (n, rounds) = (if is_emulated()? { 128 } else { 4096 }, 20);
    let device = Device::Cuda(ordinal);
    let mut x = Tensor::zeros([n, n])?;
    Philox::new(1, 0).fill_normal(x.data_mut(), 1.0);
    let x = x.cast(dtype)?.to_device(device)?;
    let product = || x.linear(&x, WeightLayout::OutIn, None).map(drop);
    product()?;
    let seconds = timed(ordinal, || (0..rounds).try_for_each(|_| product()))?;
    Ok(2.0 * (n as f64).powi(3) * f64::from(rounds) / seconds / 1e9)
}
