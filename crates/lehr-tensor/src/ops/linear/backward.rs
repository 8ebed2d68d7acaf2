//! Backward of a linear map on a GPU: the gradients of its input, its weight and its bias.

use super::WeightLayout::{InOut, OutIn};
use super::cuda::{column_sums, rows, transposed};
use super::fp8::{self, Copies, Fp8, Pass};
use super::{Kept, LinearSize};
use crate::autograd::Gradients;
use crate::cuda::blas::{Element, Epilogue, Matmul};
use crate::{Result, Tensor};

/// The products of one backward pass, which share dy.
pub(crate) struct Backward<'a> {
    kept: &'a Kept,
    dy: &'a Tensor,
    /// dy in 8 bits, if the products are in fp8.
    dy8: Option<Fp8>,
}

impl<'a> Backward<'a> {
    pub(crate) fn new(kept: &'a Kept, dy: &'a Tensor) -> Result<Self> {
        let LinearSize { rows: n, n_out, .. } = kept.size;
        let is_fp8 = kept.fp8 && fp8::fits(dy.cuda()?, dy.dtype(), kept.size);
        let dy8 =
            is_fp8.then(|| Fp8::new(dy, (n, n_out), Element::E5M2, Copies::Both)).transpose()?;
        Ok(Self { kept, dy, dy8 })
    }

    /// `dx (+)= dy W`.
    pub(crate) fn input(&self, dx: &mut Tensor, accumulate: bool) -> Result<()> {
        let (cuda, LinearSize { rows: n, n_out, n_in }) = (self.dy.cuda()?, self.kept.size);
        if let Some(dy) = &self.dy8 {
            let in_fp8 = || {
                let (weight, layout) = (&self.kept.weight, self.kept.layout);
                // Freed after the product was started, which is safe: the next owner of the memory
                // writes after the product.
                let (_w, w) = Fp8::of_weight(weight, layout, (n_out, n_in), InOut)?;
                let product = Matmul::new((n, n_in, n_out), dy.rows(), w, rows(dx, n_in));
                product.accumulate(accumulate).try_run(cuda)
            };
            if fp8::run_unless_refused((Pass::Input, self.kept.size, accumulate), in_fp8)? {
                return Ok(());
            }
        }
        self.input_product(dx).accumulate(accumulate).run(cuda)
    }

    /// Computes `dx = dy W ⊙ gelu'(x)` (by tanh) for the argument x of the GELU. Returns false, and
    /// starts nothing, if there is no such product.
    pub(crate) fn input_of_gelu(&self, x: &Tensor, dx: &mut Tensor) -> Result<bool> {
        let cuda = self.dy.cuda()?;
        if self.dy8.is_some() || !Epilogue::has_gelu(cuda, self.dy.dtype(), self.kept.size.n_in) {
            return Ok(false);
        }
        let slope = Epilogue::GeluSlope { aux: x.device_ptr() };
        self.input_product(dx).epilogue(slope).try_run(cuda)
    }

    fn input_product(&self, dx: &Tensor) -> Matmul {
        let (&Kept { ref weight, layout, size, .. }, dy) = (self.kept, self.dy);
        let LinearSize { rows: n, n_out, n_in } = size;
        let b = match layout {
            OutIn => rows(weight, n_in),
            InOut => transposed(weight, n_out),
        };
        Matmul::new((n, n_in, n_out), rows(dy, n_out), b, rows(dx, n_in))
    }

    /// Gradients of the weight, input `index` of the op, for the input `x` of the map; and of the
    /// bias, the input after it if any.
    pub(crate) fn params(&self, x: &Tensor, grads: &mut Gradients<'_>, index: usize) -> Result<()> {
        grads.write_param(index, &self.kept.weight, |dw, accumulate| {
            self.weight(x, dw, accumulate)
        })?;
        if grads.n_inputs() <= index + 1 || !grads.wants(index + 1) {
            return Ok(());
        }
        let LinearSize { rows: n, n_out, .. } = self.kept.size;
        grads.write_param_shaped(index + 1, [n_out].into(), self.dy, |db, accumulate| {
            column_sums(n, self.dy, n_out, db, accumulate)
        })
    }

    /// `dW (+)= dyᵀ x`, or its transpose, in f32.
    fn weight(&self, x: &Tensor, dw: &mut Tensor, accumulate: bool) -> Result<()> {
        let (dy, &Kept { layout, size, .. }) = (self.dy, self.kept);
        let LinearSize { rows: n, n_out, n_in } = size;
        let (cuda, by_out, by_in) = (dy.cuda()?, (n_out, n_in, n), (n_in, n_out, n));
        if let Some(dy) = &self.dy8 {
            let in_fp8 = || {
                let x = Fp8::new(x, (n, n_in), Element::E4M3, Copies::Columns)?;
                let product = match layout {
                    OutIn => {
                        Matmul::new(by_out, dy.columns(), x.columns().by_columns(), rows(dw, n_in))
                    }
                    InOut => {
                        Matmul::new(by_in, x.columns(), dy.columns().by_columns(), rows(dw, n_out))
                    }
                };
                product.accumulate(accumulate).try_run(cuda)
            };
            if fp8::run_unless_refused((Pass::Weight, self.kept.size, accumulate), in_fp8)? {
                return Ok(());
            }
        }
        let product = match layout {
            OutIn => Matmul::new(by_out, transposed(dy, n_out), rows(x, n_in), rows(dw, n_in)),
            InOut => Matmul::new(by_in, transposed(x, n_in), rows(dy, n_out), rows(dw, n_out)),
        };
        product.accumulate(accumulate).run(cuda)
    }
}
