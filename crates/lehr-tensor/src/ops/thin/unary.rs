//! Elementwise functions of one tensor, by the standard library's scalar functions.

use super::binary::{map, zip};
use crate::autograd::{Gradients, Op, record1};
use crate::{Result, Tensor};

impl Tensor {
    /// `factor · x`.
    ///
    /// # Errors
    /// If the elements are not f32 or memory runs out.
    pub fn scale(&self, factor: f32) -> Result<Self> {
        self.expect_f32("scale")?;
        let y = map(self, |x| factor * x)?;
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
        self.expect_f32("exp")?;
        let y = map(self, f32::exp)?;
        let saved = y.detach();
        Ok(record1(&[self], y, || Exp { y: saved }))
    }

    /// The natural logarithm. Saves `x`.
    ///
    /// # Errors
    /// If the elements are not f32 or memory runs out.
    pub fn log(&self) -> Result<Self> {
        self.expect_f32("log")?;
        let y = map(self, f32::ln)?;
        Ok(record1(&[self], y, || Log { x: self.detach() }))
    }

    /// The hyperbolic tangent. Saves the result.
    ///
    /// # Errors
    /// If the elements are not f32 or memory runs out.
    pub fn tanh(&self) -> Result<Self> {
        self.expect_f32("tanh")?;
        let y = map(self, f32::tanh)?;
        let saved = y.detach();
        Ok(record1(&[self], y, || Tanh { y: saved }))
    }

    /// `1 / (1 + e^−x)`. Saves the result.
    ///
    /// # Errors
    /// If the elements are not f32 or memory runs out.
    pub fn sigmoid(&self) -> Result<Self> {
        self.expect_f32("sigmoid")?;
        let y = map(self, |x| 1.0 / (1.0 + (-x).exp()))?;
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
        grads.add(0, map(&dy, |dy| dy * self.factor)?)
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
        grads.add(0, zip(&dy, &self.y, |dy, y| dy * y)?)
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
        grads.add(0, zip(&dy, &self.x, |dy, x| dy / x)?)
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
        grads.add(0, zip(&dy, &self.y, |dy, y| dy * (1.0 - y * y))?)
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
        grads.add(0, zip(&dy, &self.y, |dy, y| dy * y * (1.0 - y))?)
    }
}
