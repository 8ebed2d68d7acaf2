//! The affine map of the last dimension.

pub(crate) mod backward;
pub(crate) mod cpu;
pub(crate) mod cuda;
pub(crate) mod fp8;
#[cfg(test)]
mod fp8_tests;
#[cfg(test)]
pub(crate) mod reference;
#[cfg(test)]
pub(crate) mod tests;

use backward::Backward;

use crate::autograd::{Gradients, Op, record1};
use crate::{Error, Result, Tensor};

/// Memory layout of a weight matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightLayout {
    /// `[out, in]`, the convention of PyTorch's `Linear`.
    OutIn,
    /// `[in, out]`, the convention of GPT-2's `Conv1D`.
    InOut,
}

/// The dimensions of a linear map applied to rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LinearSize {
    /// Rows of the input, whatever its other dimensions.
    pub(crate) rows: usize,
    /// Width of the result.
    pub(crate) n_out: usize,
    /// Width of the input.
    pub(crate) n_in: usize,
}

/// The parameters of a linear map.
#[derive(Clone, Copy)]
pub struct Affine<'a> {
    /// `[O, I]`, or `[I, O]` with [`WeightLayout::InOut`].
    pub weight: &'a Tensor,
    /// Memory layout of `weight`.
    pub layout: WeightLayout,
    /// `[O]`.
    pub bias: Option<&'a Tensor>,
    /// Whether its three products may be in fp8 in a forward pass outside of `no_grad`: on a GPU of
    /// compute capability 8.9 or more, in bf16, with extents that are multiples of 16. Elsewhere it
    /// changes nothing.
    pub fp8: bool,
}

/// The inputs of backward of a map.
pub(crate) struct Kept {
    pub(crate) weight: Tensor,
    pub(crate) layout: WeightLayout,
    pub(crate) size: LinearSize,
    fp8: bool,
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
    /// On the CPU rows are computed independently: the bits of a row do not depend on the others,
    /// nor on the number of threads.
    ///
    /// # Errors
    /// If shapes do not fit or memory runs out.
    pub fn linear(&self, weight: &Self, layout: WeightLayout, bias: Option<&Self>) -> Result<Self> {
        self.affine(Affine::new(weight, layout, bias))
    }

    /// [`Tensor::linear`] with all options of a map.
    ///
    /// # Errors
    /// As [`Tensor::linear`].
    pub fn affine(&self, map: Affine<'_>) -> Result<Self> {
        let size = map.size("linear", self)?;
        let mut y = self.like(self.shape().with_last_dim(size.n_out))?;
        map.forward(size, self, &mut y)?;
        Ok(map.record(self, size, y))
    }
}

impl<'a> Affine<'a> {
    /// A map in the type of its input.
    #[must_use]
    pub fn new(weight: &'a Tensor, layout: WeightLayout, bias: Option<&'a Tensor>) -> Self {
        Self { weight, layout, bias, fp8: false }
    }

    /// Rows, outputs, inputs of the map applied to `x`, if they fit.
    pub(super) fn size(&self, op: &'static str, x: &Tensor) -> Result<LinearSize> {
        let (n_out, n_in) = check(op, x, self.weight, self.layout, self.bias)?;
        Ok(LinearSize { rows: x.shape().n_rows(), n_out, n_in })
    }

    /// The inputs of backward.
    pub(super) fn keep(&self, size: LinearSize) -> Kept {
        let &Self { weight, layout, fp8, .. } = self;
        Kept { weight: weight.detach(), layout, size, fp8 }
    }

    /// The product, on the device of `x`.
    pub(super) fn forward(&self, size: LinearSize, x: &Tensor, y: &mut Tensor) -> Result<()> {
        if x.is_cuda() {
            return cuda::forward(size, x, self, y);
        }
        let bias = self.bias.map(Tensor::data);
        cpu::forward(size, x.data(), self.weight.data(), self.layout, bias, y.data_mut())
    }

    fn record(&self, x: &Tensor, size: LinearSize, y: Tensor) -> Tensor {
        let op = || Linear { x: x.detach(), kept: self.keep(size) };
        match self.bias {
            Some(bias) => record1(&[x, self.weight, bias], y, op),
            None => record1(&[x, self.weight], y, op),
        }
    }

    /// Computes the map of `x` and its GELU (by tanh), a value without a gradient, by one product.
    /// Returns `None` if `x` is on the CPU or there is no such product.
    pub(super) fn apply_with_gelu(&self, x: &Tensor) -> Result<Option<(Tensor, Tensor)>> {
        let size = self.size("linear", x)?;
        if !x.is_cuda() {
            return Ok(None);
        }
        let shape = x.shape().with_last_dim(size.n_out);
        let (mut y, mut h) = (x.like(shape)?, x.like(shape)?);
        let is_done = cuda::forward_with_gelu(size, x, self, &mut y, &mut h)?;
        Ok(is_done.then(|| (self.record(x, size, y), h)))
    }
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
    kept: Kept,
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        if dy.is_cuda() {
            let backward = Backward::new(&self.kept, &dy)?;
            grads.write_like(0, &self.x, |dx, accumulate| backward.input(dx, accumulate))?;
            return backward.params(&self.x, grads, 1);
        }
        let (x, &Kept { ref weight, layout, size, .. }) = (self.x.data(), &self.kept);
        grads.write(0, self.x.shape(), |dx, accumulate| {
            cpu::backward_input(size, dy.data(), weight.data(), layout, dx, accumulate)
        })?;
        cpu::backward_params(size, &dy, x, weight, layout, grads, 1)
    }
}
