//! Moving one tensor towards another: running averages of weights.

use lehr_kernels::CHUNK;
use lehr_kernels::simd::{Kernel, Simd, dispatch};
use lehr_kernels::threads;

use super::refuse_grad;
use crate::{DType, Error, Result, Tensor, copy};

/// `y ← y + weight (x − y)` in f32, on any device. The CPU and a GPU compute the same bits.
///
/// # Errors
/// If the extents differ, one is not in f32 or wants a gradient, or a device fails.
///
/// # Panics
/// If `y` is shared and on the CPU.
pub fn lerp(y: &mut Tensor, x: &Tensor, weight: f32) -> Result<()> {
    const OP: &str = "lerp";
    refuse_grad(OP, "y", y)?;
    refuse_grad(OP, "x", x)?;
    y.expect_beside(OP, x)?;
    if y.dtype() != DType::F32 {
        return Err(Error::DType { op: OP, found: y.dtype(), expected: DType::F32 });
    }
    if y.shape() != x.shape() {
        let rule = "both need the same extents";
        return Err(Error::Shape { op: OP, lhs: y.shape(), rhs: x.shape(), rule });
    }
    if y.is_cuda() {
        return copy::lerp(y, x, weight);
    }
    let x = x.data();
    threads::run_chunks(y.data_mut(), CHUNK, |index, y| {
        let start = index * CHUNK;
        dispatch(Lerp { x: &x[start..start + y.len()], y, weight });
    });
    Ok(())
}

struct Lerp<'a> {
    y: &'a mut [f32],
    x: &'a [f32],
    weight: f32,
}

impl Kernel for Lerp<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let weight = s.splat(self.weight);
        for (y, x) in self.y.chunks_mut(S::LANES).zip(self.x.chunks(S::LANES)) {
            // SAFETY: both slices have `y.len()` numbers, at most one vector.
            unsafe {
                let (old, new) = (s.load_n(y.as_ptr(), y.len()), s.load_n(x.as_ptr(), y.len()));
                s.store_n(y.as_mut_ptr(), s.fma(weight, s.sub(new, old), old), y.len());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::{Device, Philox, cuda};

    fn random(n: usize, seed: u64) -> Tensor {
        let mut tensor = Tensor::zeros([n]).unwrap();
        Philox::new(seed, 1).fill_normal(tensor.data_mut(), 1.0);
        tensor
    }

    fn reference(y: &[f32], x: &[f32], weight: f32) -> Vec<f32> {
        y.iter().zip(x).map(|(y, x)| weight.mul_add(x - y, *y)).collect()
    }

    const SIZES: [usize; 4] = [1, 7, 1000, 3 * CHUNK + 5];

    #[test]
    fn lerp_moves_one_tensor_towards_another() {
        for n in SIZES {
            let (mut y, x) = (random(n, 1), random(n, 2));
            let want = reference(y.data(), x.data(), 0.3);
            lerp(&mut y, &x, 0.3).unwrap();
            assert_eq!(y.to_vec(), want);
        }
        let error = lerp(&mut random(3, 1), &random(4, 1), 0.5).unwrap_err().to_string();
        assert!(error.contains("lerp"), "{error}");
        assert!(lerp(&mut random(3, 1), &random(3, 1).trainable(), 0.5).is_err());
    }

    #[test]
    fn gpu_lerp_has_the_bits_of_the_cpu() {
        cuda::use_emulator();
        for n in SIZES {
            let (y, x) = (random(n, 1), random(n, 2));
            let want = reference(y.data(), x.data(), 0.02);
            let mut y = y.to_device(Device::Cuda(0)).unwrap();
            lerp(&mut y, &x.to_device(Device::Cuda(0)).unwrap(), 0.02).unwrap();
            assert_eq!(y.to_host().unwrap().to_vec(), want, "{n}");
        }
    }
}
