//! AdamW with decay groups.

use std::collections::HashMap;

use lehr_tensor::{Param, ParamStore, Shape, Tensor, inplace};

use super::Optimizer;
use crate::Result;
use crate::recipe::OptimizerConfig;

/// AdamW. Parameters of two or more dimensions decay; norms and biases do not.
pub struct AdamW {
    /// The rule of the update that was begun, for a matrix.
    rule: inplace::AdamW,
    embedding_lr_ratio: f32,
    moments: Vec<Moments>,
    /// Name of the parameter to its moments.
    index: HashMap<String, usize>,
    n_updates: u64,
}

struct Moments {
    name: String,
    m: Tensor,
    v: Tensor,
}

impl AdamW {
    /// State of zeros for every trainable parameter.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn new(config: &OptimizerConfig, params: &ParamStore) -> Result<Self> {
        let OptimizerConfig::Adamw {
            lr, beta1, beta2, eps, weight_decay, embedding_lr_ratio, ..
        } = *config;
        let rule = inplace::AdamW { lr, beta1, beta2, eps, weight_decay, grad_scale: 1.0, step: 0 };
        let moments = |p: &Param| {
            let zeros = || Tensor::zeros(p.shape());
            Ok(Moments { name: p.name().to_owned(), m: zeros()?, v: zeros()? })
        };
        let trainable = params.params().iter().filter(|p| p.is_trainable());
        let moments: Vec<_> = trainable.map(moments).collect::<Result<_>>()?;
        let index = moments.iter().enumerate().map(|(i, m)| (m.name.clone(), i)).collect();
        Ok(Self { rule, embedding_lr_ratio, moments, index, n_updates: 0 })
    }
}

/// Whether the parameter is a lookup table of tokens or positions (perhaps also the tied head).
fn is_embedding(name: &str) -> bool {
    ["embed_tokens.weight", "wte.weight", "wpe.weight"].iter().any(|end| name.ends_with(end))
}

impl Optimizer for AdamW {
    fn begin(&mut self, lr: f32, grad_scale: f32) {
        self.n_updates += 1;
        (self.rule.lr, self.rule.grad_scale, self.rule.step) = (lr, grad_scale, self.n_updates);
    }

    fn update(&mut self, param: &Param) -> Result<()> {
        let Some(moments) = self.index.get(param.name()).map(|i| &mut self.moments[*i]) else {
            return Ok(());
        };
        let is_embedding = is_embedding(param.name());
        let rule = inplace::AdamW {
            lr: if is_embedding { self.rule.lr * self.embedding_lr_ratio } else { self.rule.lr },
            weight_decay: if param.shape().len() >= 2 { self.rule.weight_decay } else { 0.0 },
            ..self.rule
        };
        let (m, v) = (moments.m.data_mut(), moments.v.data_mut());
        param.update(|value, grad| {
            if let Some(grad) = grad {
                inplace::adamw(value, grad, m, v, rule);
            }
        })?;
        Ok(())
    }

    fn state(&self) -> Vec<(String, Tensor)> {
        let both = |s: &Moments| {
            [(format!("m.{}", s.name), s.m.clone()), (format!("v.{}", s.name), s.v.clone())]
        };
        self.moments.iter().flat_map(both).collect()
    }

    fn restore(&mut self, step: u64, load: &dyn Fn(&str, Shape) -> Result<Tensor>) -> Result<()> {
        for moments in &mut self.moments {
            moments.m = load(&format!("m.{}", moments.name), moments.m.shape())?;
            moments.v = load(&format!("v.{}", moments.name), moments.v.shape())?;
        }
        self.n_updates = step;
        Ok(())
    }
}
