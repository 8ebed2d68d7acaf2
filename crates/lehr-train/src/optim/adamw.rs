//! AdamW with decay groups.

use std::collections::HashMap;

use lehr_tensor::inplace::Clip;
use lehr_tensor::{DType, Param, ParamStore, Shape, Tensor, inplace};

use super::{Optimizer, Update};
use crate::Result;
use crate::recipe::AdamwConfig;

/// AdamW. Weight decay applies to parameters of two or more dimensions, not to norms and biases.
pub struct AdamW {
    /// The rule of the current update, for a matrix.
    rule: inplace::AdamW,
    embedding_lr_ratio: f32,
    moments: Vec<Moments>,
    /// Index into `moments` by parameter name.
    index: HashMap<String, usize>,
}

struct Moments {
    name: String,
    m: Tensor,
    v: Tensor,
}

impl AdamW {
    /// Creates zero moments for every trainable parameter.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn new(config: &AdamwConfig, params: &ParamStore) -> Result<Self> {
        let AdamwConfig { beta1, beta2, eps, weight_decay, embedding_lr_ratio } = *config;
        let lr = 0.0;
        let rule = inplace::AdamW { lr, beta1, beta2, eps, weight_decay, grad_scale: 1.0, step: 0 };
        let moments = |p: &Param| {
            let zeros = || Tensor::zeros_on(p.device(), p.shape(), DType::F32);
            Ok(Moments { name: p.name().to_owned(), m: zeros()?, v: zeros()? })
        };
        let trainable = params.params().iter().filter(|p| p.is_trainable());
        let moments: Vec<_> = trainable.map(moments).collect::<Result<_>>()?;
        let index = moments.iter().enumerate().map(|(i, m)| (m.name.clone(), i)).collect();
        Ok(Self { rule, embedding_lr_ratio, moments, index })
    }
}

impl Moments {
    /// Pairs the moments with their parameter and its own decay and learning rate.
    fn item<'a>(
        &'a mut self,
        param: &'a Param,
        rule: &inplace::AdamW,
        embedding_lr_ratio: f32,
    ) -> inplace::AdamWItem<'a> {
        let lr_scale = if param.role().is_embedding() { embedding_lr_ratio } else { 1.0 };
        let weight_decay = if param.shape().len() >= 2 { rule.weight_decay } else { 0.0 };
        inplace::AdamWItem { param, m: &mut self.m, v: &mut self.v, lr_scale, weight_decay }
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
        let item = moments.item(param, &self.rule, self.embedding_lr_ratio);
        Ok(inplace::adamw_params(&mut [item], self.rule, None)?)
    }

    /// Updates all parameters together: on a GPU one launch is much faster than one per parameter.
    fn step(&mut self, params: &ParamStore, update: Update, clip: Clip<'_>) -> Result<()> {
        self.begin(update);
        let by_name: HashMap<&str, &Param> =
            params.params().iter().map(|p| (p.name(), p)).collect();
        let (rule, ratio) = (self.rule, self.embedding_lr_ratio);
        let item = |moments| {
            let moments: &mut Moments = moments;
            let param = by_name.get(moments.name.as_str())?;
            Some(moments.item(param, &rule, ratio))
        };
        let mut items: Vec<_> = self.moments.iter_mut().filter_map(item).collect();
        Ok(inplace::adamw_params(&mut items, rule, Some(clip))?)
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
