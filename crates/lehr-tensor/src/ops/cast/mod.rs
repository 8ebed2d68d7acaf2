//! Changes of the element type.

mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
pub(crate) mod tests;

use half::{bf16, f16};

use crate::autograd::{Gradients, Op, record1};
use crate::{DType, Error, Result, Tensor};

impl Tensor {
    /// The same values as another float type, rounded to nearest with ties to even. A cast to the
    /// type a tensor has is the tensor itself.
    ///
    /// The gradient passes through unchanged: gradients are f32 whatever the type of the value.
    ///
    /// # Errors
    /// If either type is an integer type or memory runs out.
    pub fn cast(&self, dtype: DType) -> Result<Self> {
        const OP: &str = "cast";
        if dtype == DType::I32 {
            let (name, value) = ("dtype", dtype.to_string());
            return Err(Error::Argument { op: OP, name, value, expected: "f32, f16 or bf16" });
        }
        if self.dtype() == DType::I32 {
            return Err(Error::DType { op: OP, found: DType::I32, expected: DType::F32 });
        }
        if self.dtype() == dtype {
            return Ok(self.clone());
        }
        let mut y = Self::uninit_on(self.device(), self.shape(), dtype)?;
        if self.is_cuda() {
            cuda::cast(self, &mut y)?;
            let from = self.dtype();
            return Ok(record1(&[self], y, || CastOnGpu { from }));
        }
        match (self.dtype(), dtype) {
            (DType::F32, DType::F16) => cpu::narrow::<f16>(self.elements(), y.elements_mut()),
            (DType::F32, _) => cpu::narrow::<bf16>(self.elements(), y.elements_mut()),
            (DType::F16, DType::F32) => cpu::widen::<f16>(self.elements(), y.elements_mut()),
            (_, DType::F32) => cpu::widen::<bf16>(self.elements(), y.elements_mut()),
            (DType::F16, _) => cpu::exchange::<f16, bf16>(self.elements(), y.elements_mut()),
            (_, _) => cpu::exchange::<bf16, f16>(self.elements(), y.elements_mut()),
        }
        Ok(record1(&[self], y, || Cast))
    }

    /// The values as f32: [`Tensor::cast`] to [`DType::F32`].
    ///
    /// # Errors
    /// If the elements are integers or memory runs out.
    pub fn to_f32(&self) -> Result<Self> {
        self.cast(DType::F32)
    }
}

struct Cast;

impl Op for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        grads.add(0, dy)
    }
}

/// On a GPU gradients have the type of their values, except those of parameters.
struct CastOnGpu {
    from: DType,
}

impl Op for CastOnGpu {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        grads.add(0, dy.cast(self.from)?.detach())
    }
}
