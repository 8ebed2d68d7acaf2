//! The log-probability of each target, for preference losses, policy gradients and scoring.

use super::cpu::{Factors, Head, HeadGrads, WeightGrad};
use super::cuda;
use super::labels::Labelled;
use super::{HeadWeight, check, inputs};
use crate::autograd::{Gradients, Op, record1, unshared, will_record};
use crate::quant::QMatrix;
use crate::{DType, Result, Shape, Tensor, inplace};

impl Tensor {
    /// `log p(target) = z_target − lse` of each row, with the logits `z = x Wᵀ + bias` (capped to
    /// `c tanh(z / c)` if a cap is given); 0 for rows without a label. The logits are never built.
    ///
    /// | name | shape |
    /// |---|---|
    /// | `self` | `[N, D]` or `[B, T, D]` |
    /// | `weight` | `[V, D]` |
    /// | `bias` | `[V]` |
    /// | `targets` | `[N]` or `[B, T]`, i32; −100 = no label |
    /// | returns | that of `targets` |
    ///
    /// A stored `weight` has no gradient ([`Tensor::linear_cross_entropy`]).
    ///
    /// Saves the labelled rows of `x`, `weight`, `bias` and the labels. Backward computes the
    /// logits again, because the gradient of each row is known only then:
    /// `dz = dy (onehot − softmax)`.
    ///
    /// On the CPU rows are computed independently: the bits of a row do not depend on the others,
    /// nor on the number of threads.
    ///
    /// # Errors
    /// If shapes do not fit, a target is neither −100 nor in 0..V, the cap is not a positive
    /// number, or memory runs out.
    pub fn token_logprobs<'a>(
        &self,
        weight: impl Into<HeadWeight<'a>>,
        bias: Option<&Self>,
        targets: &Self,
        softcap: Option<f32>,
    ) -> Result<Self> {
        let weight = weight.into();
        let rows = check("token_logprobs", self, (weight, bias), targets, softcap)?;
        let x = rows.gather(self)?;
        if self.is_cuda() {
            return on_cuda(self, (weight, bias), x, rows, targets, softcap);
        }
        let mut values = Self::uninit([rows.len()], DType::F32)?;
        let head = Head::new(&x, weight, bias, &rows, 0.0, softcap);
        head.forward(values.data_mut())?;
        inplace::scale(values.data_mut(), -1.0);
        let y = rows.scatter_values(&values, targets.shape())?;
        let inputs = inputs(self, weight, bias, targets);
        if !will_record(&inputs) {
            return Ok(y);
        }
        let (x_shape, weight, bias) = (self.shape(), Kept::of(weight), bias.map(Self::detach));
        let op = || TokenLogprobs { x, weight, bias, rows, x_shape, softcap };
        Ok(record1(&inputs, y, op))
    }
}

fn on_cuda(
    full: &Tensor,
    (weight, bias): (HeadWeight<'_>, Option<&Tensor>),
    x: Tensor,
    rows: Labelled,
    targets: &Tensor,
    softcap: Option<f32>,
) -> Result<Tensor> {
    let mut values = x.like_f32([rows.len()])?;
    let loss = cuda::RowLoss { z_loss: 0.0, softcap };
    let head = cuda::Head { x: &x, weight, bias, rows: &rows, loss };
    head.run(&mut values, None, cuda::HeadGrads::default())?;
    inplace::cuda::scale(&mut values, -1.0)?;
    let y = rows.scatter_values(&values, targets.shape())?;
    drop(values);
    let inputs = inputs(full, weight, bias, targets);
    let (x_shape, weight, bias) = (full.shape(), Kept::of(weight), bias.map(Tensor::detach));
    let op = || TokenLogprobs { x, weight, bias, rows, x_shape, softcap };
    Ok(record1(&inputs, y, op))
}

/// The matrix that backward needs.
enum Kept {
    Dense(Tensor),
    Stored(QMatrix),
}

impl Kept {
    fn of(weight: HeadWeight<'_>) -> Self {
        match weight {
            HeadWeight::Dense(weight) => Self::Dense(weight.detach()),
            HeadWeight::Stored(weight) => Self::Stored(weight.clone()),
        }
    }

    fn get(&self) -> HeadWeight<'_> {
        match self {
            Self::Dense(weight) => HeadWeight::Dense(weight),
            Self::Stored(weight) => HeadWeight::Stored(weight),
        }
    }
}

struct TokenLogprobs {
    /// The labelled rows.
    x: Tensor,
    weight: Kept,
    bias: Option<Tensor>,
    rows: Labelled,
    x_shape: Shape,
    softcap: Option<f32>,
}

impl Op for TokenLogprobs {
    fn name(&self) -> &'static str {
        "token_logprobs"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        // Log-probabilities are losses with the other sign.
        let mut factors = self.rows.gather_values(&grads.only_output())?;
        if factors.is_cuda() {
            return self.backward_cuda(factors, grads);
        }
        if !factors.is_unique() {
            factors = Tensor::from_slice(factors.data(), factors.shape())?;
        }
        inplace::scale(factors.data_mut(), -1.0);
        let factors = Factors::PerRow(factors.data());
        let (weight, bias) = (self.weight.get(), self.bias.as_ref());
        let softcap = self.softcap;
        let head = Head::new(&self.x, weight, bias, &self.rows, 0.0, softcap);
        let mut losses = Tensor::uninit([self.rows.len()], DType::F32)?;
        let losses = losses.data_mut();
        let room = |wanted: bool, shape: Shape| {
            wanted.then(|| Tensor::uninit(shape, DType::F32)).transpose()
        };
        let mut dx = room(grads.wants(0), self.x.shape())?;
        let wants_bias = bias.is_some() && grads.wants(2);
        let mut db = room(wants_bias, [weight.shape()[0]].into())?;
        let wanted = HeadGrads {
            dx: dx.as_mut().map(Tensor::data_mut),
            weight: None,
            db: db.as_mut().map(Tensor::data_mut),
        };
        if grads.wants(1) {
            grads.write(1, weight.shape(), |dw, accumulate| {
                let weight = Some(WeightGrad { dw, accumulate });
                head.forward_backward(losses, &factors, HeadGrads { weight, ..wanted })
            })?;
        } else {
            head.forward_backward(losses, &factors, wanted)?;
        }
        if let Some(db) = db {
            grads.add(2, db)?;
        }
        match dx {
            Some(dx) => self.rows.add_scattered(grads, 0, dx, self.x_shape),
            None => Ok(()),
        }
    }
}

impl TokenLogprobs {
    fn backward_cuda(&self, factors: Tensor, grads: &mut Gradients<'_>) -> Result<()> {
        let Self { x, bias, rows, softcap, .. } = self;
        let weight = self.weight.get();
        let mut factors = unshared(factors)?;
        inplace::cuda::scale(&mut factors, -1.0)?;
        let factors = cuda::Factors::PerRow(&factors);
        let loss = cuda::RowLoss { z_loss: 0.0, softcap: *softcap };
        let head = cuda::Head { x, weight, bias: bias.as_ref(), rows, loss };
        let mut losses = x.like_f32([rows.len()])?;
        let wants_bias = bias.is_some() && grads.wants(2);
        let mut dx = cuda::room(grads.wants(0), x.device(), x.shape(), x.dtype())?;
        let mut db = cuda::room(wants_bias, x.device(), [weight.shape()[0]].into(), DType::F32)?;
        let wanted = cuda::HeadGrads { dx: dx.as_mut(), dw: None, db: db.as_mut() };
        if let Some(weight) = weight.dense().filter(|_| grads.wants(1)) {
            grads.write_param(1, weight, |dw, accumulate| {
                let wanted = cuda::HeadGrads { dw: Some((dw, accumulate)), ..wanted };
                head.run(&mut losses, Some(&factors), wanted)
            })?;
        } else {
            head.run(&mut losses, Some(&factors), wanted)?;
        }
        if let Some(db) = db {
            grads.add(2, db)?;
        }
        match dx {
            Some(dx) => rows.add_scattered(grads, 0, dx, self.x_shape),
            None => Ok(()),
        }
    }
}
