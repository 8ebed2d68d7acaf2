//! A sum of tensors with learned factors.

mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
pub(crate) mod tests;

use crate::autograd::{Gradients, Op, record1, will_record};
use crate::{Error, Result, Tensor};

/// Largest number of terms of a sum.
pub const MAX_TERMS: usize = 4;

/// One term of [`Tensor::weighted_sum`]: `factor · weight · x`.
#[derive(Clone, Copy)]
pub struct Term<'a> {
    /// The tensor.
    pub x: &'a Tensor,
    /// A learned factor, f32 `[1]`.
    pub weight: Option<&'a Tensor>,
    /// A constant factor.
    pub factor: f32,
}

impl<'a> Term<'a> {
    /// Creates the term `x`.
    #[must_use]
    pub fn new(x: &'a Tensor) -> Self {
        Self { x, weight: None, factor: 1.0 }
    }

    /// Multiplies the term by the learned factor `weight` `[1]`.
    #[must_use]
    pub fn times(self, weight: &'a Tensor) -> Self {
        Self { weight: Some(weight), ..self }
    }

    /// Multiplies the term by the constant `factor`.
    #[must_use]
    pub fn scaled(self, factor: f32) -> Self {
        Self { factor, ..self }
    }
}

impl Tensor {
    /// `y = Σᵢ factorᵢ · weightᵢ · xᵢ` over at most [`MAX_TERMS`] terms.
    ///
    /// | name | shape |
    /// |---|---|
    /// | `xᵢ` | the same for all |
    /// | `weightᵢ` | `[1]`, f32; 1 if there is none |
    /// | returns | that of `xᵢ` |
    ///
    /// Saves `xᵢ` of terms with a weight: `dxᵢ = factorᵢ weightᵢ dy`, `dweightᵢ = factorᵢ Σ dy xᵢ`.
    ///
    /// # Errors
    /// If there are no terms or too many, shapes do not fit or memory runs out.
    pub fn weighted_sum(terms: &[Term<'_>]) -> Result<Self> {
        const OP: &str = "weighted_sum";
        let Some(first) = terms.first().filter(|_| terms.len() <= MAX_TERMS) else {
            let (value, expected) = (terms.len().to_string(), "1 to 4 terms");
            return Err(Error::Argument { op: OP, name: "terms", value, expected });
        };
        let mut weights = Vec::with_capacity(terms.len());
        for term in terms {
            super::expect_same(OP, first.x, term.x)?;
            let weight = term.weight.map(Self::to_f32).transpose()?;
            if let Some(weight) = &weight {
                expect_one(OP, first.x, weight)?;
            }
            weights.push(weight);
        }
        let parts: Vec<Part<'_>> = terms
            .iter()
            .zip(&weights)
            .map(|(term, weight)| Part { x: term.x, weight: weight.as_ref(), factor: term.factor })
            .collect();
        let mut y = first.x.like(first.x.shape())?;
        match first.x.is_cuda() {
            true => cuda::forward(&parts, &mut y)?,
            false => cpu::forward(&parts, y.data_mut()),
        }
        let inputs: Vec<&Self> =
            terms.iter().map(|t| t.x).chain(weights.iter().flatten()).collect();
        if !will_record(&inputs) {
            return Ok(y);
        }
        let saved = parts.iter().map(|part| Saved {
            // Only the gradient of the weight reads it.
            x: part.weight.filter(|weight| weight.wants_grad()).map(|_| part.x.detach()),
            weight: part.weight.map(Self::detach),
            factor: part.factor,
        });
        let op = WeightedSum { terms: saved.collect() };
        Ok(record1(&inputs, y, || op))
    }
}

/// Returns an error unless `weight` is one number in f32 beside `x`.
pub(super) fn expect_one(op: &'static str, x: &Tensor, weight: &Tensor) -> Result<()> {
    weight.expect_dtype(op, crate::DType::F32)?;
    weight.expect_on(op, x.device())?;
    if *weight.shape() == [1] {
        return Ok(());
    }
    let rule = "a learned factor must be one number";
    Err(Error::Shape { op, lhs: x.shape(), rhs: weight.shape(), rule })
}

/// A checked term.
struct Part<'a> {
    x: &'a Tensor,
    weight: Option<&'a Tensor>,
    factor: f32,
}

/// What backward needs of a term.
struct Saved {
    x: Option<Tensor>,
    weight: Option<Tensor>,
    factor: f32,
}

struct WeightedSum {
    terms: Vec<Saved>,
}

impl Op for WeightedSum {
    fn name(&self) -> &'static str {
        "weighted_sum"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        let mut weight_input = self.terms.len();
        for (index, term) in self.terms.iter().enumerate() {
            match &term.weight {
                // The gradient passes unchanged.
                None if term.factor == 1.0 => grads.add(index, dy.clone())?,
                weight => {
                    let (weight, factor) = (weight.as_ref(), term.factor);
                    grads.write_like(index, &dy, |dx, accumulate| match dy.is_cuda() {
                        true => cuda::backward_term(&dy, weight, factor, dx, accumulate),
                        false => {
                            let factor = cpu::coefficient(weight, factor);
                            cpu::backward_term(factor, dy.data(), dx.data_mut(), accumulate);
                            Ok(())
                        }
                    })?;
                }
            }
            let Some(weight) = &term.weight else { continue };
            let input = weight_input;
            weight_input += 1;
            let Some(x) = &term.x else { continue };
            grads.write_param(input, weight, |dweight, accumulate| {
                if dy.is_cuda() {
                    return cuda::backward_weight(&dy, x, term.factor, dweight, accumulate);
                }
                let sum = (f64::from(term.factor) * cpu::dot(dy.data(), x.data())) as f32;
                let dweight = &mut dweight.data_mut()[0];
                *dweight = if accumulate { *dweight + sum } else { sum };
                Ok(())
            })?;
        }
        Ok(())
    }
}
