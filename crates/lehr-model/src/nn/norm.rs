//! Normalisation layers, alone and fused with the residual addition before them.

use std::sync::{Mutex, PoisonError};

use lehr_tensor::{Init, Param, Result, Role, Tensor};

use super::LayerBuilder;

/// Root-mean-square normalisation, perhaps with a learned scale: the weight, or `1 + weight`.
pub struct RmsNorm {
    scale: Scale,
    eps: f32,
    /// Added to the weight.
    offset: f32,
}

/// The scale of an [`RmsNorm`].
enum Scale {
    /// A parameter.
    Learned(Param),
    /// Ones, on the device where they were used last.
    Ones(Mutex<Tensor>),
}

impl RmsNorm {
    /// Builds a norm over `width` values. The scale starts at 1.
    ///
    /// # Errors
    /// If the source of parameters fails.
    pub fn build(p: &mut LayerBuilder<'_>, width: usize, eps: f32) -> Result<Self> {
        Self::with_offset(p, width, eps, 0.0)
    }

    /// Builds a norm that scales by `1 + weight` (Gemma). The weight starts at 0.
    ///
    /// # Errors
    /// If the source of parameters fails.
    pub fn build_one_plus(p: &mut LayerBuilder<'_>, width: usize, eps: f32) -> Result<Self> {
        Self::with_offset(p, width, eps, 1.0)
    }

    fn with_offset(p: &mut LayerBuilder<'_>, width: usize, eps: f32, offset: f32) -> Result<Self> {
        let weight = p.param("weight", Role::Norm, [width], Init::Constant(1.0 - offset))?;
        Ok(Self { scale: Scale::Learned(weight), eps, offset })
    }

    /// Creates a norm over `width` values without a scale. It has no parameter.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn unscaled(width: usize, eps: f32) -> Result<Self> {
        let ones = Tensor::full([width], 1.0)?;
        Ok(Self { scale: Scale::Ones(Mutex::new(ones)), eps, offset: 0.0 })
    }

    /// Returns the scale on the device of `x`.
    fn weight(&self, x: &Tensor) -> Result<Tensor> {
        match &self.scale {
            Scale::Learned(weight) => Ok(weight.tensor_f32()),
            Scale::Ones(ones) => {
                let mut ones = ones.lock().unwrap_or_else(PoisonError::into_inner);
                if ones.device() != x.device() {
                    *ones = ones.to_device(x.device())?;
                }
                Ok(ones.clone())
            }
        }
    }

    /// Normalises each row of `x [.., D]`.
    ///
    /// # Errors
    /// If the width does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.rms_norm(&self.weight(x)?, self.eps, self.offset)
    }

    /// Computes `(x + delta, norm(x + delta))` in one pass.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward_add(&self, x: &Tensor, delta: &Tensor) -> Result<(Tensor, Tensor)> {
        x.add_rms_norm(delta, &self.weight(x)?, self.eps, self.offset)
    }
}

/// Layer normalisation with a learned scale and shift.
pub struct LayerNorm {
    weight: Param,
    bias: Param,
    eps: f32,
}

impl LayerNorm {
    /// Builds a norm over `width` values. The scale starts at 1, the shift at 0.
    ///
    /// # Errors
    /// If the source of parameters fails.
    pub fn build(p: &mut LayerBuilder<'_>, width: usize, eps: f32) -> Result<Self> {
        let weight = p.param("weight", Role::Norm, [width], Init::Constant(1.0))?;
        Ok(Self { weight, bias: p.param("bias", Role::Norm, [width], Init::Constant(0.0))?, eps })
    }

    /// Normalises each row of `x [.., D]`.
    ///
    /// # Errors
    /// If the width does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.layer_norm(&self.weight.tensor_f32(), Some(&self.bias.tensor_f32()), self.eps)
    }

    /// Computes `(x + delta, norm(x + delta))` in one pass.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward_add(&self, x: &Tensor, delta: &Tensor) -> Result<(Tensor, Tensor)> {
        let (weight, bias) = (self.weight.tensor_f32(), self.bias.tensor_f32());
        x.add_layer_norm(delta, &weight, Some(&bias), self.eps)
    }
}
