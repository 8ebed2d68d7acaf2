//! AdamW with parameter groups.

use std::collections::HashMap;

use lehr_tensor::inplace::Clip;
use lehr_tensor::{DType, Param, ParamStore, Shape, Tensor, inplace};

use super::groups::{GroupRule, Groups};
use super::{Optimizer, Update};
use crate::Result;
use crate::recipe::{AdamwConfig, MuonConfig};

/// AdamW. Weight decay applies to parameters of two or more dimensions, not to norms and biases,
/// unless their group says so.
pub struct AdamW {
    /// The rule of the current update; a group has its own decays and factor on the rate.
    rule: inplace::AdamW,
    moments: Vec<Moments>,
    /// Index into `moments` by parameter name.
    index: HashMap<String, usize>,
}

struct Moments {
    name: String,
    m: Tensor,
    v: Tensor,
    group: GroupRule,
}

impl AdamW {
    /// Creates zero moments for every trainable parameter. `lr` is the peak learning rate. Each
    /// group has a multiple of it.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn new(config: &AdamwConfig, lr: f32, params: &ParamStore) -> Result<Self> {
        let AdamwConfig { eps, cautious, .. } = *config;
        let rule = Self::first_rule(eps, cautious);
        Self::with_groups(rule, &Groups::of_adamw(config, lr), params.trainable())
    }

    /// Creates zero moments for `params`, all that Muon does not update.
    pub(super) fn beside_muon<'a>(
        config: &MuonConfig,
        lr: f32,
        params: impl Iterator<Item = &'a Param>,
    ) -> Result<Self> {
        let rule = Self::first_rule(config.eps, config.cautious);
        Self::with_groups(rule, &Groups::of_muon(config, lr), params)
    }

    fn first_rule(eps: f32, cautious: bool) -> inplace::AdamW {
        let (lr, beta1, beta2, weight_decay, grad_scale, step) = (0.0, 0.0, 0.0, 0.0, 1.0, 0);
        let lazy = false;
        inplace::AdamW { lr, beta1, beta2, eps, weight_decay, cautious, lazy, grad_scale, step }
    }

    fn with_groups<'a>(
        rule: inplace::AdamW,
        groups: &Groups,
        params: impl Iterator<Item = &'a Param>,
    ) -> Result<Self> {
        let moments = |p: &Param| {
            let zeros = || Tensor::zeros_on(p.device(), p.shape(), DType::F32);
            let (m, v) = (zeros()?, zeros()?);
            Ok(Moments { name: p.name().to_owned(), m, v, group: groups.rule(p) })
        };
        let moments: Vec<_> = params.map(moments).collect::<Result<_>>()?;
        let index = moments.iter().enumerate().map(|(i, m)| (m.name.clone(), i)).collect();
        Ok(Self { rule, moments, index })
    }
}

impl Moments {
    /// Pairs the moments with their parameter.
    fn item<'a>(&'a mut self, param: &'a Param) -> inplace::AdamWItem<'a> {
        let GroupRule { lr_scale, weight_decay, .. } = self.group;
        inplace::AdamWItem { param, m: &mut self.m, v: &mut self.v, lr_scale, weight_decay }
    }
}

impl GroupRule {
    /// The rule of an update with what the group has of its own.
    fn of(&self, rule: inplace::AdamW) -> inplace::AdamW {
        inplace::AdamW { beta1: self.beta1, beta2: self.beta2, lazy: self.lazy, ..rule }
    }
}

impl Optimizer for AdamW {
    fn begin(&mut self, update: Update) {
        let Update { number, lr, grad_scale } = update;
        (self.rule.lr, self.rule.grad_scale, self.rule.step) = (lr, grad_scale, number);
    }

    fn update(&mut self, param: &Param) -> Result<()> {
        let Some(moments) = self.index.get(param.name()).map(|i| &mut self.moments[*i]) else {
            return Ok(());
        };
        let rule = moments.group.of(self.rule);
        Ok(inplace::adamw_params(&mut [moments.item(param)], rule, None)?)
    }

    /// Updates all parameters with the same decays together: on a GPU one launch is much faster
    /// than one per parameter.
    fn step(&mut self, params: &ParamStore, update: Update, clip: Clip<'_>) -> Result<()> {
        self.begin(update);
        let by_name: HashMap<&str, &Param> =
            params.params().iter().map(|p| (p.name(), p)).collect();
        let mut launches: Vec<(inplace::AdamW, Vec<inplace::AdamWItem<'_>>)> = Vec::new();
        for moments in &mut self.moments {
            let Some(param) = by_name.get(moments.name.as_str()) else { continue };
            let rule = moments.group.of(self.rule);
            let item = moments.item(param);
            let is_same = |(other, _): &&mut (inplace::AdamW, Vec<_>)| {
                (other.beta1, other.beta2, other.lazy) == (rule.beta1, rule.beta2, rule.lazy)
            };
            match launches.iter_mut().find(is_same) {
                Some((_, items)) => items.push(item),
                None => launches.push((rule, vec![item])),
            }
        }
        for (rule, mut items) in launches {
            inplace::adamw_params(&mut items, rule, Some(clip))?;
        }
        Ok(())
    }

    fn state(&self) -> Vec<(String, Tensor)> {
        let both = |s: &Moments| {
            [(format!("m.{}", s.name), s.m.clone()), (format!("v.{}", s.name), s.v.clone())]
        };
        self.moments.iter().flat_map(both).collect()
    }

    fn restore(&mut self, load: &dyn Fn(&str, Shape) -> Result<Tensor>) -> Result<()> {
        for moments in &mut self.moments {
            let device = moments.m.device();
            moments.m =
                load(&format!("m.{}", moments.name), moments.m.shape())?.to_device(device)?;
            moments.v =
                load(&format!("v.{}", moments.name), moments.v.shape())?.to_device(device)?;
        }
        Ok(())
    }
}
