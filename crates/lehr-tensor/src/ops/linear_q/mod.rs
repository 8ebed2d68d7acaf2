//! The affine map of the last dimension with a weight in a storage format.

pub(crate) mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
pub(crate) mod reference;
#[cfg(test)]
pub(crate) mod tests;

use super::linear::WeightLayout::OutIn;
use super::linear::{self, LinearSize, bf16};
use crate::autograd::{Gradients, Op, record, record1};
use crate::ops::linear::cpu::column_sums;
use crate::quant::QMatrix;
use crate::{DType, Error, Result, Shape, Tensor};

impl Tensor {
    /// `y = x Wᵀ + bias` over the last dimension, for a weight in a stored form.
    ///
    /// | name | shape |
    /// |---|---|
    /// | `self` | `[.., I]` |
    /// | `w` | `[O, I]` |
    /// | `bias` | `[O]` |
    /// | returns | `[.., O]` |
    ///
    /// With [`Activations::Int8`](crate::quant::Activations) `x` is rounded to 8 bits for each 32
    /// numbers, unless the weight is of floats or NF4; with `F32` the result is that of the numbers
    /// the weight stands for.
    ///
    /// A weight of floats that was moved to the CPU in bf16 is multiplied as by
    /// [`Tensor::linear`] with a weight in bf16.
    ///
    /// `dx = dy W`, in f32 whatever the activations were, and `dbias = Σ dy`; the weight has no
    /// gradient. Saves nothing but a share in the weight.
    ///
    /// On the CPU rows are computed independently: the bits of a row do not depend on the others,
    /// nor on the number of threads.
    ///
    /// # Errors
    /// If shapes do not fit or memory runs out.
    pub fn linear_q(&self, w: &QMatrix, bias: Option<&Self>) -> Result<Self> {
        check(self, w, bias)?;
        let mut y = self.like(self.shape().with_last_dim(w.rows()))?;
        if self.is_cuda() {
            cuda::forward(w, self, bias, &mut y)?;
        } else if self.shape().n_elements() == 0 || w.rows() == 0 {
            // No inputs: the sums are empty.
            for row in y.data_mut().chunks_mut(w.rows().max(1)) {
                match bias {
                    Some(bias) => row.copy_from_slice(bias.data()),
                    None => row.fill(0.0),
                }
            }
        } else if w.is_in_bf16() {
            let (n_out, n_in) = (w.rows(), w.cols());
            let size = LinearSize { rows: self.shape().n_rows(), n_out, n_in };
            let x = bf16::Input::new(self, size, OutIn, false)?;
            let bias = bias.map(Self::data);
            bf16::forward(&x, bf16::Weight::Stored(w), OutIn, bias, y.data_mut())?;
        } else {
            cpu::forward(w, self.data(), bias.map(Self::data), y.data_mut())?;
        }
        let op = || LinearQ { w: w.clone(), x: self.shape() };
        Ok(match bias {
            Some(bias) => {
                let [y] = record(&[self, bias], [y], op);
                y
            }
            None => record1(&[self], y, op),
        })
    }
}

fn check(x: &Tensor, w: &QMatrix, bias: Option<&Tensor>) -> Result<()> {
    let op = "linear_q";
    x.expect_float(op)?;
    super::expect_rank_min(op, x, 1)?;
    let weight = Shape::from([w.rows(), w.cols()]);
    if x.shape().last_dim() != w.cols() {
        let rule = "the last dimension of x must be the weight's input width";
        return Err(Error::Shape { op, lhs: x.shape(), rhs: weight, rule });
    }
    if let Some(bias) = bias {
        x.expect_beside(op, bias)?;
        if *bias.shape() != [w.rows()] {
            let rule = "the bias must have one number per output";
            return Err(Error::Shape { op, lhs: bias.shape(), rhs: weight, rule });
        }
    }
    Ok(())
}

struct LinearQ {
    w: QMatrix,
    x: Shape,
}

impl Op for LinearQ {
    fn name(&self) -> &'static str {
        "linear_q"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        if dy.is_cuda() {
            return self.backward_cuda(&dy, grads);
        }
        grads.write(0, self.x, |dx, accumulate| {
            if dy.data().is_empty() || dx.is_empty() {
                if !accumulate {
                    dx.fill(0.0);
                }
                return Ok(());
            }
            if self.w.is_in_bf16() {
                let (n_out, n_in) = (self.w.rows(), self.w.cols());
                let size = LinearSize { rows: dy.shape().n_rows(), n_out, n_in };
                let dy = bf16::OutputGrad::new(dy.data(), size, OutIn, (true, false))?;
                return dy.input(bf16::Weight::Stored(&self.w), OutIn, dx, accumulate);
            }
            cpu::backward(&self.w, dy.data(), dx, accumulate)
        })?;
        if grads.n_inputs() < 2 {
            return Ok(());
        }
        grads.write(1, [self.w.rows()].into(), |db, accumulate| {
            column_sums(dy.data(), db, accumulate);
            Ok(())
        })
    }
}

impl LinearQ {
    fn backward_cuda(&self, dy: &Tensor, grads: &mut Gradients<'_>) -> Result<()> {
        if grads.wants(0) {
            let like = dy.like(self.x)?;
            grads.write_like(0, &like, |dx, accumulate| {
                cuda::backward(&self.w, dy, dx, accumulate)
            })?;
        }
        if grads.n_inputs() < 2 || !grads.wants(1) {
            return Ok(());
        }
        let (n, rows) = (dy.shape().n_rows(), self.w.rows());
        grads.write_param_shaped(1, [rows].into(), dy, |db, accumulate| {
            linear::cuda::column_sums(n, dy, rows, db, accumulate)
        })
    }
}

impl QMatrix {
    /// `y[.., :] = self[ids[..], :]`: rows of a table in a stored form, as f32. There is no
    /// gradient.
    ///
    /// | name | shape |
    /// |---|---|
    /// | `self` | `[V, D]` |
    /// | `ids` | `[..]`, i32 in `0..V` |
    /// | returns | `[.., D]` |
    ///
    /// # Errors
    /// If an id is out of range or not an integer, or memory runs out.
    pub fn embedding(&self, ids: &Tensor) -> Result<Tensor> {
        let op = "embedding";
        super::embedding::check_ids(op, ids, self.rows())?;
        let mut dims = ids.shape().to_vec();
        dims.push(self.cols());
        if let Some(copy) = self.on_gpu() {
            let y = Tensor::uninit_on(copy.device, &dims, copy.dtype)?;
            cuda::gather(self, &copy, ids, &y)?;
            return Ok(y);
        }
        let mut y = Tensor::uninit(&dims, DType::F32)?;
        if self.cols() > 0 {
            for (row, id) in y.data_mut().chunks_exact_mut(self.cols()).zip(ids.ids()) {
                let id = *id as usize;
                self.dequantize_rows(id..id + 1, row);
            }
        }
        Ok(y)
    }
}
