//! Parameters: named, ordered, with their gradients.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::autograd::{Leaf, ParamId};
use crate::quant::QMatrix;
use crate::{Error, Philox, Result, Shape, Tensor, is_recording};

/// How a parameter without a checkpoint starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// One value everywhere: 1 for norm weights, 0 for biases.
    Constant(f32),
    /// Normal with mean 0 and this standard deviation.
    Normal(f32),
    /// Uniform in `[-bound, bound)`.
    Uniform(f32),
}

struct Inner {
    name: String,
    shape: Shape,
    value: Mutex<Tensor>,
    leaf: Arc<Leaf>,
    trainable: AtomicBool,
}

/// One learnable tensor. Clones are the same parameter: tied weights are one `Param` used twice.
#[derive(Clone)]
pub struct Param(Arc<Inner>);

impl Param {
    /// Its path, which is its name in checkpoints.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its shape.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.0.shape
    }

    /// Which parameter this is, in [`Tensor::backward_each`].
    #[must_use]
    pub fn id(&self) -> ParamId {
        ParamId::of(&self.0.leaf)
    }

    /// The value as a tensor for the forward pass; a leaf of the graph if it is trained.
    #[must_use]
    pub fn tensor(&self) -> Tensor {
        let value = self.value().clone();
        if is_recording() && self.is_trainable() {
            return value.as_leaf(Arc::clone(&self.0.leaf));
        }
        value
    }

    fn value(&self) -> MutexGuard<'_, Tensor> {
        self.0.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn grad_slot(&self) -> MutexGuard<'_, Option<Tensor>> {
        self.0.leaf.grad.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether backward computes its gradient and the optimiser changes it.
    #[must_use]
    pub fn is_trainable(&self) -> bool {
        self.0.trainable.load(Ordering::Relaxed)
    }

    /// Freezes or frees it.
    pub fn set_trainable(&self, trainable: bool) {
        self.0.trainable.store(trainable, Ordering::Relaxed);
    }

    /// The gradient gathered since the last [`Param::clear_grad`], if any.
    #[must_use]
    pub fn grad(&self) -> Option<Tensor> {
        self.grad_slot().clone()
    }

    /// Forgets the gradient. Its memory goes back to the arena, where the next forward pass finds
    /// it: gradients and activations share their room.
    pub fn clear_grad(&self) {
        *self.grad_slot() = None;
    }

    /// Replaces the value.
    ///
    /// # Errors
    /// If the shape differs.
    pub fn set(&self, value: &Tensor) -> Result<()> {
        if value.shape() != self.shape() {
            let rule = "a parameter keeps its shape";
            return Err(Error::Shape { op: "set", lhs: value.shape(), rhs: self.shape(), rule });
        }
        *self.value() = Tensor::from_slice(value.data(), value.shape())?;
        Ok(())
    }

    /// Lets `body(value, grad)` change the value in place; `grad` is `None` if backward did not
    /// reach the parameter.
    ///
    /// # Errors
    /// If a graph or a clone still uses the value.
    pub fn update<T>(&self, body: impl FnOnce(&mut [f32], Option<&[f32]>) -> T) -> Result<T> {
        let mut value = self.value();
        if !value.is_unique() {
            return Err(Error::InUse { name: self.0.name.clone() });
        }
        let grad = self.grad_slot();
        Ok(body(value.data_mut(), grad.as_ref().map(Tensor::data)))
    }

    /// Lets `body` change the gradient in place, if there is one (clipping, averaging).
    pub fn update_grad(&self, body: impl FnOnce(&mut [f32])) {
        let mut slot = self.grad_slot();
        if let Some(grad) = slot.as_mut().filter(|g| g.is_unique()) {
            body(grad.data_mut());
        } else if let Some(grad) = slot.take() {
            let mut values = grad.to_vec();
            body(&mut values);
            *slot = Tensor::from_slice(&values, grad.shape()).ok();
        }
    }
}

/// The matrix of a layer: a parameter, or one that is used as it is stored.
#[derive(Clone)]
pub enum Weight {
    /// In f32; it can be trained.
    Param(Param),
    /// In a stored form `[out, in]`; it stays as it is.
    Stored(QMatrix),
}

impl Weight {
    /// The parameter, if it is one.
    #[must_use]
    pub fn param(&self) -> Option<&Param> {
        match self {
            Self::Param(param) => Some(param),
            Self::Stored(_) => None,
        }
    }

    /// Bytes that its numbers take.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        match self {
            Self::Param(param) => 4 * param.shape().n_elements(),
            Self::Stored(matrix) => matrix.n_bytes(),
        }
    }
}

/// The parameters of a model in the order they were built, and the matrices that are used as they
/// are stored.
#[derive(Clone, Default)]
pub struct ParamStore {
    params: Vec<Param>,
    by_name: HashMap<String, usize>,
    stored: Vec<(String, QMatrix)>,
}

impl ParamStore {
    /// All parameters, in order.
    #[must_use]
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// The parameter of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Param> {
        self.by_name.get(name).map(|i| &self.params[*i])
    }

    /// The matrices that are used as they are stored, in order: not among
    /// [`params`](Self::params).
    #[must_use]
    pub fn stored(&self) -> &[(String, QMatrix)] {
        &self.stored
    }

    /// Number of values, those of stored matrices included, tied weights counted once.
    #[must_use]
    pub fn n_values(&self) -> usize {
        let stored: usize = self.stored.iter().map(|(_, w)| w.rows() * w.cols()).sum();
        stored + self.params.iter().map(|p| p.shape().n_elements()).sum::<usize>()
    }

    /// Bytes that the values take.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        let stored: usize = self.stored.iter().map(|(_, w)| w.n_bytes()).sum();
        stored + self.params.iter().map(|p| 4 * p.shape().n_elements()).sum::<usize>()
    }

    /// Forgets all gradients.
    pub fn clear_grads(&self) {
        self.params.iter().for_each(Param::clear_grad);
    }

    fn add(&mut self, name: String, value: Tensor) -> Result<Param> {
        if self.by_name.contains_key(&name) {
            return Err(Error::DuplicateParam { name });
        }
        self.by_name.insert(name.clone(), self.params.len());
        let param = Param(Arc::new(Inner {
            name,
            shape: value.shape(),
            value: Mutex::new(value),
            leaf: Arc::default(),
            trainable: AtomicBool::new(true),
        }));
        self.params.push(param.clone());
        Ok(param)
    }
}

/// Reads a parameter by name and shape; `Ok(None)` = start as new, an error is text to be shown.
pub type Load<'a> = dyn Fn(&str, Shape) -> std::result::Result<Option<Tensor>, String> + 'a;

/// Finds a matrix `[rows, cols]` in its stored form by name; `None` = load it as a parameter.
pub type LoadStored<'a> = dyn Fn(&str, StoredShape) -> Option<QMatrix> + 'a;

/// Which matrix is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredShape {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Whether the parameter of that name would be `[cols, rows]`.
    pub transposed: bool,
}

/// Where the values of new parameters come from.
pub enum Source<'a> {
    /// Random, each parameter from its own stream named by its path, so that adding a layer does
    /// not change the others.
    Init {
        /// Seed of all streams.
        seed: u64,
    },
    /// A checkpoint.
    Load {
        /// The reader.
        load: &'a Load<'a>,
        /// Finds matrices that are used as they are stored; `None` = there are none.
        stored: Option<&'a LoadStored<'a>>,
        /// Seed for the parameters the reader does not have.
        seed: u64,
    },
}

/// Builds parameters below a path: `p.at("layers").at(3).param("weight", …)` is
/// `layers.3.weight`.
pub struct ParamBuilder<'a> {
    path: String,
    store: &'a mut ParamStore,
    source: &'a Source<'a>,
}

impl<'a> ParamBuilder<'a> {
    /// A builder at the root of a store.
    pub fn new(store: &'a mut ParamStore, source: &'a Source<'a>) -> Self {
        Self { path: String::new(), store, source }
    }

    /// A builder one level deeper.
    pub fn at(&mut self, part: impl std::fmt::Display) -> ParamBuilder<'_> {
        let path = self.join(&part.to_string());
        ParamBuilder { path, store: &mut *self.store, source: self.source }
    }

    /// Adds the parameter `name` below the present path.
    ///
    /// # Errors
    /// If the name is taken, the source fails or memory runs out.
    pub fn param(&mut self, name: &str, shape: impl Into<Shape>, init: Init) -> Result<Param> {
        let (name, shape) = (self.join(name), shape.into());
        let value = match self.source {
            Source::Init { seed } => initial(*seed, &name, shape, init)?,
            Source::Load { load, seed, .. } => match load(&name, shape) {
                Ok(Some(value)) => value,
                Ok(None) => initial(*seed, &name, shape, init)?,
                Err(reason) => return Err(Error::Source { name, shape, reason }),
            },
        };
        self.store.add(name, value)
    }

    /// Adds the matrix `name` of a layer: in its stored form if the source has it so, else as a
    /// parameter of `shape`, `[out, in]` or, if `transposed`, `[in, out]`.
    ///
    /// # Errors
    /// As [`ParamBuilder::param`].
    pub fn matrix(
        &mut self,
        name: &str,
        shape: [usize; 2],
        transposed: bool,
        init: Init,
    ) -> Result<Weight> {
        if let Source::Load { stored: Some(find), .. } = self.source {
            let [rows, cols] = if transposed { [shape[1], shape[0]] } else { shape };
            let path = self.join(name);
            if let Some(matrix) = find(&path, StoredShape { rows, cols, transposed }) {
                self.store.stored.push((path, matrix.clone()));
                return Ok(Weight::Stored(matrix));
            }
        }
        Ok(Weight::Param(self.param(name, shape, init)?))
    }

    fn join(&self, part: &str) -> String {
        if self.path.is_empty() { part.to_owned() } else { format!("{}.{part}", self.path) }
    }
}

fn initial(seed: u64, name: &str, shape: Shape, init: Init) -> Result<Tensor> {
    let mut value = Tensor::zeros(shape)?;
    let stream = Philox::new(seed, fnv1a(name));
    match init {
        Init::Constant(c) => value.data_mut().fill(c),
        Init::Normal(std) => stream.fill_normal(value.data_mut(), std),
        Init::Uniform(bound) => stream.fill_uniform(value.data_mut(), bound),
    }
    Ok(value)
}

/// FNV-1a, 64 bits: names the random stream of a parameter.
fn fnv1a(name: &str) -> u64 {
    name.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}
