//! AdamW with decay groups.

use lehr_tensor::{Param, ParamStore, Shape, Tensor, inplace};

use super::Optimizer;
use crate::Result;
use crate::recipe::OptimizerConfig;

/// AdamW. Parameters of two or more dimensions decay; norms and biases do not.
pub struct AdamW {
    config: OptimizerConfig,
    moments: Vec<Moments>,
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
        let moments = |p: &Param| {
            let zeros = || Tensor::zeros(p.shape());
            Ok(Moments { name: p.name().to_owned(), m: zeros()?, v: zeros()? })
        };
        let trainable = params.params().iter().filter(|p| p.is_trainable());
        Ok(Self {
            config: *config,
            moments: trainable.map(moments).collect::<Result<_>>()?,
            n_updates: 0,
        })
    }
}

/// Whether the parameter is a lookup table of tokens or positions (perhaps also the tied head).
fn is_embedding(name: &str) -> bool {
    ["embed_tokens.weight", "wte.weight", "wpe.weight"].iter().any(|end| name.ends_with(end))
}

impl Optimizer for AdamW {
    fn step(&mut self, params: &ParamStore, lr: f32, grad_scale: f32) -> Result<()> {
        let OptimizerConfig::Adamw { beta1, beta2, eps, weight_decay, embedding_lr_ratio, .. } =
            self.config;
        self.n_updates += 1;
        let rule = inplace::AdamW {
            lr,
            beta1,
            beta2,
            eps,
            weight_decay: 0.0,
            grad_scale,
            step: self.n_updates,
        };
        for moments in &mut self.moments {
            let Some(param) = params.get(&moments.name) else { continue };
            let decays = param.shape().len() >= 2;
            let rule = inplace::AdamW {
                lr: if is_embedding(param.name()) { lr * embedding_lr_ratio } else { lr },
                weight_decay: if decays { weight_decay } else { 0.0 },
                ..rule
            };
            let (m, v) = (moments.m.data_mut(), moments.v.data_mut());
            param.update(|value, grad| {
                // A parameter the loss did not reach is left as it is.
                if let Some(grad) = grad {
                    inplace::adamw(value, grad, m, v, rule);
                }
            })?;
        }
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
