//! Matrix products.

use super::Cuda;
use crate::{DType, Result};

/// A matrix in the memory of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Operand {
    pub(crate) ptr: u64,
    pub(crate) dtype: DType,
    /// From one stored row to the next, in elements.
    pub(crate) stride: usize,
    /// Whether what is stored are the columns.
    pub(crate) transposed: bool,
    /// From one matrix of a batch to the next, in elements.
    pub(crate) batch_stride: usize,
}

impl Operand {
    /// A matrix stored row by row.
    pub(crate) fn rows(ptr: u64, dtype: DType, stride: usize) -> Self {
        Self { ptr, dtype, stride, transposed: false, batch_stride: 0 }
    }

    /// A matrix stored column by column: the transpose of one stored row by row.
    pub(crate) fn transposed(ptr: u64, dtype: DType, stride: usize) -> Self {
        Self { transposed: true, ..Self::rows(ptr, dtype, stride) }
    }
}

/// `C (+)= A B + bias` for `A [m, k]`, `B [k, n]`, `C [m, n]`, in f32 inside; A and B have one element type.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matmul {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) a: Operand,
    pub(crate) b: Operand,
    /// Stored row by row.
    pub(crate) c: Operand,
    pub(crate) accumulate: bool,
    /// Address of `[n]` numbers of C's type, added to every row.
    pub(crate) bias: Option<u64>,
    pub(crate) batch: usize,
}

impl Matmul {
    pub(crate) fn new(
        (m, n, k): (usize, usize, usize),
        a: Operand,
        b: Operand,
        c: Operand,
    ) -> Self {
        Self { m, n, k, a, b, c, accumulate: false, bias: None, batch: 1 }
    }

    pub(crate) fn accumulate(self, accumulate: bool) -> Self {
        Self { accumulate, ..self }
    }

    pub(crate) fn bias(self, bias: Option<u64>) -> Self {
        Self { bias, ..self }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.m == 0 || self.n == 0 || self.batch == 0
    }

    pub(crate) fn run(&self, cuda: &Cuda) -> Result<()> {
        cuda.matmul(self)
    }
}
