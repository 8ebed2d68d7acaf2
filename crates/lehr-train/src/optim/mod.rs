//! Optimisers: their state and update rules. The kernels are in `lehr-tensor`.

mod adamw;
mod groups;
mod muon;

pub use adamw::AdamW;
use lehr_tensor::inplace::{Clip, muon_moments};
use lehr_tensor::{Param, ParamStore, Shape, Tensor};
pub use muon::Muon;

use crate::Result;
use crate::recipe::{OptimizerConfig, OptimizerRule};

/// The numbers of one update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// Its number, from 1.
    pub number: u64,
    /// Learning rate of the step. Each parameter group has a multiple of it.
    pub lr: f32,
    /// Gradients are multiplied by this first: it undoes loss scaling.
    pub grad_scale: f32,
}

/// An optimiser: updates parameters by their gradients.
pub trait Optimizer: Send {
    /// Tells the number of steps of the run, for numbers that change up to its end. Without it they
    /// stay.
    fn set_steps(&mut self, _steps: u64) {}

    /// Begins an update that [`Optimizer::update`] then applies parameter by parameter.
    fn begin(&mut self, update: Update);

    /// Updates one parameter, as part of the update begun last. Skips a parameter without a
    /// gradient or without state.
    ///
    /// # Errors
    /// If the parameter is still in use by a graph.
    fn update(&mut self, param: &Param) -> Result<()>;

    /// Makes one whole update. Changes nothing if the squared norm in `clip` is not finite. Does
    /// not wait for a GPU.
    ///
    /// # Errors
    /// If a parameter is still in use by a graph.
    fn step(&mut self, params: &ParamStore, update: Update, clip: Clip<'_>) -> Result<()>;

    /// Returns the state as named tensors, for a checkpoint.
    fn state(&self) -> Vec<(String, Tensor)>;

    /// Restores the state of a checkpoint.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    fn restore(&mut self, load: &dyn Fn(&str, Shape) -> Result<Tensor>) -> Result<()>;
}

/// Creates the optimiser of a recipe for the parameters in `params`.
///
/// # Errors
/// If there is no memory for its state.
pub(crate) fn build(config: &OptimizerConfig, params: &ParamStore) -> Result<Box<dyn Optimizer>> {
    Ok(match &config.rule {
        OptimizerRule::Adamw(adamw) => Box::new(AdamW::new(adamw, config.lr, params)?),
        OptimizerRule::Muon(muon) => Box::new(Muon::new(muon, config.lr, params)?),
    })
}

/// Returns the bytes of the state of a recipe's optimiser for the trainable parameters in `params`:
/// AdamW has two moments for each weight; Muon has one, and a number for each row or column.
#[must_use]
pub fn optimizer_state_bytes(config: &OptimizerConfig, params: &ParamStore) -> usize {
    let is_muon = matches!(config.rule, OptimizerRule::Muon(_));
    let values = |param: &Param| {
        let n = param.shape().n_elements();
        if is_muon && muon::is_for_muon(param) { n + muon_moments(param) } else { 2 * n }
    };
    4 * params.trainable().map(values).sum::<usize>()
}
