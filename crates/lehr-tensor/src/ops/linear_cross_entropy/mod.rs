//! The loss over a vocabulary, from hidden states to one number, and related ops.

mod cpu;
pub(crate) mod cuda;
mod labels;
#[cfg(test)]
mod reference;
mod rows;
#[cfg(test)]
pub(crate) mod tests;
mod token_logprobs;

use std::sync::{Mutex, PoisonError};

use self::cpu::{Factors, Head, HeadGrads, WeightGrad};
use self::labels::Labelled;
use super::softcap;
use crate::autograd::{Gradients, Op, record1, will_record};
use crate::quant::QMatrix;
use crate::{DType, Error, Result, Shape, Tensor, inplace};

/// The form of the loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CrossEntropy {
    /// The sum of the losses is divided by this: the number of labelled rows, or, if a step has
    /// several micro-batches, that of the whole step.
    pub normalizer: f32,
    /// Coefficient of `lse²`, which keeps the logits from drifting; 0 turns it off (PaLM 2022,
    /// <https://arxiv.org/abs/2204.02311>).
    pub z_loss: f32,
    /// If given, logits are `c tanh(z / c)`.
    pub softcap: Option<f32>,
}

/// The matrix `[V, D]` of a head.
#[derive(Clone, Copy)]
pub enum HeadWeight<'a> {
    /// Numbers; they may be trained.
    Dense(&'a Tensor),
    /// A matrix in its storage format, without a gradient.
    Stored(&'a QMatrix),
}

impl<'a> From<&'a Tensor> for HeadWeight<'a> {
    fn from(weight: &'a Tensor) -> Self {
        Self::Dense(weight)
    }
}

impl<'a> From<&'a QMatrix> for HeadWeight<'a> {
    fn from(weight: &'a QMatrix) -> Self {
        Self::Stored(weight)
    }
}

impl<'a> HeadWeight<'a> {
    fn shape(self) -> Shape {
        match self {
            Self::Dense(weight) => weight.shape(),
            Self::Stored(weight) => [weight.rows(), weight.cols()].into(),
        }
    }

    fn dense(self) -> Option<&'a Tensor> {
        match self {
            Self::Dense(weight) => Some(weight),
            Self::Stored(_) => None,
        }
    }
}

/// Returns inputs 0, 1 and 2 of the ops over a head. The targets, which have no gradient, take the
/// place of missing inputs.
fn inputs<'a>(
    x: &'a Tensor,
    weight: HeadWeight<'a>,
    bias: Option<&'a Tensor>,
    targets: &'a Tensor,
) -> [&'a Tensor; 3] {
    [x, weight.dense().unwrap_or(targets), bias.unwrap_or(targets)]
}

impl Tensor {
    /// Cross entropy of the logits `z = x Wᵀ + bias` with the targets, without ever building `z`:
    /// `loss = Σ (lse − z_target + z_loss · lse²) / normalizer` over the labelled rows, with
    /// `lse = ln Σ e^z`.
    ///
    /// | name | shape |
    /// |---|---|
    /// | `self` | `[N, D]` or `[B, T, D]` |
    /// | `weight` | `[V, D]` |
    /// | `bias` | `[V]` |
    /// | `targets` | `[N]` or `[B, T]`, i32; −100 = no label |
    /// | returns | `[1]` |
    ///
    /// Rows without a label cost nothing: the others are gathered first. They are taken in chunks
    /// whose logits fit in 32 MiB on the CPU and 512 MiB on a GPU. If recorded, each chunk's logits
    /// turn in place into `dz = ((1 + 2 z_loss lse) softmax − onehot) / normalizer`, from which `dx
    /// = dz W`, `dW = dzᵀ x` and `dbias = Σ dz` follow at once: saved are those of the labelled
    /// rows, so backward computes no product, and may run only once. With no labelled row the loss
    /// is 0.
    ///
    /// A stored `weight` is multiplied as by [`Tensor::linear_q`], and has no gradient. On the CPU
    /// it is read where it lies; on a GPU its V · D numbers in the type of `x` need memory until
    /// the forward pass is over.
    ///
    /// # Errors
    /// If shapes do not fit, a target is neither −100 nor in 0..V, the normaliser or the cap is
    /// not a positive number, or memory runs out.
    pub fn linear_cross_entropy<'a>(
        &self,
        weight: impl Into<HeadWeight<'a>>,
        bias: Option<&Self>,
        targets: &Self,
        options: CrossEntropy,
    ) -> Result<Self> {
        const OP: &str = "linear_cross_entropy";
        let weight = weight.into();
        let rows = check(OP, self, (weight, bias), targets, options.softcap)?;
        check_normalizer(OP, rows.len(), options.normalizer)?;
        let x = rows.gather(self)?;
        if self.is_cuda() {
            let inputs = inputs(self, weight, bias, targets);
            return cuda_loss(inputs, (weight, bias), &x, rows, options);
        }
        let head = Head::new(&x, weight, bias, &rows, options.z_loss, options.softcap);
        let mut losses = Self::uninit([rows.len()], DType::F32)?;
        let inputs = inputs(self, weight, bias, targets);
        if !will_record(&inputs) {
            head.forward(losses.data_mut())?;
            return mean(&losses, options.normalizer);
        }
        let room = |of: Option<&Self>, shape: Shape| {
            let wanted = of.is_some_and(Self::wants_grad);
            wanted.then(|| Self::uninit(shape, DType::F32)).transpose()
        };
        let mut dx = room(Some(self), x.shape())?;
        let mut dw = room(weight.dense(), weight.shape())?;
        let mut db = room(bias, [weight.shape()[0]].into())?;
        let grads = HeadGrads {
            dx: dx.as_mut().map(Self::data_mut),
            weight: dw.as_mut().map(|dw| WeightGrad { dw: dw.data_mut(), accumulate: false }),
            db: db.as_mut().map(Self::data_mut),
        };
        head.forward_backward(losses.data_mut(), &Factors::Same(1.0 / options.normalizer), grads)?;
        let loss = mean(&losses, options.normalizer)?;
        let x_shape = self.shape();
        let op =
            || LinearCrossEntropy { rows, x_shape, saved: Mutex::new(Some(Saved { dx, dw, db })) };
        Ok(record1(&inputs, loss, op))
    }
}

/// The loss on a GPU. The gradient of the weight is in f32, that of `x` has its type.
fn cuda_loss(
    inputs: [&Tensor; 3],
    (weight, bias): (HeadWeight<'_>, Option<&Tensor>),
    x: &Tensor,
    rows: Labelled,
    options: CrossEntropy,
) -> Result<Tensor> {
    let CrossEntropy { normalizer, z_loss, softcap } = options;
    let mut losses = x.like_f32([rows.len()])?;
    let loss = cuda::RowLoss { z_loss, softcap };
    let head = cuda::Head { x, weight, bias, rows: &rows, loss };
    if !will_record(&inputs) {
        head.run(&mut losses, None, cuda::HeadGrads::default())?;
        return cuda::mean(&losses, normalizer);
    }
    let room = |of: Option<&Tensor>, shape: Shape, dtype: DType| {
        cuda::room(of.is_some_and(Tensor::wants_grad), x.device(), shape, dtype)
    };
    let mut dx = room(Some(inputs[0]), x.shape(), x.dtype())?;
    let mut dw = room(weight.dense(), weight.shape(), DType::F32)?;
    let mut db = room(bias, [weight.shape()[0]].into(), DType::F32)?;
    let grads =
        cuda::HeadGrads { dx: dx.as_mut(), dw: dw.as_mut().map(|dw| (dw, false)), db: db.as_mut() };
    head.run(&mut losses, Some(&cuda::Factors::Same(1.0 / normalizer)), grads)?;
    let loss = cuda::mean(&losses, normalizer)?;
    let x_shape = inputs[0].shape();
    let op = || LinearCrossEntropy { rows, x_shape, saved: Mutex::new(Some(Saved { dx, dw, db })) };
    Ok(record1(&inputs, loss, op))
}

/// Returns an error unless the losses of `n_labels` rows can be divided by `normalizer`.
fn check_normalizer(op: &'static str, n_labels: usize, normalizer: f32) -> Result<()> {
    if n_labels == 0 || (normalizer > 0.0 && normalizer.is_finite()) {
        return Ok(());
    }
    let (name, value) = ("normalizer", normalizer.to_string());
    Err(Error::Argument { op, name, value, expected: "a positive number" })
}

/// `Σ losses / normalizer`, summed in f64 in the order of the rows; 0 for no rows.
fn mean(losses: &Tensor, normalizer: f32) -> Result<Tensor> {
    if losses.shape().n_elements() == 0 {
        return Tensor::full([1], 0.0);
    }
    let sum: f64 = losses.data().iter().map(|l| f64::from(*l)).sum();
    Tensor::full([1], (sum / f64::from(normalizer)) as f32)
}

/// Checks the inputs that the ops of this folder share, and finds the labelled rows.
fn check(
    op: &'static str,
    x: &Tensor,
    (weight, bias): (HeadWeight<'_>, Option<&Tensor>),
    targets: &Tensor,
    softcap: Option<f32>,
) -> Result<Labelled> {
    x.expect_float(op)?;
    weight.dense().map_or(Ok(()), |weight| x.expect_beside(op, weight))?;
    bias.map_or(Ok(()), |bias| x.expect_beside(op, bias))?;
    targets.expect_ids(op)?;
    super::expect_rank_min(op, x, 1)?;
    let &[n_vocabulary, width] = &*weight.shape() else {
        let expected = "a weight of two dimensions".to_owned();
        return Err(Error::Rank { op, found: weight.shape(), expected });
    };
    let shape = x.shape();
    if shape.last_dim() != width {
        let rule = "the last dimension of x must be the weight's width";
        return Err(Error::Shape { op, lhs: shape, rhs: weight.shape(), rule });
    }
    if let Some(bias) = bias.filter(|bias| *bias.shape() != [n_vocabulary]) {
        let rule = "the bias must have one number per row of the weight";
        return Err(Error::Shape { op, lhs: bias.shape(), rhs: weight.shape(), rule });
    }
    find_labelled(op, x, targets, n_vocabulary, softcap)
}

/// Checks targets and cap of rows of logits, and finds the labelled ones.
fn find_labelled(
    op: &'static str,
    x: &Tensor,
    targets: &Tensor,
    n_vocabulary: usize,
    softcap: Option<f32>,
) -> Result<Labelled> {
    let shape = x.shape();
    if *targets.shape() != shape[..shape.len() - 1] {
        let rule = "there must be one target per row of x";
        return Err(Error::Shape { op, lhs: shape, rhs: targets.shape(), rule });
    }
    if let Some(cap) = softcap {
        softcap::check(op, cap)?;
    }
    Labelled::find(op, targets, n_vocabulary)
}

/// Gradients for an upstream gradient of 1; `None` where none is wanted.
struct Saved {
    dx: Option<Tensor>,
    dw: Option<Tensor>,
    db: Option<Tensor>,
}

struct LinearCrossEntropy {
    rows: Labelled,
    x_shape: Shape,
    saved: Mutex<Option<Saved>>,
}

impl Op for LinearCrossEntropy {
    fn name(&self) -> &'static str {
        "linear_cross_entropy"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        // If backward starts at this loss, its gradient is 1, and there is no need to wait for a
        // GPU to read it.
        let is_seed = grads.is_seed();
        let dy = grads.only_output();
        let factor = if is_seed || dy.is_cuda() { 1.0 } else { dy.item()? };
        let scale = |grad: &mut Tensor| match dy.is_cuda() && !is_seed {
            true => inplace::cuda::scale_by(grad, &dy),
            false => {
                scale(grad, factor);
                Ok(())
            }
        };
        let saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(saved) = saved else {
            return Err(Error::Argument {
                op: "linear_cross_entropy",
                name: "graph",
                value: "used up by an earlier backward".to_owned(),
                expected: "one backward per loss",
            });
        };
        if let Some(mut dw) = saved.dw {
            scale(&mut dw)?;
            grads.add(1, dw)?;
        }
        if let Some(mut db) = saved.db {
            scale(&mut db)?;
            grads.add(2, db)?;
        }
        if let Some(mut dx) = saved.dx {
            scale(&mut dx)?;
            self.rows.add_scattered(grads, 0, dx, self.x_shape)?;
        }
        Ok(())
    }
}

fn scale(grad: &mut Tensor, factor: f32) {
    if factor != 1.0 {
        inplace::scale(grad.data_mut(), factor);
    }
}
