//! Elementwise functions of one tensor, by the standard library's scalar functions.

use super::binary::{map, zip};
use super::cuda::{Binary, Unary};
use crate::autograd::{Gradients, Op, record1};
use crate::{Result, Tensor};

impl Tensor {
    /// `factor · x`.
    ///
    /// # Errors
    /// If the elements are not f32 or memory runs out.
    pub fn scale(&self, factor: f32) -> Result<Self> {
        self.expect_float("scale")?;
        let y = map(self, (Unary::Scale, factor), |x| factor * x)?;
        Ok(record1(&[self], y, || Scale { factor }))
    }

    /// `−x`.
    ///
    /// # Errors
    /// As [`Tensor::scale`].
    pub fn neg(&self) -> Result<Self> {
        self.scale(-1.0)
    }

    /// `e^x`. Saves the result.
    ///
    /// # Errors
    /// If the elements are not f32 or memory runs out.
    pub fn exp(&self) -> Result<Self> {
        self.expect_float("exp")?;
        let y = map(self, (Unary::Exp, 1.0), f32::exp)?;
        let saved = y.detach();
        Ok(record1(&[self], y, || Exp { y: saved }))
    }

    /// The natural logarithm. Saves `x`.
    ///
    /// # Errors
    /// If the elements are not f32 or memory runs out.
    pub fn log(&self) -> Result<Self> {
        self.expect_float("log")?;
        let y = map(self, (Unary::Log, 1.0), f32::ln)?;
        Ok(record1(&[self], y, || Log { x: self.detach() }))
    }

    /// The hyperbolic tangent. Saves the result.
    ///
    /// # Errors
    /// If the elements are not f32 or memory runs out.
    pub fn tanh(&self) -> Result<Self> {
        self.expect_float("tanh")?;
        let y = map(self, (Unary::Tanh, 1.0), f32::tanh)?;
        let saved = y.detach();
        Ok(record1(&[self], y, || Tanh { y: saved }))
    }

    /// `1 / (1 + e^−x)`. Saves the result.
    ///
    /// # Errors
    /// If the elements are not f32 or memory runs out.
    pub fn sigmoid(&self) -> Result<Self> {
        self.expect_float("sigmoid")?;
        let y = map(self, (Unary::Sigmoid, 1.0), |x| 1.0 / (1.0 + (-x).exp()))?;
        let saved = y.detach();
        Ok(record1(&[self], y, || Sigmoid { y: saved }))
    }
}

struct Scale {
    factor: f32,
}

impl Op for Scale {
    fn name(&self) -> &'static str {
        "scale"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        grads.add(0, map(&dy, (Unary::Scale, self.factor), |dy| dy * self.factor)?)
    }
}

struct Exp {
    y: Tensor,
}

impl Op for Exp {
    fn name(&self) -> &'static str {
        "exp"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        grads.add(0, zip(&dy, &self.y, Binary::Mul, |dy, y| dy * y)?)
    }
}

struct Log {
    x: Tensor,
}

impl Op for Log {
    fn name(&self) -> &'static str {
        "log"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        grads.add(0, zip(&dy, &self.x, Binary::Div, |dy, x| dy / x)?)
    }
}

struct Tanh {
    y: Tensor,
}

impl Op for Tanh {
    fn name(&self) -> &'static str {
        "tanh"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        grads.add(0, zip(&dy, &self.y, Binary::TanhGrad, |dy, y| dy * (1.0 - y * y))?)
    }
}

struct Sigmoid {
    y: Tensor,
}

impl Op for Sigmoid {
    fn name(&self) -> &'static str {
        "sigmoid"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        grads.add(0, zip(&dy, &self.y, Binary::SigmoidGrad, |dy, y| dy * y * (1.0 - y))?)
    }
}
