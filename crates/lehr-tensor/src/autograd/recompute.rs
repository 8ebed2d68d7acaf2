//! Activation recomputation: a part of the graph that keeps only its inputs until backward.

use super::{Gradients, Op, is_recording, no_grad, record_always};
use crate::cuda::Offloaded;
use crate::{Result, Shape, Tensor};

/// A part of the graph whose forward pass is run again in backward.
pub struct Recompute<D, B> {
    /// Computes the derived inputs, which are not kept, from the kept ones.
    pub derive: D,
    /// Computes the outputs from all inputs, the kept ones first.
    pub body: B,
    /// Whether kept inputs on a GPU wait in host memory. They are copied there and back while the
    /// GPU computes.
    pub offload: bool,
    /// Whether the body uses a trained parameter: the second result of
    /// [`checkpointed_forward`](super::checkpointed_forward).
    pub uses_trained_params: bool,
}

/// An input that is kept.
enum Kept {
    Here(Tensor),
    OnHost { buffer: Offloaded, shape: Shape },
}

impl Kept {
    fn get(&self) -> Result<Tensor> {
        match self {
            Self::Here(tensor) => Ok(tensor.clone()),
            Self::OnHost { buffer, shape } => Ok(Tensor::on_gpu(*shape, buffer.fetch()?)),
        }
    }
}

impl<D, B> Recompute<D, B>
where
    D: Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync + 'static,
    B: Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync + 'static,
{
    /// Records `outputs`, which the body has computed from `kept` and `derived` within
    /// [`checkpointed_forward`](super::checkpointed_forward). Backward runs the body a second time,
    /// so only `kept` stays in memory until then (Chen et al. 2016,
    /// <https://arxiv.org/abs/1604.06174>).
    ///
    /// The body must be a function of its inputs and of parameters alone, and give the same numbers
    /// each time. Then the gradients have the bits of a graph that was recorded at once: the nodes
    /// of the second run replace this node, and backward continues through them. With
    /// [`Tensor::backward_each`] no parameter may be in two such parts, because its gradient would
    /// count as complete after the first.
    ///
    /// Records nothing if no parameter is trained and no input wants a gradient.
    ///
    /// # Errors
    /// If a device fails to copy kept inputs to the host.
    pub fn record<const O: usize>(
        self,
        kept: &[&Tensor],
        derived: &[&Tensor],
        outputs: [Tensor; O],
    ) -> Result<[Tensor; O]> {
        let inputs: Vec<&Tensor> = kept.iter().chain(derived).copied().collect();
        let is_wanted = self.uses_trained_params || inputs.iter().any(|input| input.wants_grad());
        if !is_recording() || !is_wanted {
            return Ok(outputs);
        }
        let keep = |tensor: &&Tensor| match self.offload && tensor.is_cuda() {
            true => {
                let buffer = Offloaded::new(tensor.gpu_buffer()?)?;
                Ok(Kept::OnHost { buffer, shape: tensor.shape() })
            }
            false => Ok(Kept::Here(tensor.detach())),
        };
        let kept = kept.iter().map(keep).collect::<Result<_>>()?;
        let checkpointed = Checkpointed { kept, n_outputs: O, run: self };
        Ok(record_always(&inputs, outputs, || checkpointed))
    }
}

struct Checkpointed<D, B> {
    kept: Vec<Kept>,
    n_outputs: usize,
    run: Recompute<D, B>,
}

impl<D, B> Op for Checkpointed<D, B>
where
    D: Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync + 'static,
    B: Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync + 'static,
{
    fn name(&self) -> &'static str {
        "recompute"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let mut inputs = self.kept.iter().map(Kept::get).collect::<Result<Vec<_>>>()?;
        let derived = no_grad(|| (self.run.derive)(&inputs))?;
        inputs.extend(derived);
        let inputs: Vec<_> =
            inputs.into_iter().enumerate().map(|(i, t)| grads.as_input(i, t)).collect();
        let outputs = (self.run.body)(&inputs)?;
        for index in 0..self.n_outputs {
            if let Some(grad) = grads.output(index) {
                grads.continue_from(&outputs[index], grad)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::checkpointed_forward;
    use crate::ops::activation::Activation;
    use crate::ops::linear::WeightLayout;
    use crate::{DType, Device, Init, Param, ParamBuilder, ParamStore, Role, Source};

    fn weights(n: usize) -> (ParamStore, Vec<Param>) {
        let mut store = ParamStore::default();
        let source = Source::Init { seed: 5 };
        let mut builder = ParamBuilder::new(&mut store, &source);
        let init = Init::Normal(0.4);
        let params = (0..n).map(|i| builder.at(i).param("w", Role::Mlp, [8, 8], init).unwrap());
        let params = params.collect();
        (store, params)
    }

    /// A block with a residual stream `x` and `h = f(x)`, as in the models.
    fn block(x: &Tensor, h: &Tensor, w: &Param) -> Result<Vec<Tensor>> {
        let m = h.linear(&w.tensor(), WeightLayout::OutIn, None)?;
        let x = x.add(&m)?;
        let h = x.activation(Activation::Silu)?;
        Ok(vec![x, h])
    }

    fn gradients(device: Device, again: bool, offload: bool) -> Vec<Vec<f32>> {
        let (store, params) = weights(5);
        store.to_device(device, DType::F32).unwrap();
        let input: Vec<f32> = (0..32).map(|i| (i as f32 * 0.7).sin()).collect();
        let input =
            Tensor::from_slice(&input, [4, 8]).unwrap().to_device(device).unwrap().trainable();
        let mut x = input.scale(1.0).unwrap();
        let mut h = x.activation(Activation::Silu).unwrap();
        for w in &params {
            if again {
                let outputs = no_grad(|| block(&x, &h, w)).unwrap();
                let (w, [x_new, h_new]) = (w.clone(), outputs.try_into().unwrap());
                let recompute = Recompute {
                    derive: |kept: &[Tensor]| Ok(vec![kept[0].activation(Activation::Silu)?]),
                    body: move |all: &[Tensor]| block(&all[0], &all[1], &w),
                    offload,
                    uses_trained_params: true,
                };
                let [x_new, h_new] = recompute.record(&[&x], &[&h], [x_new, h_new]).unwrap();
                (x, h) = (x_new, h_new);
            } else {
                let [x_new, h_new] = block(&x, &h, w).unwrap().try_into().unwrap();
                (x, h) = (x_new, h_new);
            }
        }
        let loss = h.mul(&h).unwrap().sum().unwrap();
        // Backward takes apart what nobody holds.
        drop((x, h));
        let mut done = Vec::new();
        let mut note = |id| {
            done.push(id);
            Ok::<(), crate::Error>(())
        };
        loss.backward_each(&mut note).unwrap();
        let mut backwards: Vec<_> = params.iter().map(Param::id).collect();
        backwards.reverse();
        assert_eq!(done[..5], backwards, "each gradient is complete as backward passes it");
        let of = |grad: Option<Tensor>| grad.unwrap().to_host().unwrap().to_vec();
        let mut all: Vec<_> = store.params().iter().map(|p| of(p.grad())).collect();
        all.push(of(input.grad()));
        all
    }

    #[test]
    fn what_is_computed_again_changes_no_bit() {
        let cpu = |again, offload| gradients(Device::Cpu, again, offload);
        assert_eq!(cpu(false, false), cpu(true, false));
        assert_eq!(cpu(false, false), cpu(true, true));
    }

    #[test]
    fn gpu_what_waits_on_the_host_comes_back_whole() {
        let gpu = |again, offload| gradients(Device::Cuda(0), again, offload);
        let kept = gpu(false, false);
        assert_eq!(kept, gpu(true, false));
        // Twice: the second time in memory of the host that is used again.
        assert_eq!(kept, gpu(true, true));
        assert_eq!(kept, gpu(true, true));
    }

    #[test]
    fn parameters_learn_below_inputs_that_do_not() {
        let (_, params) = weights(1);
        let w = params[0].clone();
        let x = Tensor::full([2, 8], 1.0).unwrap();
        let run = |w: &Param, x: &Tensor| x.linear(&w.tensor(), WeightLayout::OutIn, None);
        let y = no_grad(|| run(&w, &x)).unwrap();
        let again = w.clone();
        let recompute = Recompute {
            derive: |_: &[Tensor]| Ok(Vec::new()),
            body: move |all: &[Tensor]| Ok(vec![run(&again, &all[0])?]),
            offload: false,
            uses_trained_params: true,
        };
        let [y] = recompute.record(&[&x], &[], [y]).unwrap();
        y.sum().unwrap().backward().unwrap();
        assert_eq!(w.grad().unwrap().to_vec(), vec![2.0; 64]);
    }

    #[test]
    fn nothing_is_recorded_without_recording() {
        let x = Tensor::full([1], 1.0).unwrap().trainable();
        let recompute = Recompute {
            derive: |_: &[Tensor]| Ok(Vec::new()),
            body: |all: &[Tensor]| Ok(all.to_vec()),
            offload: false,
            uses_trained_params: true,
        };
        let [y] = no_grad(|| recompute.record(&[&x], &[], [x.detach()])).unwrap();
        assert!(!y.wants_grad());
    }

    #[test]
    fn nothing_is_recorded_where_nothing_is_trained() {
        let (_, params) = weights(1);
        let w = params[0].clone();
        let x = Tensor::full([2, 8], 1.0).unwrap();
        let run = |w: &Param, x: &Tensor| x.linear(&w.tensor(), WeightLayout::OutIn, None);
        for frozen in [true, false] {
            w.set_trainable(!frozen);
            for input in [x.clone(), x.trainable()] {
                let (y, uses_trained_params) = checkpointed_forward(|| run(&w, &input));
                assert_eq!(uses_trained_params, !frozen);
                let again = w.clone();
                let recompute = Recompute {
                    derive: |_: &[Tensor]| Ok(Vec::new()),
                    body: move |all: &[Tensor]| Ok(vec![run(&again, &all[0])?]),
                    offload: false,
                    uses_trained_params,
                };
                let [y] = recompute.record(&[&input], &[], [y.unwrap()]).unwrap();
                assert_eq!(y.wants_grad(), !frozen || input.wants_grad());
                y.sum().unwrap().backward().unwrap();
                assert_eq!(w.grad().is_some(), !frozen);
                w.clear_grad();
            }
        }
    }
}
