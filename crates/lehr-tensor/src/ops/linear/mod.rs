//! The affine map of the last dimension.

pub(crate) mod backward;
pub(crate) mod bf16;
pub(crate) mod cpu;
pub(crate) mod cuda;
pub(crate) mod fp8;
#[cfg(test)]
mod fp8_tests;
#[cfg(test)]
pub(crate) mod reference;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;

use backward::Backward;
use lehr_kernels::bf16::Panels;

use crate::autograd::{Gradients, Op, record1, will_record};
use crate::{DType, Error, Result, Shape, Tensor};

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
        let x = map.forward_and_keep(size, self, &mut y)?;
        Ok(map.record(self, x, size, y))
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
        let (weight, layout, bias) = (self.weight, self.layout, self.bias.map(Tensor::data));
        if weight.has_panels() {
            let x = bf16::Input::pack(x.data(), size, layout, false)?;
            return bf16::forward(&x, bf16::Weight::Param(weight), layout, bias, y.data_mut());
        }
        cpu::forward(size, x.data(), weight.data(), layout, bias, y.data_mut())
    }

    /// [`Affine::forward`] that returns what backward needs of `x`.
    fn forward_and_keep(&self, size: LinearSize, x: &Tensor, y: &mut Tensor) -> Result<KeptInput> {
        if x.is_cuda() || !self.weight.has_panels() {
            self.forward(size, x, y)?;
            return Ok(KeptInput::Values(x.detach()));
        }
        let (weight, layout, bias) = (self.weight, self.layout, self.bias.map(Tensor::data));
        let is_kept = weight.wants_grad() && will_record(&[weight]);
        let input = bf16::Input::new(x, size, layout, is_kept)?;
        bf16::forward(&input, bf16::Weight::Param(weight), layout, bias, y.data_mut())?;
        Ok(KeptInput::Rounded { x: input.for_weight, shape: x.shape() })
    }

    /// Another input of the op that this map is part of, as backward keeps it: in bf16 if the map's
    /// products are, on the CPU.
    pub(super) fn round_kept(&self, x: &Tensor) -> Result<Tensor> {
        if self.weight.has_panels() && will_record(&[x, self.weight]) {
            return Ok(x.detach().cast(DType::BF16)?.detach());
        }
        Ok(x.detach())
    }

    fn record(&self, x: &Tensor, kept: KeptInput, size: LinearSize, y: Tensor) -> Tensor {
        let op = || Linear { x: kept, kept: self.keep(size) };
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
        let kept = KeptInput::Values(x.detach());
        Ok(is_done.then(|| (self.record(x, kept, size, y), h)))
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

/// The input of a map, as backward needs it.
enum KeptInput {
    Values(Tensor),
    /// In bf16 on the CPU: the operand of the product that gives dW, if that is wanted.
    Rounded {
        x: Option<Arc<Panels>>,
        shape: Shape,
    },
}

struct Linear {
    x: KeptInput,
    kept: Kept,
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        let (x, shape) = match &self.x {
            KeptInput::Values(x) if dy.is_cuda() => {
                let backward = Backward::new(&self.kept, &dy)?;
                grads.write_like(0, x, |dx, accumulate| backward.input(dx, accumulate))?;
                return backward.params(x, grads, 1);
            }
            KeptInput::Values(x) => (cpu::Input::Values(x.data()), x.shape()),
            KeptInput::Rounded { x, shape } => (cpu::Input::Rounded(x.as_deref()), *shape),
        };
        let backward = cpu::Backward::new(&self.kept, &dy, (grads.wants(0), grads.wants(1)))?;
        grads.write(0, shape, |dx, accumulate| backward.input(dx, accumulate))?;
        backward.params(x, grads, 1)
    }
}
