//! Muon for matrices, AdamW for everything else.

use std::collections::HashMap;

use lehr_tensor::inplace::{self, Clip, muon_moments, muon_params};
use lehr_tensor::{DType, Param, ParamStore, Shape, Tensor};

use super::{AdamW, Optimizer, Update};
use crate::Result;
use crate::recipe::MuonConfig;

/// Muon ([`inplace::muon_params`]) for the matrices between embedding and head, AdamW in groups for
/// the other parameters.
pub struct Muon {
    config: MuonConfig,
    update: Update,
    /// Steps of the run, for what changes up to its end; `None`: no end is known.
    n_steps: Option<u64>,
    matrices: Vec<Matrix>,
    /// Index into `matrices` by parameter name.
    index: HashMap<String, usize>,
    others: AdamW,
}

/// The state of a matrix.
struct Matrix {
    name: String,
    momentum: Tensor,
    second: Tensor,
}

impl Matrix {
    fn new(param: &Param) -> Result<Self> {
        let zeros = |shape: Shape| Tensor::zeros_on(param.device(), shape, DType::F32);
        Ok(Self {
            name: param.name().to_owned(),
            momentum: zeros(param.shape())?,
            second: zeros([muon_moments(param)].into())?,
        })
    }

    fn item<'a>(&'a mut self, param: &'a Param) -> inplace::MuonItem<'a> {
        inplace::MuonItem { param, momentum: &mut self.momentum, second: &mut self.second }
    }
}

/// Returns whether Muon updates a parameter: a matrix between embedding and head.
pub(super) fn is_for_muon(param: &Param) -> bool {
    param.role().is_hidden_matrix() && param.shape().len() == 2
}

impl Muon {
    /// Creates zero state for every trainable parameter. `lr` is the peak learning rate of
    /// matrices.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn new(config: &MuonConfig, lr: f32, params: &ParamStore) -> Result<Self> {
        let matrices = params.trainable().filter(|p| is_for_muon(p));
        let matrices: Vec<_> = matrices.map(Matrix::new).collect::<Result<_>>()?;
        let index = matrices.iter().enumerate().map(|(i, m)| (m.name.clone(), i)).collect();
        let others = params.trainable().filter(|p| !is_for_muon(p));
        let others = AdamW::beside_muon(config, lr, others)?;
        let update = Update { number: 0, lr: 0.0, grad_scale: 1.0 };
        Ok(Self { config: *config, update, n_steps: None, matrices, index, others })
    }

    /// The rule of the current update.
    fn rule(&self) -> inplace::Muon {
        let MuonConfig { beta2, cautious, every, .. } = self.config;
        let Update { number, lr, grad_scale } = self.update;
        inplace::Muon {
            lr: lr * every as f32,
            momentum: momentum(&self.config, number, self.n_steps),
            beta2,
            weight_decay: weight_decay(&self.config, number, self.n_steps),
            cautious,
            grad_scale,
            moves: number.is_multiple_of(every),
        }
    }
}

/// Computes the decay of the momentum in step `number` (from 1).
fn momentum(config: &MuonConfig, number: u64, n_steps: Option<u64>) -> f32 {
    let between = |from: f64, to: f32, share: f64| from + (f64::from(to) - from) * share;
    let share = |done: u64, of: u64| (done as f64 / of.max(1) as f64).min(1.0);
    let warmup = config.momentum_warmup_steps;
    let warm = if warmup == 0 { 1.0 } else { share(number.saturating_sub(1), warmup) };
    let momentum = between(f64::from(config.momentum_start), config.momentum, warm);
    let cooldown = config.momentum_cooldown_steps;
    // Steps of the cool-down that are made by the end of this one.
    let cooled = n_steps.map_or(0, |n| cooldown.saturating_sub(n.saturating_sub(number)));
    between(momentum, config.momentum_end, share(cooled, cooldown)) as f32
}

/// Computes the weight decay of matrices in step `number` (from 1).
fn weight_decay(config: &MuonConfig, number: u64, n_steps: Option<u64>) -> f32 {
    let [start, end] = [config.weight_decay, config.weight_decay_end].map(f64::from);
    let done = |n: u64| (number.saturating_sub(1) as f64 / n.max(1) as f64).min(1.0);
    (start + (end - start) * n_steps.map_or(0.0, done)) as f32
}

impl Optimizer for Muon {
    fn set_steps(&mut self, steps: u64) {
        self.n_steps = Some(steps);
    }

    fn begin(&mut self, update: Update) {
        self.update = update;
        self.others.begin(update);
    }

    fn update(&mut self, param: &Param) -> Result<()> {
        let rule = self.rule();
        match self.index.get(param.name()) {
            Some(i) => Ok(muon_params(&mut [self.matrices[*i].item(param)], rule, None)?),
            None => self.others.update(param),
        }
    }

    fn step(&mut self, params: &ParamStore, update: Update, clip: Clip<'_>) -> Result<()> {
        self.begin(update);
        let rule = self.rule();
        let item = |matrix| {
            let matrix: &mut Matrix = matrix;
            let param = params.get(&matrix.name)?;
            Some(matrix.item(param))
        };
        let mut items: Vec<_> = self.matrices.iter_mut().filter_map(item).collect();
        muon_params(&mut items, rule, Some(clip))?;
        self.others.step(params, update, clip)
    }

    fn state(&self) -> Vec<(String, Tensor)> {
        let both = |matrix: &Matrix| {
            let Matrix { name, momentum, second } = matrix;
            [
                (format!("momentum.{name}"), momentum.clone()),
                (format!("second.{name}"), second.clone()),
            ]
        };
        let own = self.matrices.iter().flat_map(both);
        own.chain(self.others.state()).collect()
    }

    fn restore(&mut self, load: &dyn Fn(&str, Shape) -> Result<Tensor>) -> Result<()> {
        for Matrix { name, momentum, second } in &mut self.matrices {
            let device = momentum.device();
            *momentum = load(&format!("momentum.{name}"), momentum.shape())?.to_device(device)?;
            *second = load(&format!("second.{name}"), second.shape())?.to_device(device)?;
        }
        self.others.restore(load)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{OptimizerConfig, OptimizerRule};

    #[test]
    fn momentum_rises_then_holds_then_goes_to_its_end() {
        let OptimizerRule::Muon(muon) = OptimizerConfig::muon(0.02).rule else { panic!("muon") };
        let config = MuonConfig {
            momentum_warmup_steps: 10,
            momentum_cooldown_steps: 4,
            momentum_end: 0.75,
            ..muon
        };
        let at = |number| momentum(&config, number, Some(100));
        let near = |found: f32, want: f32| assert!((found - want).abs() < 1e-6, "{found} {want}");
        near(at(1), 0.85);
        near(at(6), 0.9);
        near(at(11), 0.95);
        near(at(96), 0.95);
        near(at(98), 0.85);
        near(at(100), 0.75);
        // Without an end it stays.
        near(momentum(&config, 100, None), 0.95);
        let no_warmup = MuonConfig { momentum_warmup_steps: 0, ..config };
        near(momentum(&no_warmup, 1, None), 0.95);
    }

    #[test]
    fn decay_goes_linearly_to_its_end() {
        let OptimizerRule::Muon(muon) = OptimizerConfig::muon(0.02).rule else { panic!("muon") };
        let config = MuonConfig { weight_decay: 0.4, weight_decay_end: 0.0, ..muon };
        let at = |number| weight_decay(&config, number, Some(100));
        assert!((at(1) - 0.4).abs() < 1e-6 && (at(51) - 0.2).abs() < 1e-6);
        assert!((at(100) - 0.004).abs() < 1e-6);
        assert!((weight_decay(&config, 100, None) - 0.4).abs() < 1e-6);
    }
}
