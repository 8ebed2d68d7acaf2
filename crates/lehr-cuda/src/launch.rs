//! The arguments of a kernel.

use super::{Cuda, Extent};
use lehr_kernels::{Error, Result};

/// One argument: its bits, in the lower bytes.
#[derive(Clone, Copy, Debug)]
pub struct Arg(u64);

impl Arg {
    pub(super) fn bits(&self) -> u64 {
        self.0
    }
}

/// The address of an optional operand: null if it is missing.
impl<'a, T> From<Option<&'a T>> for Arg
where
    Self: From<&'a T>,
{
    fn from(place: Option<&'a T>) -> Self {
        place.map_or(Self(0), Self::from)
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
#[macro_export]
macro_rules! args {
    ($($value:expr),* $(,)?) => {
        &[$($crate::Arg::from($value)),*]
    };
}

/// Threads per block of elementwise kernels.
const THREADS: u32 = 256;

impl Extent {
    /// For kernels that stride over `n` elements with any grid: enough blocks to fill the device,
    /// not more than there is work.
    pub fn elementwise(cuda: &Cuda, n: usize) -> Self {
        let wanted = n.div_ceil(4 * THREADS as usize);
        let most = 16 * cuda.n_sms() as usize;
        Self { grid: [wanted.min(most) as u32, 1, 1], block: [THREADS, 1, 1], shared_bytes: 0 }
    }

    /// A grid of one dimension without dynamic shared memory.
    pub fn line(blocks: usize, threads: u32) -> Self {
        Self { grid: [clamped(blocks), 1, 1], block: [threads, 1, 1], shared_bytes: 0 }
    }
}

/// A number of blocks along the first dimension, which is at most 2³¹ − 1.
fn clamped(blocks: usize) -> u32 {
    blocks.min(i32::MAX as usize) as u32
}

/// A size as the `int` of a kernel.
pub fn int(op: &'static str, n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| {
        let expected = "at most 2147483647 on a GPU";
        Error::Argument { op, name: "size", value: n.to_string(), expected }
    })
}
