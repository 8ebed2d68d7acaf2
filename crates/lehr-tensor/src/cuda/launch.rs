//! The arguments of a kernel.

use super::{Cuda, Extent};
use crate::{Error, Result, Tensor};

/// One argument: its bits, in the lower bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arg(u64);

impl Arg {
    pub(super) fn bits(&self) -> u64 {
        self.0
    }
}

/// A tensor's address.
impl From<&Tensor> for Arg {
    fn from(tensor: &Tensor) -> Self {
        Self(tensor.device_ptr())
    }
}

impl From<&mut Tensor> for Arg {
    fn from(tensor: &mut Tensor) -> Self {
        Self(tensor.device_ptr())
    }
}

/// A tensor's address, or null.
impl From<Option<&Tensor>> for Arg {
    fn from(tensor: Option<&Tensor>) -> Self {
        Self(tensor.map_or(0, Tensor::device_ptr))
    }
}

impl From<u64> for Arg {
    fn from(value: u64) -> Self {
        Self(value)
    }
}

impl From<i64> for Arg {
    fn from(value: i64) -> Self {
        Self(value as u64)
    }
}

impl From<i32> for Arg {
    fn from(value: i32) -> Self {
        Self(u64::from(value as u32))
    }
}

impl From<u32> for Arg {
    fn from(value: u32) -> Self {
        Self(u64::from(value))
    }
}

/// A flag, as an int.
impl From<bool> for Arg {
    fn from(value: bool) -> Self {
        Self(u64::from(value))
    }
}

impl From<f32> for Arg {
    fn from(value: f32) -> Self {
        Self(u64::from(value.to_bits()))
    }
}

impl From<f64> for Arg {
    fn from(value: f64) -> Self {
        Self(value.to_bits())
    }
}

/// The arguments of a kernel in its order.
macro_rules! args {
    ($($value:expr),* $(,)?) => {
        &[$($crate::cuda::Arg::from($value)),*]
    };
}
pub(crate) use args;

/// Threads per block of elementwise kernels.
const THREADS: u32 = 256;

impl Extent {
    /// For kernels that stride over `n` elements with any grid: enough blocks to fill the device,
    /// not more than there is work.
    pub(crate) fn elementwise(cuda: &Cuda, n: usize) -> Self {
        let wanted = n.div_ceil(4 * THREADS as usize);
        let most = 16 * cuda.n_sms() as usize;
        Self { grid: [wanted.min(most) as u32, 1, 1], block: [THREADS, 1, 1], shared_bytes: 0 }
    }

    /// A grid of one dimension without dynamic shared memory.
    pub(crate) fn line(blocks: usize, threads: u32) -> Self {
        Self { grid: [clamped(blocks), 1, 1], block: [threads, 1, 1], shared_bytes: 0 }
    }
}

/// A number of blocks along the first dimension, which is at most 2³¹ − 1.
fn clamped(blocks: usize) -> u32 {
    blocks.min(i32::MAX as usize) as u32
}

/// A size as the `int` of a kernel.
pub(crate) fn int(op: &'static str, n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| {
        let expected = "at most 2147483647 on a GPU";
        Error::Argument { op, name: "size", value: n.to_string(), expected }
    })
}
