//! Products of stacks of matrices.

use crate::autograd::{Gradients, Op, record1};
use crate::cuda::blas::{self, Operand};
use crate::gemm::{Matrix, gemm};
use crate::{Error, Result, Tensor};

impl Tensor {
    /// `y = a b` for matrices `a [.., M, K]` and `b [.., K, N]` with the same leading dimensions.
    ///
    /// Saves both; `da = dy bᵀ`, `db = aᵀ dy`.
    ///
    /// # Errors
    /// If the shapes do not fit or memory runs out.
    pub fn matmul(&self, rhs: &Self) -> Result<Self> {
        const OP: &str = "matmul";
        self.expect_float(OP)?;
        self.expect_beside(OP, rhs)?;
        crate::ops::expect_rank_min(OP, self, 2)?;
        crate::ops::expect_rank_min(OP, rhs, 2)?;
        let (lhs_shape, rhs_shape) = (self.shape(), rhs.shape());
        let (lead, lhs_dims) = lhs_shape.split_at(lhs_shape.len() - 2);
        let (rhs_lead, rhs_dims) = rhs_shape.split_at(rhs_shape.len() - 2);
        if lead != rhs_lead || lhs_dims[1] != rhs_dims[0] {
            let rule = "a matmul takes [.., M, K] and [.., K, N] with equal leading dimensions";
            return Err(Error::Shape { op: OP, lhs: lhs_shape, rhs: rhs_shape, rule });
        }
        let size = MatmulSize {
            batch: lead.iter().product(),
            m: lhs_dims[0],
            n: rhs_dims[1],
            k: lhs_dims[1],
        };
        let mut y = self.like(lhs_shape.with_last_dim(size.n))?;
        match self.is_cuda() {
            true => size.forward_cuda(self, rhs, &mut y)?,
            false => size.forward(self.data(), rhs.data(), y.data_mut())?,
        }
        let op = || Matmul { lhs: self.detach(), rhs: rhs.detach(), size };
        Ok(record1(&[self, rhs], y, op))
    }
}

#[derive(Clone, Copy)]
struct MatmulSize {
    batch: usize,
    m: usize,
    n: usize,
    k: usize,
}

impl MatmulSize {
    fn forward(&self, a: &[f32], b: &[f32], y: &mut [f32]) -> Result<()> {
        let &Self { batch, m, n, k } = self;
        for i in 0..batch {
            let (a, b) = (&a[i * m * k..], &b[i * k * n..]);
            let y = &mut y[i * m * n..];
            gemm((m, n, k), Matrix::rows(a, k), Matrix::rows(b, n), y, n, false, None)?;
        }
        Ok(())
    }

    /// Describes a stack of matrices `[rows, columns]` on a GPU, or their transposes.
    fn stack(x: &Tensor, (rows, columns): (usize, usize), transposed: bool) -> Operand {
        let operand = match transposed {
            true => Operand::transposed(x.device_ptr(), x.dtype(), columns),
            false => Operand::rows(x.device_ptr(), x.dtype(), columns),
        };
        Operand { batch_stride: rows * columns, ..operand }
    }

    fn product(
        &self,
        size: (usize, usize, usize),
        [a, b, c]: [Operand; 3],
        x: &Tensor,
        add: bool,
    ) -> Result<()> {
        let product = blas::Matmul { batch: self.batch, ..blas::Matmul::new(size, a, b, c) };
        product.accumulate(add).run(x.cuda()?)
    }

    fn forward_cuda(&self, a: &Tensor, b: &Tensor, y: &mut Tensor) -> Result<()> {
        let &Self { m, n, k, .. } = self;
        let operands = [
            Self::stack(a, (m, k), false),
            Self::stack(b, (k, n), false),
            Self::stack(y, (m, n), false),
        ];
        self.product((m, n, k), operands, a, false)
    }

    fn backward_lhs_cuda(&self, dy: &Tensor, b: &Tensor, da: &mut Tensor, add: bool) -> Result<()> {
        let &Self { m, n, k, .. } = self;
        let operands = [
            Self::stack(dy, (m, n), false),
            Self::stack(b, (k, n), true),
            Self::stack(da, (m, k), false),
        ];
        self.product((m, k, n), operands, dy, add)
    }

    fn backward_rhs_cuda(&self, a: &Tensor, dy: &Tensor, db: &mut Tensor, add: bool) -> Result<()> {
        let &Self { m, n, k, .. } = self;
        let operands = [
            Self::stack(a, (m, k), true),
            Self::stack(dy, (m, n), false),
            Self::stack(db, (k, n), false),
        ];
        self.product((k, n, m), operands, dy, add)
    }

    fn backward_lhs(&self, dy: &[f32], b: &[f32], da: &mut [f32], add: bool) -> Result<()> {
        let &Self { batch, m, n, k } = self;
        for i in 0..batch {
            let (dy, b) = (&dy[i * m * n..], &b[i * k * n..]);
            let da = &mut da[i * m * k..];
            gemm((m, k, n), Matrix::rows(dy, n), Matrix::transposed(b, n), da, k, add, None)?;
        }
        Ok(())
    }

    fn backward_rhs(&self, a: &[f32], dy: &[f32], db: &mut [f32], add: bool) -> Result<()> {
        let &Self { batch, m, n, k } = self;
        for i in 0..batch {
            let (a, dy) = (&a[i * m * k..], &dy[i * m * n..]);
            let db = &mut db[i * k * n..];
            gemm((k, n, m), Matrix::transposed(a, k), Matrix::rows(dy, n), db, n, add, None)?;
        }
        Ok(())
    }
}

struct Matmul {
    lhs: Tensor,
    rhs: Tensor,
    size: MatmulSize,
}

impl Op for Matmul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        if dy.is_cuda() {
            grads.write_like(0, &self.lhs, |da, add| {
                self.size.backward_lhs_cuda(&dy, &self.rhs, da, add)
            })?;
            return grads.write_like(1, &self.rhs, |db, add| {
                self.size.backward_rhs_cuda(&self.lhs, &dy, db, add)
            });
        }
        grads.write(0, self.lhs.shape(), |da, accumulate| {
            self.size.backward_lhs(dy.data(), self.rhs.data(), da, accumulate)
        })?;
        grads.write(1, self.rhs.shape(), |db, accumulate| {
            self.size.backward_rhs(self.lhs.data(), dy.data(), db, accumulate)
        })
    }
}
