//! Updates of many parameters.

use anyhow::Result;
use lehr_tensor::inplace::{self, AdamWItem, MuonItem};
use lehr_tensor::{DType, Init, ParamBuilder, ParamStore, Role, Shape, Source, Tensor};

use super::{Bench, Work};

impl Bench<'_> {
    /// AdamW over 64 parameters of 1 M numbers.
    pub(super) fn adamw(&self) -> Result<()> {
        if !self.wants("adamw") {
            return Ok(());
        }
        let (count, n) = (64, 1 << 20);
        let mut store = ParamStore::default();
        let source = Source::Init { seed: 1 };
        let mut builder = ParamBuilder::new(&mut store, &source);
        for i in 0..count {
            builder.at(i).param("weight", Role::Mlp, [n], Init::Normal(0.02))?;
        }
        store.to_device(self.device, self.dtype)?;
        for param in store.params() {
            // The gradient of a sum is ones.
            param.tensor().sum()?.backward()?;
        }
        let zeros = || Tensor::zeros_on(self.device, [n], DType::F32);
        let mut moments: Vec<_> =
            (0..count).map(|_| Ok((zeros()?, zeros()?))).collect::<lehr_tensor::Result<_>>()?;
        let rule = inplace::AdamW {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.0,
            cautious: false,
            lazy: false,
            grad_scale: 1.0,
            step: 1,
        };
        let seconds = self.repeated(|| {
            let mut items: Vec<_> = store
                .params()
                .iter()
                .zip(&mut moments)
                .map(|(param, (m, v))| AdamWItem { param, m, v, lr_scale: 1.0, weight_decay: 0.1 })
                .collect();
            inplace::adamw_params(&mut items, rule, None)
        })?;
        // Four reads and three writes in f32, and the copy in the computing type.
        let copy = if self.dtype == DType::F32 { 0 } else { self.dtype.size() };
        let bytes = (count * n * (28 + copy)) as f64;
        self.report("adamw", &format!("{count} x {n}"), seconds, Work::Bytes(bytes));
        Ok(())
    }

    /// Muon over the matrices of four blocks: width 256 on the CPU, 1,024 on a GPU.
    pub(super) fn muon(&self) -> Result<()> {
        if !self.wants("muon") {
            return Ok(());
        }
        let (blocks, d) = (4, if self.device.is_cuda() { 1024 } else { 256 });
        let mut store = ParamStore::default();
        let source = Source::Init { seed: 1 };
        let mut builder = ParamBuilder::new(&mut store, &source);
        for i in 0..blocks {
            let mut block = builder.at(i);
            for name in ["q", "k", "v", "o"] {
                block.at(name).param("weight", Role::Attention, [d, d], Init::Normal(0.02))?;
            }
            block.at("up").param("weight", Role::Mlp, [4 * d, d], Init::Normal(0.02))?;
            block.at("down").param("weight", Role::Mlp, [d, 4 * d], Init::Normal(0.02))?;
        }
        store.to_device(self.device, self.dtype)?;
        for param in store.params() {
            // The gradient of half the sum of squares is the parameter.
            let value = param.tensor();
            value.mul(&value)?.sum()?.scale(0.5)?.backward()?;
        }
        let mut states: Vec<_> = store
            .params()
            .iter()
            .map(|param| {
                let zeros = |shape: Shape| Tensor::zeros_on(self.device, shape, DType::F32);
                Ok((zeros(param.shape())?, zeros([inplace::muon_moments(param)].into())?))
            })
            .collect::<lehr_tensor::Result<_>>()?;
        let (beta2, weight_decay, grad_scale) = (0.95, 0.1, 1.0);
        let (momentum, cautious, moves) = (0.95, true, true);
        let rule =
            inplace::Muon { lr: 1e-4, momentum, beta2, weight_decay, cautious, grad_scale, moves };
        let seconds = self.repeated(|| {
            let mut items: Vec<_> = store
                .params()
                .iter()
                .zip(&mut states)
                .map(|(param, (momentum, second))| MuonItem { param, momentum, second })
                .collect();
            inplace::muon_params(&mut items, rule, None)
        })?;
        // Five steps, each a Gram matrix, its square and a product, without use of symmetry.
        let (side, sum) = (d as f64, (4 * d * d + 8 * d * d) as f64);
        let flops = blocks as f64 * 5.0 * (4.0 * side * sum + 6.0 * 2.0 * side.powi(3));
        self.report("muon", &format!("{blocks} blocks of {d}"), seconds, Work::Flops(flops));
        Ok(())
    }
}
