//! Elementwise ops of two tensors of one shape.

use lehr_kernels::CHUNK;

use super::cuda::{self, Binary, Unary};
use crate::autograd::{Gradients, Op, record1};
use crate::{DType, Result, Tensor, threads};

impl Tensor {
    /// `self + rhs` for tensors of one shape.
    ///
    /// # Errors
    /// If the shapes differ or memory runs out.
    pub fn add(&self, rhs: &Self) -> Result<Self> {
        crate::ops::expect_same("add", self, rhs)?;
        let y = zip(self, rhs, Binary::Add, |a, b| a + b)?;
        Ok(record1(&[self, rhs], y, || Add))
    }

    /// `self − rhs` for tensors of one shape.
    ///
    /// # Errors
    /// If the shapes differ or memory runs out.
    pub fn sub(&self, rhs: &Self) -> Result<Self> {
        crate::ops::expect_same("sub", self, rhs)?;
        let y = zip(self, rhs, Binary::Sub, |a, b| a - b)?;
        Ok(record1(&[self, rhs], y, || Sub))
    }

    /// `self · rhs`, element by element, for tensors of one shape.
    ///
    /// # Errors
    /// If the shapes differ or memory runs out.
    pub fn mul(&self, rhs: &Self) -> Result<Self> {
        crate::ops::expect_same("mul", self, rhs)?;
        let y = zip(self, rhs, Binary::Mul, |a, b| a * b)?;
        Ok(record1(&[self, rhs], y, || Mul { lhs: self.detach(), rhs: rhs.detach() }))
    }

    /// `self / rhs`, element by element, for tensors of one shape. Saves `rhs` and the result.
    ///
    /// # Errors
    /// If the shapes differ or memory runs out.
    pub fn div(&self, rhs: &Self) -> Result<Self> {
        crate::ops::expect_same("div", self, rhs)?;
        let y = zip(self, rhs, Binary::Div, |a, b| a / b)?;
        let saved = y.detach();
        Ok(record1(&[self, rhs], y, || Div { rhs: rhs.detach(), y: saved }))
    }
}

/// `f(a, b)` for each pair of elements.
///
/// `op` is the same function on a GPU.
pub(super) fn zip(
    a: &Tensor,
    b: &Tensor,
    op: Binary,
    f: impl Fn(f32, f32) -> f32 + Sync,
) -> Result<Tensor> {
    if a.is_cuda() {
        return cuda::binary(op, a, b);
    }
    let mut y = Tensor::uninit(a.shape(), DType::F32)?;
    let (a, b) = (a.data(), b.data());
    threads::run_chunks(y.data_mut(), CHUNK, |index, y| {
        let start = index * CHUNK;
        for ((y, a), b) in y.iter_mut().zip(&a[start..]).zip(&b[start..]) {
            *y = f(*a, *b);
        }
    });
    Ok(y)
}

/// `f(a)` for each element. `op` and its factor are the same function on a GPU.
pub(super) fn map(
    a: &Tensor,
    (op, factor): (Unary, f32),
    f: impl Fn(f32) -> f32 + Sync,
) -> Result<Tensor> {
    if a.is_cuda() {
        return cuda::unary(op, a, factor);
    }
    let mut y = Tensor::uninit(a.shape(), DType::F32)?;
    let a = a.data();
    threads::run_chunks(y.data_mut(), CHUNK, |index, y| {
        for (y, a) in y.iter_mut().zip(&a[index * CHUNK..]) {
            *y = f(*a);
        }
    });
    Ok(y)
}

struct Add;

impl Op for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        grads.add(0, dy.clone())?;
        grads.add(1, dy)
    }
}

struct Sub;

impl Op for Sub {
    fn name(&self) -> &'static str {
        "sub"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        if grads.wants(1) {
            grads.add(1, map(&dy, (Unary::Neg, 1.0), |dy| -dy)?)?;
        }
        grads.add(0, dy)
    }
}

struct Mul {
    lhs: Tensor,
    rhs: Tensor,
}

impl Op for Mul {
    fn name(&self) -> &'static str {
        "mul"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        if grads.wants(0) {
            grads.add(0, zip(&dy, &self.rhs, Binary::Mul, |dy, b| dy * b)?)?;
        }
        if grads.wants(1) {
            grads.add(1, zip(&dy, &self.lhs, Binary::Mul, |dy, a| dy * a)?)?;
        }
        Ok(())
    }
}

struct Div {
    rhs: Tensor,
    y: Tensor,
}

impl Op for Div {
    fn name(&self) -> &'static str {
        "div"
    }

    /// `da = dy / b`, `db = −y · da`.
    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let da = zip(&grads.only_output(), &self.rhs, Binary::Div, |dy, b| dy / b)?;
        if grads.wants(1) {
            grads.add(1, zip(&da, &self.y, Binary::DivGrad, |da, y| -y * da)?)?;
        }
        grads.add(0, da)
    }
}
