//! Weight-decomposed low-rank adaptation: DoRA (Liu et al. 2024,
//! <https://arxiv.org/abs/2402.09353>).

use std::sync::{Mutex, PoisonError};

use lehr_tensor::{
    DType, Device, Init, Param, ParamBuilder, Result, Role, Tensor, Weight, no_grad,
};

use super::{Adapter, BaseLayer, Lora, LoraConfig};

/// Added to squared norms, so that rows of zeros keep their value.
const TINY: f32 = 1e-24;

/// An update of rank R that changes direction and length of each row of a matrix apart:
/// `y = g ⊙ (x Wᵀ + s · B (A x)) + bias` with `g = m / ‖W + s · B A‖`, the norm of each row.
///
/// | name | shape | starts |
/// |---|---|---|
/// | `lora_A`, `lora_B` | `[R, I]`, `[O, R]` | as LoRA's |
/// | `lora_magnitude_vector` | `[O]` | at `‖W‖`, so that the model starts as its base |
///
/// The norm counts as a constant in backward, as in section 4.3 of the paper. The sum of W and the
/// update is never made:
/// `‖w + s b A‖² = ‖w‖² + 2 s b · (A w) + s² b (A Aᵀ) bᵀ` for a row w of W and a row b of B, where
/// `A w` is the base layer applied to the rows of A. That is R more rows for a pass of any length,
/// over a base in any format.
pub struct Dora {
    lora: Lora,
    magnitude: Param,
    /// `‖w‖²` of each row of W and [`TINY`], `[1, O]`, on the device of the last pass.
    base_norms: Mutex<Tensor>,
}

impl Dora {
    /// Builds the update of the layer with the matrix `base`, which is `[I, O]` if `transposed`.
    ///
    /// # Errors
    /// If memory runs out.
    pub(super) fn build(
        p: &mut ParamBuilder<'_>,
        config: LoraConfig,
        [n_in, n_out]: [usize; 2],
        base: &Weight,
        transposed: bool,
    ) -> Result<Self> {
        let lora = Lora::build(p, config, n_in, n_out)?;
        let magnitude =
            p.param("lora_magnitude_vector", Role::Adapter, [n_out], Init::Constant(1.0))?;
        let base_norms = Tensor::from_slice(&squared_norms(base, n_out, transposed)?, [1, n_out])?;
        if p.is_new() {
            let lengths: Vec<f32> = base_norms.data().iter().map(|square| square.sqrt()).collect();
            magnitude.set(&Tensor::from_slice(&lengths, [n_out])?)?;
        }
        Ok(Self { lora, magnitude, base_norms: Mutex::new(base_norms) })
    }

    /// Returns the squared norms of the rows of W on `device`.
    fn base_norms(&self, device: Device) -> Result<Tensor> {
        let mut norms = self.base_norms.lock().unwrap_or_else(PoisonError::into_inner);
        if norms.device() != device {
            *norms = norms.to_device(device)?;
        }
        Ok(norms.clone())
    }

    /// Computes `g` as `[1, O]` in f32. Only `m` has a gradient.
    fn factors(&self, dtype: DType, base: &dyn BaseLayer) -> Result<Tensor> {
        let (a, b, s) = (self.lora.a.tensor_f32(), self.lora.b.tensor_f32(), self.lora.scale);
        let lengths = no_grad(|| -> Result<Tensor> {
            let ones = ones(a.device(), [1, a.shape()[0]])?;
            // `A W`, `[R, O]`, as rows of B are `[O, R]`.
            let applied = base.product(&a.detach().cast(dtype)?)?.to_f32()?;
            let b = b.detach().transpose(0, 1)?;
            let cross = ones.matmul(&b.mul(&applied)?)?.scale(2.0 * s)?;
            let gram = a.detach().matmul(&a.detach().transpose(0, 1)?)?;
            let square = ones.matmul(&b.mul(&gram.matmul(&b)?)?)?.scale(s * s)?;
            let norms = self.base_norms(a.device())?.add(&cross)?.add(&square)?;
            norms.log()?.scale(0.5)?.exp()
        })?;
        self.magnitude.tensor_f32().reshape(lengths.shape())?.div(&lengths.detach())
    }
}

impl Adapter for Dora {
    fn forward(&self, x: &Tensor, base: &dyn BaseLayer) -> Result<Tensor> {
        let y = base.product(x)?.add(&self.lora.update(x)?)?;
        let factors = self.factors(x.dtype(), base)?.cast(y.dtype())?;
        // Each row of `y` times `g`.
        let ones = ones(y.device(), [y.shape().n_rows(), 1])?.cast(y.dtype())?;
        let y = y.mul(&ones.matmul(&factors)?.reshape(y.shape())?)?;
        match base.bias() {
            Some(bias) => {
                let bias = bias.reshape([1, bias.shape()[0]])?;
                y.add(&ones.matmul(&bias)?.reshape(y.shape())?)
            }
            None => Ok(y),
        }
    }

    fn merge(&self, weight: &Tensor) -> Result<Tensor> {
        let mut merged = self.lora.merge(weight)?.detach();
        let magnitude = self.magnitude.to_host()?;
        let width = merged.shape().last_dim();
        for (row, m) in merged.data_mut().chunks_mut(width).zip(magnitude.data()) {
            let square: f64 = row.iter().map(|w| f64::from(*w).powi(2)).sum();
            let factor = f64::from(*m) / (square + f64::from(TINY)).sqrt();
            row.iter_mut().for_each(|w| *w = (f64::from(*w) * factor) as f32);
        }
        Ok(merged)
    }
}

/// Returns ones. They are made on the device, because recorded work cannot copy to it.
fn ones(device: Device, shape: [usize; 2]) -> Result<Tensor> {
    Tensor::zeros_on(device, shape, DType::F32)?.exp()
}

/// Computes `‖w‖²` and [`TINY`] of each of the `n_out` rows of a matrix.
fn squared_norms(base: &Weight, n_out: usize, transposed: bool) -> Result<Vec<f32>> {
    let weight = match base {
        Weight::Param(weight) => weight.to_host()?,
        Weight::Stored(weight) => weight.to_f32()?.to_host()?,
    };
    // What is stored is `[O, I]` always.
    let by_column = transposed && base.param().is_some();
    let mut squares = vec![0.0f64; n_out];
    let n_in = weight.data().len() / n_out.max(1);
    for (at, w) in weight.data().iter().enumerate() {
        let row = if by_column { at % n_out } else { at / n_in.max(1) };
        squares[row] += f64::from(*w).powi(2);
    }
    Ok(squares.into_iter().map(|square| square as f32 + TINY).collect())
}
