//! Matrix products.

use super::{Cuda, fault};
use lehr_kernels::{DType, Result};

/// The compute capability from which tensor cores multiply 8-bit floats: Ada's.
pub const FP8_CAPABILITY: (u32, u32) = (8, 9);
/// Extents of 8-bit products are multiples of this.
pub const FP8_MULTIPLE: usize = 16;

/// Element type of a matrix in a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// 32 bits.
    F32,
    /// 16 bits with 8 of exponent.
    BF16,
    /// 16 bits with 5 of exponent.
    F16,
    /// 8 bits with 4 of exponent and 3 of fraction.
    E4M3,
    /// 8 bits with 5 of exponent and 2 of fraction.
    E5M2,
}

impl Element {
    /// Returns the bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::BF16 | Self::F16 => 2,
            Self::E4M3 | Self::E5M2 => 1,
        }
    }
}

impl From<DType> for Element {
    fn from(dtype: DType) -> Self {
        match dtype {
            DType::BF16 => Self::BF16,
            DType::F16 => Self::F16,
            DType::F32 | DType::I32 => Self::F32,
        }
    }
}

/// A matrix in the memory of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Operand {
    /// Address of the first element.
    pub ptr: u64,
    /// Type of the elements.
    pub element: Element,
    /// From one stored row to the next, in elements.
    pub stride: usize,
    /// Whether the columns are stored one after another.
    pub transposed: bool,
    /// From one matrix of a batch to the next, in elements.
    pub batch_stride: usize,
    /// Address of the f32 scale of 8-bit elements; 0 = none.
    pub scale: u64,
}

impl Operand {
    /// A matrix stored row by row.
    pub fn rows(ptr: u64, element: impl Into<Element>, stride: usize) -> Self {
        let element = element.into();
        Self { ptr, element, stride, transposed: false, batch_stride: 0, scale: 0 }
    }

    /// A matrix stored column by column: the transpose of one stored row by row.
    pub fn transposed(ptr: u64, element: impl Into<Element>, stride: usize) -> Self {
        Self { transposed: true, ..Self::rows(ptr, element, stride) }
    }

    /// The transpose: the rows stored here are its columns.
    pub fn by_columns(self) -> Self {
        Self { transposed: true, ..self }
    }
}

/// The work on the sums of a product before they are rounded and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// Nothing: `C (+)= A B`.
    None,
    /// `C (+)= A B + bias`: address of `[n]` numbers of C's type, added to every row.
    Bias(u64),
    /// `C = gelu(X)` for `X = A B + bias`, with the approximation by tanh. X is written to `aux`,
    /// which has the type and the stride of C.
    Gelu {
        /// Address of the bias, if there is one.
        bias: Option<u64>,
        /// Address of X.
        aux: u64,
    },
    /// `C = A B ⊙ gelu'(X)` for the X that [`Epilogue::Gelu`] wrote to `aux`.
    GeluSlope {
        /// Address of X.
        aux: u64,
    },
}

impl Epilogue {
    /// Returns whether the epilogues of GELU are used. They read or write a second matrix in packs
    /// of 16 bytes, whose rows must be multiples of 8 elements (NVIDIA's documentation of cuBLAS,
    /// `CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD`). llm.c uses them from Hopper on, because they were
    /// slower on an RTX 4090.
    pub fn has_gelu(cuda: &Cuda, dtype: DType, width: usize) -> bool {
        dtype != DType::F32 && width.is_multiple_of(8) && cuda.info().capability >= (9, 0)
    }
}

/// `C (+)= A B` for `A [m, k]`, `B [k, n]`, `C [m, n]`, in f32 inside; A and B have one element
/// type, or 8 bits each: then A is stored by rows, B by columns, and m, n and k are multiples of
/// 16.
#[derive(Clone, Copy, Debug)]
pub struct Matmul {
    /// Rows of A and C.
    pub m: usize,
    /// Columns of B and C.
    pub n: usize,
    /// Columns of A, rows of B.
    pub k: usize,
    /// `[m, k]`.
    pub a: Operand,
    /// `[k, n]`.
    pub b: Operand,
    /// Stored row by row.
    pub c: Operand,
    /// Whether the product is added to C.
    pub accumulate: bool,
    /// What happens to the sums before they are written.
    pub epilogue: Epilogue,
    /// Number of products of the same sizes.
    pub batch: usize,
}

impl Matmul {
    /// Describes `C = A B` for extents `(m, n, k)`.
    pub fn new((m, n, k): (usize, usize, usize), a: Operand, b: Operand, c: Operand) -> Self {
        Self { m, n, k, a, b, c, accumulate: false, epilogue: Epilogue::None, batch: 1 }
    }

    /// Sets whether the product is added to C.
    pub fn accumulate(self, accumulate: bool) -> Self {
        Self { accumulate, ..self }
    }

    /// Sets the address of a bias to add to every row.
    pub fn bias(self, bias: Option<u64>) -> Self {
        self.epilogue(bias.map_or(Epilogue::None, Epilogue::Bias))
    }

    /// Sets the epilogue.
    pub fn epilogue(self, epilogue: Epilogue) -> Self {
        Self { epilogue, ..self }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.m == 0 || self.n == 0 || self.batch == 0
    }

    /// Returns whether the library may lack this product, so that the caller needs an alternative.
    pub(super) fn is_optional(&self) -> bool {
        self.epilogue != Epilogue::None || self.a.element.size() == 1
    }

    /// Starts the product. If the library cannot add the bias, it is written to C before.
    pub fn run(&self, cuda: &Cuda) -> Result<()> {
        if self.try_run(cuda)? {
            return Ok(());
        }
        let &Self { m, n, k, a, accumulate, epilogue, .. } = self;
        match epilogue {
            Epilogue::Bias(bias) if !accumulate => {
                self.put_in_rows(cuda, bias)?;
                Self { epilogue: Epilogue::None, accumulate: true, ..*self }.run(cuda)
            }
            _ => Err(fault(
                format!("multiplying [{m}, {k}] by [{k}, {n}] in {:?}", a.element),
                format!("there is no algorithm for these shapes and types and {epilogue:?}"),
            )),
        }
    }

    /// Starts the product. Returns false, and starts nothing, if it has an epilogue or 8-bit
    /// elements for which the library has no algorithm.
    pub fn try_run(&self, cuda: &Cuda) -> Result<bool> {
        if self.is_optional() && IS_PLAIN.get() {
            return Ok(false);
        }
        cuda.matmul(self)
    }

    /// Writes a bias into every row of C.
    fn put_in_rows(&self, cuda: &Cuda, bias: u64) -> Result<()> {
        let &Self { m, n, c, batch, .. } = self;
        let size = c.element.size();
        for index in 0..batch {
            let first = c.ptr + (index * c.batch_stride * size) as u64;
            cuda.copy(first, bias, n * size)?;
            let mut done = 1;
            while done < m {
                // Rows without gaps are doubled.
                let more = if c.stride == n { done.min(m - done) } else { 1 };
                cuda.copy(first + (done * c.stride * size) as u64, first, more * n * size)?;
                done += more;
            }
        }
        Ok(())
    }

    /// The product of matrices without an inner dimension: the bias in every row, or zeros.
    pub(super) fn put_empty_sums(&self, cuda: &Cuda) -> Result<()> {
        match self.epilogue {
            _ if self.accumulate => Ok(()),
            Epilogue::Bias(bias) => self.put_in_rows(cuda, bias),
            _ => {
                let size = self.c.element.size();
                for row in 0..self.batch * self.m {
                    let (index, row) = (row / self.m, row % self.m);
                    let at = index * self.c.batch_stride + row * self.c.stride;
                    cuda.set(self.c.ptr + (at * size) as u64, 0, self.n * size)?;
                }
                Ok(())
            }
        }
    }
}

thread_local! {
    /// Whether products with an epilogue or 8-bit elements are refused, as by a library without an
    /// algorithm for them.
    static IS_PLAIN: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Runs `body` while every product of this thread that a library may refuse is refused, to test the
/// alternatives.
pub fn with_plain_products<V>(body: impl FnOnce() -> V) -> V {
    IS_PLAIN.set(true);
    let value = body();
    IS_PLAIN.set(false);
    value
}
