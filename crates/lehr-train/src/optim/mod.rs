//! Optimisers: state and rule. Their kernels are in the engine.

mod adamw;

pub use adamw::AdamW;
use lehr_tensor::inplace::Clip;
use lehr_tensor::{Param, ParamStore, Shape, Tensor};

use crate::Result;
use crate::recipe::{OptimizerConfig, OptimizerRule};

/// What one update is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// Its number, from 1.
    pub number: u64,
    /// Learning rate of the step. Each parameter group has a multiple of it.
    pub lr: f32,
    /// Gradients are multiplied by this first: it undoes loss scaling.
    pub grad_scale: f32,
}

/// Changes the parameters of a store by their gradients.
pub trait Optimizer: Send {
    /// Begins an update of which [`Optimizer::update`] makes the parts.
    fn begin(&mut self, update: Update);

    /// Changes one parameter by its gradient, as part of the update that was begun. A parameter
    /// without a gradient, or without state, is left as it is.
    ///
    /// # Errors
    /// If the parameter is still in use by a graph.
    fn update(&mut self, param: &Param) -> Result<()>;

    /// One whole update. If the gradient is not finite by `clip`, nothing changes. It does not wait
    /// for a GPU.
    ///
    /// # Errors
    /// If a parameter is still in use by a graph.
    fn step(&mut self, params: &ParamStore, update: Update, clip: Clip<'_>) -> Result<()>;

    /// The state as named tensors, for a checkpoint.
    fn state(&self) -> Vec<(String, Tensor)>;

    /// Takes the state back.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    fn restore(&mut self, load: &dyn Fn(&str, Shape) -> Result<Tensor>) -> Result<()>;
}

/// The optimiser of a recipe for the parameters of `params`.
///
/// # Errors
/// If there is no memory for its state.
pub(crate) fn build(config: &OptimizerConfig, params: &ParamStore) -> Result<Box<dyn Optimizer>> {
    Ok(match &config.rule {
        OptimizerRule::Adamw(adamw) => Box::new(AdamW::new(adamw, params)?),
    })
}
