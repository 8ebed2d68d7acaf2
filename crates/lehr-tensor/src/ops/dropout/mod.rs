//! Random zeros, for regularisation.

mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
pub(crate) mod tests;

use crate::autograd::{Gradients, Op, record1};
use crate::{Error, Philox, Result, Tensor};

impl Tensor {
    /// Sets each value to 0 with probability `p` and multiplies the others by `1 / (1 − p)`, so
    /// that the mean stays: element `i` (row-major) is kept if `rng.uniform(i) >= p`.
    ///
    /// With `p = 0` the result is the tensor itself. Saves `rng` and `p`: backward draws the same
    /// numbers again, which costs less than keeping a mask in memory. A caller uses a stream once.
    ///
    /// Srivastava et al. 2014, <https://jmlr.org/papers/v15/srivastava14a.html>.
    ///
    /// # Errors
    /// If `p` is not in `0..1` or memory runs out.
    pub fn dropout(&self, p: f32, rng: &Philox) -> Result<Self> {
        const OP: &str = "dropout";
        self.expect_float(OP)?;
        if !(0.0..1.0).contains(&p) {
            let value = p.to_string();
            return Err(Error::Argument { op: OP, name: "p", value, expected: "0 <= p < 1" });
        }
        if p == 0.0 {
            return Ok(self.clone());
        }
        let mut y = self.like(self.shape())?;
        match self.is_cuda() {
            true => cuda::apply(self, p, *rng, &mut y, false)?,
            false => cpu::apply(self.data(), p, *rng, y.data_mut(), false),
        }
        Ok(record1(&[self], y, || Dropout { p, rng: *rng }))
    }
}

struct Dropout {
    p: f32,
    rng: Philox,
}

impl Op for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        if dy.is_cuda() {
            return grads.write_like(0, &dy, |dx, accumulate| {
                cuda::apply(&dy, self.p, self.rng, dx, accumulate)
            });
        }
        grads.write(0, dy.shape(), |dx, accumulate| {
            cpu::apply(dy.data(), self.p, self.rng, dx, accumulate);
            Ok(())
        })
    }
}
