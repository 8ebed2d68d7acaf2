//! Reductions of a whole tensor to one number.

use crate::autograd::{Gradients, Op, record1};
use crate::inplace::CHUNK;
use crate::{Result, Shape, Tensor, threads};

impl Tensor {
    /// `Σ x` as a tensor `[1]`, summed in f64 over chunks of fixed size.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn sum(&self) -> Result<Self> {
        self.expect_f32("sum")?;
        let y = Self::full([1], total(self.data()) as f32)?;
        Ok(record1(&[self], y, || Sum { shape: self.shape() }))
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

struct Sum {
    shape: Shape,
}

impl Op for Sum {
    fn name(&self) -> &'static str {
        "sum"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output().item()?;
        grads.add(0, Tensor::full(self.shape, dy)?)
    }
}
