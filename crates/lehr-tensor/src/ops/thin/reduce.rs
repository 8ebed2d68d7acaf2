//! Reductions of a whole tensor to one number.

use lehr_kernels::CHUNK;

use super::cuda;
use crate::autograd::{Gradients, Op, record1};
use crate::{Error, Result, Shape, Tensor, threads};

impl Tensor {
    /// `Σ x` as a tensor `[1]`, summed in f64 over chunks of fixed size.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn sum(&self) -> Result<Self> {
        self.expect_float("sum")?;
        let y = match self.is_cuda() {
            true => cuda::sum(self, 1.0)?,
            false => Self::full([1], total(self.data()) as f32)?,
        };
        Ok(record1(&[self], y, || Sum { shape: self.shape(), factor: 1.0 }))
    }

    /// `Σ x / n` over all n elements, as a tensor `[1]`.
    ///
    /// # Errors
    /// If there are no elements, they are not f32, or memory runs out.
    pub fn mean(&self) -> Result<Self> {
        self.expect_float("mean")?;
        let n = self.shape().n_elements();
        if n == 0 {
            let expected = "at least one element".to_owned();
            return Err(Error::Rank { op: "mean", found: self.shape(), expected });
        }
        let y = match self.is_cuda() {
            true => cuda::sum(self, n as f64)?,
            false => Self::full([1], (total(self.data()) / n as f64) as f32)?,
        };
        Ok(record1(&[self], y, || Sum { shape: self.shape(), factor: 1.0 / n as f32 }))
    }
}

/// The sum of all values.
pub(super) fn total(x: &[f32]) -> f64 {
    let mut partial = vec![0.0f64; x.len().div_ceil(CHUNK)];
    threads::run_chunks(&mut partial, 1, |index, out| {
        let chunk = &x[index * CHUNK..x.len().min((index + 1) * CHUNK)];
        out[0] = chunk.iter().map(|v| f64::from(*v)).sum();
    });
    partial.iter().sum()
}

/// A sum times a factor.
struct Sum {
    shape: Shape,
    factor: f32,
}

impl Op for Sum {
    fn name(&self) -> &'static str {
        "sum"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        if dy.is_cuda() {
            return grads.add(0, cuda::filled_from(&dy, self.shape, &dy, self.factor)?);
        }
        let dy = dy.item()?;
        grads.add(0, Tensor::full(self.shape, dy * self.factor)?)
    }
}
