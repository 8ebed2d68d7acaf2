//! Optimisers: state and rule. Their kernels are in the engine.

mod adamw;

pub use adamw::AdamW;
use lehr_tensor::{Param, ParamStore, Tensor};

use crate::Result;
use crate::recipe::OptimizerConfig;

/// Changes the parameters of a store by their gradients.
pub trait Optimizer: Send {
    /// Begins an update with learning rate `lr`; gradients are multiplied by `grad_scale` first.
    fn begin(&mut self, lr: f32, grad_scale: f32);

    /// Changes one parameter by its gradient, as part of the update that was begun. A parameter
    /// without a gradient, or without state, is left as it is.
    ///
    /// # Errors
    /// If the parameter is still in use by a graph.
    fn update(&mut self, param: &Param) -> Result<()>;

    /// One whole update.
    ///
    /// # Errors
    /// If a parameter is still in use by a graph.
    fn step(&mut self, params: &ParamStore, lr: f32, grad_scale: f32) -> Result<()> {
        self.begin(lr, grad_scale);
        params.params().iter().try_for_each(|param| self.update(param))
    }

    /// The state as named tensors, for a checkpoint.
    fn state(&self) -> Vec<(String, Tensor)>;

    /// Takes the state back; `step` is the number of updates made so far.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    fn restore(
        &mut self,
        step: u64,
        load: &dyn Fn(&str, lehr_tensor::Shape) -> Result<Tensor>,
    ) -> Result<()>;
}

/// The optimiser of a recipe for the parameters of `params`.
///
/// # Errors
/// If there is no memory for its state.
pub(crate) fn build(config: &OptimizerConfig, params: &ParamStore) -> Result<Box<dyn Optimizer>> {
    Ok(match config {
        OptimizerConfig::Adamw { .. } => Box::new(AdamW::new(config, params)?),
    })
}
