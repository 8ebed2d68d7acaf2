//! The gradients of a running backward pass: the sums so far, and what an op reads and adds.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use lehr_kernels::vectors;

use super::{Edge, Kind, Node};
use crate::{DType, Result, Shape, Tensor, copy};

/// Gradients of inner nodes that have not been visited yet.
#[derive(Default)]
pub(super) struct Pending {
    pub(super) grads: HashMap<(u64, usize), Tensor>,
}

impl Pending {
    /// Removes and returns the sum so far for `edge`.
    pub(super) fn take(&mut self, edge: &Edge) -> Option<Tensor> {
        match &edge.node.kind {
            Kind::Leaf(leaf) => leaf.grad.lock().unwrap_or_else(PoisonError::into_inner).take(),
            Kind::Op(_) => self.grads.remove(&(edge.node.id, edge.output)),
        }
    }

    pub(super) fn put(&mut self, edge: &Edge, grad: Tensor) {
        match &edge.node.kind {
            Kind::Leaf(leaf) => {
                *leaf.grad.lock().unwrap_or_else(PoisonError::into_inner) = Some(grad);
            }
            Kind::Op(_) => {
                self.grads.insert((edge.node.id, edge.output), grad);
            }
        }
    }

    pub(super) fn add(&mut self, edge: &Edge, grad: Tensor) -> Result<()> {
        let sum = match self.take(edge) {
            // Leaves accumulate in f32, whatever their consumers compute in.
            None if edge.is_leaf() => grad.to_f32()?.detach(),
            None => grad,
            Some(sum) => add_into(sum, &grad)?,
        };
        self.put(edge, sum);
        Ok(())
    }
}

/// Computes `sum + grad`, in the storage of `sum` if no other tensor shares it.
fn add_into(sum: Tensor, grad: &Tensor) -> Result<Tensor> {
    let mut sum = unshared(sum)?;
    if sum.is_cuda() {
        copy::add_assign(&mut sum, grad)?;
    } else {
        vectors::add_assign(sum.data_mut(), grad.data());
    }
    Ok(sum)
}

/// Returns the tensor, or a copy if another tensor shares its storage.
pub(crate) fn unshared(tensor: Tensor) -> Result<Tensor> {
    if tensor.is_unique() { Ok(tensor) } else { tensor.duplicate() }
}

/// An op's view of backward: it reads gradients of its outputs and adds to those of its inputs.
/// Inputs are numbered in the order they were recorded.
pub struct Gradients<'a> {
    pub(super) inputs: &'a [Option<Edge>],
    pub(super) outputs: Vec<Option<Tensor>>,
    pub(super) is_seed: bool,
    pub(super) pending: &'a mut Pending,
    /// Nodes that backward visits besides the inputs.
    pub(super) more: Vec<Arc<Node>>,
}

impl Gradients<'_> {
    /// Gives `value` the place of input `index` in the graph: what is computed from it adds to the
    /// gradient of that input.
    pub(super) fn as_input(&self, index: usize, value: Tensor) -> Tensor {
        match &self.inputs[index] {
            Some(edge) => value.with_edge(edge.clone()),
            None => value,
        }
    }

    /// Continues backward from `tensor`, which was just recorded, with the gradient `grad`.
    pub(super) fn continue_from(&mut self, tensor: &Tensor, grad: Tensor) -> Result<()> {
        let Some(edge) = &tensor.edge else { return Ok(()) };
        self.pending.add(edge, grad)?;
        self.more.push(Arc::clone(&edge.node));
        Ok(())
    }

    /// Takes the gradient of output `index`; `None` if nothing depended on that output.
    pub fn output(&mut self, index: usize) -> Option<Tensor> {
        self.outputs[index].take()
    }

    /// Takes the gradient of the only output of an op.
    ///
    /// # Panics
    /// If it was taken before: a node is visited only if its gradient exists.
    pub fn only_output(&mut self) -> Tensor {
        self.output(0).expect("a node of one output is visited because its gradient exists")
    }

    /// Whether backward began here, so that the gradient of the output is known to be 1.
    #[must_use]
    pub fn is_seed(&self) -> bool {
        self.is_seed
    }

    /// Number of inputs the op was recorded with.
    #[must_use]
    pub fn n_inputs(&self) -> usize {
        self.inputs.len()
    }

    /// Whether input `index` wants a gradient.
    #[must_use]
    pub fn wants(&self, index: usize) -> bool {
        self.inputs[index].is_some()
    }

    /// Adds `grad` to the gradient of input `index`, if it wants one.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn add(&mut self, index: usize, grad: Tensor) -> Result<()> {
        match &self.inputs[index] {
            Some(edge) => self.pending.add(edge, grad),
            None => Ok(()),
        }
    }

    /// Lets `body` write the gradient of input `index` in place, if it wants one.
    ///
    /// `body(dst, accumulate)` adds to `dst` if `accumulate`, else overwrites all of it. This
    /// saves the temporary and the pass over memory that [`Gradients::add`] would cost.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn write(
        &mut self,
        index: usize,
        shape: Shape,
        body: impl FnOnce(&mut [f32], bool) -> Result<()>,
    ) -> Result<()> {
        let Some(edge) = &self.inputs[index] else { return Ok(()) };
        let sum = self.pending.take(edge);
        let accumulate = sum.is_some();
        let mut sum = match sum {
            Some(sum) => unshared(sum)?,
            None => Tensor::uninit(shape, DType::F32)?,
        };
        body(sum.data_mut(), accumulate)?;
        self.pending.put(edge, sum);
        Ok(())
    }

    /// Like [`Gradients::write`], on any device: `body(dst, accumulate)` gets a tensor with the
    /// shape, element type and device of `like`, which is the input or a tensor like it.
    ///
    /// # Errors
    /// Those of `body`, or if memory runs out.
    pub fn write_like(
        &mut self,
        index: usize,
        like: &Tensor,
        body: impl FnOnce(&mut Tensor, bool) -> Result<()>,
    ) -> Result<()> {
        self.write_as(index, (like.shape(), like), like.dtype(), body)
    }

    /// Like [`Gradients::write_like`], for a parameter: `dst` is f32, whatever the computing type
    /// of the parameter is.
    ///
    /// # Errors
    /// Those of `body`, or if memory runs out.
    pub fn write_param(
        &mut self,
        index: usize,
        like: &Tensor,
        body: impl FnOnce(&mut Tensor, bool) -> Result<()>,
    ) -> Result<()> {
        self.write_as(index, (like.shape(), like), DType::F32, body)
    }

    /// Like [`Gradients::write_param`], for a parameter with the given shape and the element type
    /// and device of `beside`.
    pub(crate) fn write_param_shaped(
        &mut self,
        index: usize,
        shape: Shape,
        beside: &Tensor,
        body: impl FnOnce(&mut Tensor, bool) -> Result<()>,
    ) -> Result<()> {
        self.write_as(index, (shape, beside), DType::F32, body)
    }

    /// Lets `body` write a gradient of element type `dtype` in place, if input `index` wants one.
    ///
    /// Two types meet here. `dtype` is what the kernel writes; the type that is kept depends on the
    /// consumer of the sum. A leaf is a parameter: its gradient accumulates over micro-batches and
    /// uses of the weight, and 16 bits would lose many small terms, so it is f32. The
    /// gradient of an inner node has as many terms as the value has uses, and the kernels of the
    /// node before it read the computing type.
    fn write_as(
        &mut self,
        index: usize,
        (shape, like): (Shape, &Tensor),
        dtype: DType,
        body: impl FnOnce(&mut Tensor, bool) -> Result<()>,
    ) -> Result<()> {
        let Some(edge) = &self.inputs[index] else { return Ok(()) };
        let kept = if edge.is_leaf() { DType::F32 } else { like.dtype() };
        let room = || Tensor::uninit_on(like.device(), shape, dtype);
        // The kernel cannot write into the sum: a tensor of its own, then a cast and an addition.
        if kept != dtype {
            let mut grad = room()?;
            body(&mut grad, false)?;
            return self.pending.add(edge, grad.cast(kept)?.detach());
        }
        // The sum is taken out of its place while it is written. Then this is its only owner,
        // unless an op passed one tensor on as the gradient of several inputs (an addition does):
        // such a sum is copied first, or the others would see this term too.
        let sum = self.pending.take(edge);
        let accumulate = sum.is_some();
        let mut sum = match sum {
            Some(sum) => unshared(sum)?,
            None => room()?,
        };
        body(&mut sum, accumulate)?;
        self.pending.put(edge, sum);
        Ok(())
    }
}
