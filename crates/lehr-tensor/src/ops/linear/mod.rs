//! The affine map of the last dimension.

pub(crate) mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
pub(crate) mod reference;
#[cfg(test)]
pub(crate) mod tests;

use crate::autograd::{Gradients, Op, record1};
use crate::{Error, Result, Tensor};

/// How a weight matrix lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightLayout {
    /// `[out, in]`, the convention of PyTorch's `Linear`.
    OutIn,
    /// `[in, out]`, the convention of GPT-2's `Conv1D`.
    InOut,
}

/// What a linear map is made of.
#[derive(Clone, Copy)]
pub struct Affine<'a> {
    /// `[O, I]`, or `[I, O]` with [`WeightLayout::InOut`].
    pub weight: &'a Tensor,
    /// Which of both.
    pub layout: WeightLayout,
    /// `[O]`.
    pub bias: Option<&'a Tensor>,
}

impl Tensor {
    /// `y = x Wᵀ + bias` over the last dimension.
    ///
    /// | name | shape |
    /// |---|---|
    /// | `self` | `[.., I]` |
    /// | `weight` | `[O, I]`, or `[I, O]` with [`WeightLayout::InOut`] |
    /// | `bias` | `[O]` |
    /// | returns | `[.., O]` |
    ///
    /// Saves `x` and `weight`. `dx = dy W`, `dW = dyᵀ x`, `dbias = Σ dy`; the two products are
    /// written or added straight into the gradient buffers.
    ///
    /// # Errors
    /// If shapes do not fit or memory runs out.
    pub fn linear(&self, weight: &Self, layout: WeightLayout, bias: Option<&Self>) -> Result<Self> {
        let map = Affine { weight, layout, bias };
        let size = map.size("linear", self)?;
        let mut y = self.like(self.shape().with_last_dim(size.1))?;
        forward(size, self, weight, layout, bias, &mut y)?;
        Ok(map.record(self, size, y))
    }
}

impl Affine<'_> {
    /// Rows, outputs, inputs of the map applied to `x`, if they fit.
    pub(super) fn size(&self, op: &'static str, x: &Tensor) -> Result<(usize, usize, usize)> {
        let (n_out, n_in) = check(op, x, self.weight, self.layout, self.bias)?;
        Ok((x.shape().n_rows(), n_out, n_in))
    }

    fn record(&self, x: &Tensor, size: (usize, usize, usize), y: Tensor) -> Tensor {
        let &Self { weight, layout, bias } = self;
        let op = || Linear { x: x.detach(), weight: weight.detach(), layout, size };
        match bias {
            Some(bias) => record1(&[x, weight, bias], y, op),
            None => record1(&[x, weight], y, op),
        }
    }

    /// The map of `x`, and its GELU (by tanh) as a value without a gradient, both written by one product: `None` if `x` is on the
    /// CPU or there is no such product.
    pub(super) fn apply_with_gelu(&self, x: &Tensor) -> Result<Option<(Tensor, Tensor)>> {
        let size = self.size("linear", x)?;
        if !x.is_cuda() {
            return Ok(None);
        }
        let shape = x.shape().with_last_dim(size.1);
        let (mut y, mut h) = (x.like(shape)?, x.like(shape)?);
        let is_done = cuda::forward_with_gelu(size, x, self, &mut y, &mut h)?;
        Ok(is_done.then(|| (self.record(x, size, y), h)))
    }
}

/// The product, on the device of `x`.
pub(crate) fn forward(
    size: (usize, usize, usize),
    x: &Tensor,
    weight: &Tensor,
    layout: WeightLayout,
    bias: Option<&Tensor>,
    y: &mut Tensor,
) -> Result<()> {
    if x.is_cuda() {
        return cuda::forward(size, x, weight, layout, bias, y);
    }
    cpu::forward(size, x.data(), weight.data(), layout, bias.map(Tensor::data), y.data_mut())
}

pub(crate) fn check(
    op: &'static str,
    x: &Tensor,
    weight: &Tensor,
    layout: WeightLayout,
    bias: Option<&Tensor>,
) -> Result<(usize, usize)> {
    x.expect_float(op)?;
    x.expect_beside(op, weight)?;
    super::expect_rank_min(op, x, 1)?;
    let (n_out, n_in) = match (&*weight.shape(), layout) {
        (&[n_out, n_in], WeightLayout::OutIn) | (&[n_in, n_out], WeightLayout::InOut) => {
            (n_out, n_in)
        }
        _ => {
            let expected = "a weight of two dimensions".to_owned();
            return Err(Error::Rank { op, found: weight.shape(), expected });
        }
    };
    if x.shape().last_dim() != n_in {
        let rule = "the last dimension of x must be the weight's input width";
        return Err(Error::Shape { op, lhs: x.shape(), rhs: weight.shape(), rule });
    }
    if let Some(bias) = bias {
        x.expect_beside(op, bias)?;
    }
    if let Some(bias) = bias.filter(|b| *b.shape() != [n_out]) {
        let rule = "the bias must have one number per output";
        return Err(Error::Shape { op, lhs: bias.shape(), rhs: weight.shape(), rule });
    }
    Ok((n_out, n_in))
}

struct Linear {
    x: Tensor,
    weight: Tensor,
    layout: WeightLayout,
    /// Rows, outputs, inputs.
    size: (usize, usize, usize),
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        if dy.is_cuda() {
            grads.write_like(0, &self.x, |dx, accumulate| {
                cuda::backward_input(self.size, &dy, &self.weight, self.layout, dx, accumulate)
            })?;
            return cuda::backward_params(self.size, &dy, &self.x, &self.weight, self.layout, grads, 1);
        }
        let (x, weight, size) = (self.x.data(), self.weight.data(), self.size);
        grads.write(0, self.x.shape(), |dx, accumulate| {
            cpu::backward_input(size, dy.data(), weight, self.layout, dx, accumulate)
        })?;
        cpu::backward_params(size, &dy, x, &self.weight, self.layout, grads, 1)
    }
}
