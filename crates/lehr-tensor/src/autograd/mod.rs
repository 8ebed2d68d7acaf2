//! Reverse-mode differentiation over recorded nodes.
//!
//! A node owns its op, and the op owns exactly what backward needs. Node numbers grow with
//! creation, so visiting them in descending order is a topological order: no recursion, no sorting.

mod gradients;
mod recompute;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

pub use gradients::Gradients;
use gradients::Pending;
pub(crate) use gradients::unshared;
pub use recompute::Recompute;

use crate::{Error, Result, Tensor, panels};

/// One differentiable function with its saved values.
///
/// `backward` has no default: an op without a gradient does not compile.
pub trait Op: Send + Sync + 'static {
    /// The op's name, as in errors and profiles.
    fn name(&self) -> &'static str;

    /// Reads the gradients of the outputs from `grads` and writes those of the inputs into it.
    ///
    /// # Errors
    /// If memory runs out.
    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()>;
}

/// A gradient buffer of a leaf: empty until backward first reaches it.
#[derive(Default)]
pub(crate) struct Leaf {
    pub(crate) grad: Mutex<Option<Tensor>>,
}

/// Identity of a parameter, shared by all its clones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ParamId(usize);

impl ParamId {
    pub(crate) fn of(leaf: &Arc<Leaf>) -> Self {
        Self(Arc::as_ptr(leaf) as usize)
    }
}

enum Kind {
    Leaf(Arc<Leaf>),
    Op(Box<dyn Op>),
}

pub(crate) struct Node {
    id: u64,
    kind: Kind,
    inputs: Vec<Option<Edge>>,
    n_outputs: usize,
}

/// Position of a tensor in the graph: its node, and its index among the outputs.
#[derive(Clone)]
pub(crate) struct Edge {
    node: Arc<Node>,
    output: usize,
}

/// Frees a chain of nodes in a loop: the derived drop recurses once per op and would overflow the
/// stack near 10,000 chained ops.
impl Drop for Node {
    fn drop(&mut self) {
        let mut stack = std::mem::take(&mut self.inputs);
        while let Some(edge) = stack.pop() {
            if let Some(mut node) = edge.and_then(|e| Arc::into_inner(e.node)) {
                stack.append(&mut node.inputs);
            }
        }
    }
}

/// What the ops of a thread record.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Ops are recorded if an input wants a gradient.
    Record,
    /// Ops are not recorded: backward recomputes them, and then records them.
    Checkpointed,
    /// Ops are not recorded.
    NoGrad,
}

thread_local! {
    static MODE: Cell<Mode> = const { Cell::new(Mode::Record) };
    /// Whether the checkpointed forward pass of this thread has used a trained parameter.
    static USES_TRAINED: Cell<bool> = const { Cell::new(false) };
}

fn with_mode<T>(mode: Mode, body: impl FnOnce() -> T) -> T {
    struct Restore(Mode);
    impl Drop for Restore {
        fn drop(&mut self) {
            MODE.set(self.0);
        }
    }
    let _restore = Restore(MODE.replace(mode));
    body()
}

/// Runs `body` without recording: its results carry no graph and its ops save nothing.
pub fn no_grad<T>(body: impl FnOnce() -> T) -> T {
    with_mode(Mode::NoGrad, body)
}

/// Runs the first forward pass of a part of the graph whose activations are recomputed.
///
/// Nothing is recorded, as in [`no_grad`], but ops choose the kernels they would choose while
/// recording: [`Recompute`] repeats this pass in backward with recording on, and both passes must
/// give the same bits. (The last bits may differ where no input and no parameter of an op wants a
/// gradient, because such an op is not recorded.)
///
/// The second result says whether a trained parameter took part. If none did, and no input wants a
/// gradient, there is nothing to recompute.
pub fn checkpointed_forward<T>(body: impl FnOnce() -> T) -> (T, bool) {
    let outer = USES_TRAINED.replace(false);
    let result = with_mode(Mode::Checkpointed, body);
    let uses_trained = USES_TRAINED.get();
    USES_TRAINED.set(outer || uses_trained);
    (result, uses_trained)
}

/// Notes that a checkpointed forward pass uses a trained parameter.
pub(crate) fn note_trained_param() {
    if MODE.get() == Mode::Checkpointed {
        USES_TRAINED.set(true);
    }
}

/// Whether ops called now would be recorded if an input wants a gradient.
#[must_use]
pub fn is_recording() -> bool {
    MODE.get() == Mode::Record
}

/// Whether ops called now are recorded, in this pass or when backward recomputes it.
pub(crate) fn is_training() -> bool {
    MODE.get() != Mode::NoGrad
}

fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Tensor {
    /// The same values as a leaf whose gradient [`Tensor::grad`] reports after backward.
    #[must_use]
    pub fn trainable(&self) -> Self {
        self.as_leaf(Arc::default())
    }

    pub(crate) fn as_leaf(&self, leaf: Arc<Leaf>) -> Self {
        let kind = Kind::Leaf(leaf);
        let node = Arc::new(Node { id: next_id(), kind, inputs: Vec::new(), n_outputs: 1 });
        self.clone().with_edge(Edge { node, output: 0 })
    }

    /// The gradient of a leaf, once backward has reached it.
    #[must_use]
    pub fn grad(&self) -> Option<Self> {
        match &self.edge.as_ref()?.node.kind {
            Kind::Leaf(leaf) => leaf.grad.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            Kind::Op(_) => None,
        }
    }

    /// Runs backward from this one-element tensor with gradient 1. Gradients of leaves are added
    /// to what they hold. Saved values are freed as soon as they have been used.
    ///
    /// # Errors
    /// If it has more than one element, or memory runs out.
    pub fn backward(self) -> Result<()> {
        if self.shape().n_elements() != 1 {
            let (op, found) = ("backward", self.shape());
            return Err(Error::Rank { op, found, expected: "one element (a loss)".into() });
        }
        let one = self.ones_like()?;
        self.walk(one, true, &mut |_| true)
    }

    /// [`Tensor::backward`] that calls `done` with each parameter as soon as its gradient is
    /// complete, while backward continues. If `done` updates the parameter and clears the gradient,
    /// no two gradients need memory at once. It is not called for a parameter that something
    /// outside of this graph still holds as a leaf.
    ///
    /// # Errors
    /// As [`Tensor::backward`], and the first error of `done`, after which nothing more is
    /// computed.
    pub fn backward_each<E: From<Error>>(
        self,
        mut done: impl FnMut(ParamId) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let one = self.ones_like()?;
        let mut failed = None;
        self.walk(one, true, &mut |leaf| match done(ParamId::of(leaf)) {
            Ok(()) => true,
            Err(error) => {
                failed = Some(error);
                false
            }
        })?;
        failed.map_or(Ok(()), Err)
    }

    /// Ones of this tensor's shape, element type and device: the gradient of a loss with respect to
    /// itself.
    fn ones_like(&self) -> Result<Self> {
        Self::full(self.shape(), 1.0)?.cast(self.dtype())?.to_device(self.device())
    }

    /// Runs backward with the given gradient of this tensor.
    ///
    /// # Errors
    /// If the shapes differ, or memory runs out.
    pub fn backward_with(self, grad: Self) -> Result<()> {
        self.walk(grad, false, &mut |_| true)
    }

    /// Visits the nodes from the newest to the oldest. `on_leaf` sees every leaf whose gradient is
    /// complete, and ends the walk with `false`. `is_one` says that `grad` is all ones.
    fn walk(
        self,
        grad: Self,
        is_one: bool,
        on_leaf: &mut dyn FnMut(&Arc<Leaf>) -> bool,
    ) -> Result<()> {
        if grad.shape() != self.shape() {
            let rule = "a gradient has the shape of its tensor";
            return Err(Error::Shape {
                op: "backward",
                lhs: grad.shape(),
                rhs: self.shape(),
                rule,
            });
        }
        let Some(root) = self.edge.clone() else { return Ok(()) };
        drop(self);
        // Backward has other uses for its memory.
        panels::forget_last_input();
        let mut pending = Pending::default();
        pending.add(&root, grad)?;
        let seed = is_one.then_some(root.node.id);
        let mut queue = BTreeMap::from([(root.node.id, root.node)]);
        while let Some((_, mut node)) = queue.pop_last() {
            let outputs: Vec<_> =
                (0..node.n_outputs).map(|o| pending.grads.remove(&(node.id, o))).collect();
            let op = match &node.kind {
                Kind::Op(op) => op,
                Kind::Leaf(leaf) => {
                    let leaf = Arc::clone(leaf);
                    drop(node);
                    // Only its parameter and this clone hold it: no node is left that could add.
                    if Arc::strong_count(&leaf) == 2 && !on_leaf(&leaf) {
                        return Ok(());
                    }
                    continue;
                }
            };
            // A node that nothing depends on has no gradient: only its inputs are queued.
            if outputs.iter().any(Option::is_some) {
                #[cfg(test)]
                visited::note(op.name());
                let (inputs, is_seed) = (&node.inputs[..], seed == Some(node.id));
                let (pending, more) = (&mut pending, Vec::new());
                let mut grads = Gradients { inputs, outputs, is_seed, pending, more };
                op.backward(&mut grads)?;
                queue.extend(grads.more.into_iter().map(|node| (node.id, node)));
            }
            // The node dies here unless the caller still holds a tensor of it.
            match Arc::get_mut(&mut node) {
                Some(unique) => {
                    for edge in std::mem::take(&mut unique.inputs).into_iter().flatten() {
                        queue.insert(edge.node.id, edge.node);
                    }
                }
                None => {
                    for edge in node.inputs.iter().flatten() {
                        queue.insert(edge.node.id, Arc::clone(&edge.node));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Records `op` behind `outputs` if recording is on and an input wants a gradient. Otherwise the
/// op is not even built.
pub(crate) fn record<O: Op, const N: usize>(
    inputs: &[&Tensor],
    outputs: [Tensor; N],
    op: impl FnOnce() -> O,
) -> [Tensor; N] {
    if will_record(inputs) { record_always(inputs, outputs, op) } else { outputs }
}

/// Records `op` behind `outputs` unconditionally.
fn record_always<O: Op, const N: usize>(
    inputs: &[&Tensor],
    outputs: [Tensor; N],
    op: impl FnOnce() -> O,
) -> [Tensor; N] {
    let node = Arc::new(Node {
        id: next_id(),
        kind: Kind::Op(Box::new(op())),
        inputs: inputs.iter().map(|t| t.edge.clone()).collect(),
        n_outputs: N,
    });
    let mut output = 0;
    outputs.map(|tensor| {
        let edge = Edge { node: Arc::clone(&node), output };
        output += 1;
        tensor.with_edge(edge)
    })
}

/// [`record`] for ops of one output.
pub(crate) fn record1<O: Op>(inputs: &[&Tensor], output: Tensor, op: impl FnOnce() -> O) -> Tensor {
    let [output] = record(inputs, [output], op);
    output
}

/// Whether backward will run through an op over these inputs, which is recorded now or when
/// backward recomputes it.
pub(crate) fn will_run_backward(inputs: &[&Tensor]) -> bool {
    MODE.get() == Mode::Checkpointed || will_record(inputs)
}

/// Whether an op over these inputs would be recorded.
pub(crate) fn will_record(inputs: &[&Tensor]) -> bool {
    is_recording() && inputs.iter().any(|t| t.wants_grad())
}

impl Edge {
    fn is_leaf(&self) -> bool {
        matches!(self.node.kind, Kind::Leaf(_))
    }
}

/// The ops that ran backward on this thread, for the test that demands a case for each.
#[cfg(test)]
pub(crate) mod visited {
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    thread_local! {
        static NAMES: RefCell<Option<BTreeSet<String>>> = const { RefCell::new(None) };
    }

    pub(crate) fn start() {
        NAMES.set(Some(BTreeSet::new()));
    }

    pub(crate) fn note(name: &str) {
        NAMES.with_borrow_mut(|names| names.as_mut().map(|n| n.insert(name.to_owned())));
    }

    pub(crate) fn stop() -> BTreeSet<String> {
        NAMES.take().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deep_graphs_do_not_overflow_the_stack() {
        let x = Tensor::full([1], 1.0).unwrap().trainable();
        let mut y = x.clone();
        for _ in 0..100_000 {
            y = y.add(&x).unwrap();
        }
        let dropped = y.clone();
        y.backward().unwrap();
        drop(dropped);
        assert_eq!(x.grad().unwrap().to_vec(), [100_001.0]);
    }

    #[test]
    fn no_grad_records_nothing() {
        let x = Tensor::full([4], 1.0).unwrap().trainable();
        assert!(x.add(&x).unwrap().wants_grad());
        assert!(!no_grad(|| x.add(&x).unwrap()).wants_grad());
        assert!(is_recording());
    }

    #[test]
    fn gradients_of_two_backwards_add_up() {
        let x = Tensor::full([1], 3.0).unwrap().trainable();
        for _ in 0..2 {
            x.mul(&x).unwrap().backward().unwrap();
        }
        assert_eq!(x.grad().unwrap().to_vec(), [12.0]);
    }
}
