//! The log-probability of each target, for preference losses, policy gradients and scoring.

use super::check;
use super::cpu::{Factors, Head, HeadGrads, WeightGrad};
use super::labels::Labelled;
use crate::autograd::{Gradients, Op, record1, records};
use crate::{DType, Result, Shape, Tensor, inplace};

impl Tensor {
    /// `log p(target) = z_target − lse` of each row, with the logits `z = x Wᵀ + bias`
    /// (capped to `c tanh(z / c)` if a cap is given); 0 for rows without a label. The logits are never built.
    ///
    /// | name | shape |
    /// |---|---|
    /// | `self` | `[N, D]` or `[B, T, D]` |
    /// | `weight` | `[V, D]` |
    /// | `bias` | `[V]` |
    /// | `targets` | `[N]` or `[B, T]`, i32; −100 = no label |
    /// | returns | that of `targets` |
    ///
    /// Saves the labelled rows of `x`, `weight`, `bias` and the labels. Backward computes the logits again,
    /// because the gradient of each row is known only then: `dz = dy (onehot − softmax)`.
    ///
    /// # Errors
    /// If shapes do not fit, a target is neither −100 nor in 0..V, the cap is not a positive
    /// number, or memory runs out.
    pub fn token_logprobs(
        &self,
        weight: &Self,
        bias: Option<&Self>,
        targets: &Self,
        softcap: Option<f32>,
    ) -> Result<Self> {
        let rows = check("token_logprobs", self, (weight, bias), targets, softcap)?;
        let x = rows.gather(self)?;
        let mut values = Self::uninit([rows.len()], DType::F32)?;
        let head = Head::new(&x, weight, bias, &rows, 0.0, softcap);
        head.forward(values.data_mut())?;
        inplace::scale(values.data_mut(), -1.0);
        let y = rows.scatter_values(&values, targets.shape())?;
        let with_bias = [self, weight, bias.unwrap_or(weight)];
        let inputs = if bias.is_some() { &with_bias[..] } else { &with_bias[..2] };
        if !records(inputs) {
            return Ok(y);
        }
        let (x_shape, weight, bias) = (self.shape(), weight.detach(), bias.map(Self::detach));
        let op = || TokenLogprobs { x, weight, bias, rows, x_shape, softcap };
        Ok(record1(inputs, y, op))
    }
}

struct TokenLogprobs {
    /// The labelled rows.
    x: Tensor,
    weight: Tensor,
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
        if !factors.is_unique() {
            factors = Tensor::from_slice(factors.data(), factors.shape())?;
        }
        inplace::scale(factors.data_mut(), -1.0);
        let factors = Factors::PerRow(factors.data());
        let (bias, softcap) = (self.bias.as_ref(), self.softcap);
        let head = Head::new(&self.x, &self.weight, bias, &self.rows, 0.0, softcap);
        let mut losses = Tensor::uninit([self.rows.len()], DType::F32)?;
        let losses = losses.data_mut();
        let room = |wanted: bool, shape: Shape| {
            wanted.then(|| Tensor::uninit(shape, DType::F32)).transpose()
        };
        let mut dx = room(grads.wants(0), self.x.shape())?;
        let wants_bias = bias.is_some() && grads.wants(2);
        let mut db = room(wants_bias, [self.weight.shape()[0]].into())?;
        let wanted = HeadGrads {
            dx: dx.as_mut().map(Tensor::data_mut),
            weight: None,
            db: db.as_mut().map(Tensor::data_mut),
        };
        if grads.wants(1) {
            grads.write(1, self.weight.shape(), |dw, accumulate| {
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
