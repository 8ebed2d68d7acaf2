//! Parameters: named, ordered, with their gradients.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::autograd::{Leaf, ParamId};
use crate::ops::linear;
use crate::quant::QMatrix;
use crate::{DType, Device, Error, Philox, Result, Shape, Tensor, is_recording};

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
    /// The value rounded to the type it is computed with, on a GPU: kept beside the f32 value and written with it.
    shadow: Mutex<Option<Tensor>>,
    leaf: Arc<Leaf>,
    trainable: AtomicBool,
    fp8: AtomicBool,
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

    /// The value as a tensor for the forward pass, in the type it is computed with; a leaf of the graph if it is trained.
    #[must_use]
    pub fn tensor(&self) -> Tensor {
        let shadow = self.shadow().clone();
        self.as_leaf(shadow.unwrap_or_else(|| self.value().clone()))
    }

    /// [`Param::tensor`] in f32, whatever it is computed with: the scales and shifts of norms.
    #[must_use]
    pub fn tensor_f32(&self) -> Tensor {
        self.as_leaf(self.value().clone())
    }

    fn as_leaf(&self, value: Tensor) -> Tensor {
        if is_recording() && self.is_trainable() {
            return value.as_leaf(Arc::clone(&self.0.leaf));
        }
        value
    }

    fn value(&self) -> MutexGuard<'_, Tensor> {
        self.0.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shadow(&self) -> MutexGuard<'_, Option<Tensor>> {
        self.0.shadow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves it to `device`, where it is computed with in `dtype`: f32, or on a GPU also bf16 or f16, of which a copy is then kept.
    /// Its gradient is forgotten.
    ///
    /// # Errors
    /// If memory runs out or a device fails.
    pub fn to_device(&self, device: Device, dtype: DType) -> Result<()> {
        if !device.is_cuda() && dtype != DType::F32 {
            return Err(Error::DType { op: "to_device", found: dtype, expected: DType::F32 });
        }
        self.clear_grad();
        let mut value = self.value();
        let moved = value.to_device(device)?;
        *self.shadow() = match dtype {
            DType::F32 => None,
            _ => Some(moved.cast(dtype)?.detach()),
        };
        *value = moved;
        Ok(())
    }

    /// The value and its copy, for a kernel that writes both.
    pub(crate) fn parts_to_write(&self) -> Result<(Tensor, Option<Tensor>)> {
        let (value, shadow) = (self.value(), self.shadow());
        if value.is_unique() && shadow.as_ref().is_none_or(Tensor::is_unique) {
            return Ok((value.clone(), shadow.clone()));
        }
        Err(Error::InUse { name: self.0.name.clone() })
    }

    /// Bytes that a forward pass reads: of the copy in the type it is computed with, if there is one.
    #[must_use]
    pub fn read_bytes(&self) -> usize {
        let size = self.shadow().as_ref().map_or(DType::F32, Tensor::dtype).size();
        size * self.shape().n_elements()
    }

    /// Where it lives.
    #[must_use]
    pub fn device(&self) -> Device {
        self.value().device()
    }

    /// The value in f32 on the CPU.
    ///
    /// # Errors
    /// If memory runs out or a device fails.
    pub fn to_host(&self) -> Result<Tensor> {
        let value = self.value().clone();
        value.to_host()
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

    /// Whether products with it may be in fp8 during training ([`crate::ops::linear::Affine`]).
    #[must_use]
    pub fn is_fp8(&self) -> bool {
        self.0.fp8.load(Ordering::Relaxed)
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
        let (device, dtype) =
            (self.device(), self.shadow().as_ref().map_or(DType::F32, Tensor::dtype));
        // A copy of its own: `value` may go on being used by whoever gave it.
        let moved =
            if value.device() == device { value.duplicate()? } else { value.to_device(device)? };
        if dtype != DType::F32 {
            *self.shadow() = Some(moved.cast(dtype)?.detach());
        }
        *self.value() = moved;
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
    /// Which of them are matrices of layers.
    matrices: Vec<usize>,
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

    /// Bytes that a forward pass which uses everything reads.
    #[must_use]
    pub fn read_bytes(&self) -> usize {
        let stored: usize = self.stored.iter().map(|(_, w)| w.n_bytes()).sum();
        stored + self.params.iter().map(Param::read_bytes).sum::<usize>()
    }

    /// From now on training multiplies the matrices of layers in fp8 whose both sides are multiples of 16 and at least `side_min`; how
    /// many there are. Tables of embeddings are none.
    pub fn use_fp8(&self, side_min: usize) -> usize {
        let fits = |side: &usize| *side >= side_min && side.is_multiple_of(linear::fp8::MULTIPLE);
        let matrices = self.matrices.iter().map(|index| &self.params[*index]);
        let wide = matrices.filter(|param| param.shape().iter().all(fits));
        wide.map(|param| param.0.fp8.store(true, Ordering::Relaxed)).count()
    }

    /// Moves all parameters to `device`, where they are computed with in `dtype` ([`Param::to_device`]), and stored matrices, in
    /// their form.
    ///
    /// # Errors
    /// If memory runs out or a device fails.
    pub fn to_device(&self, device: Device, dtype: DType) -> Result<()> {
        self.params.iter().try_for_each(|param| param.to_device(device, dtype))?;
        self.stored.iter().try_for_each(|(_, matrix)| matrix.to_device(device, dtype))
    }

    /// Where the parameters live and what they are computed with; the CPU and f32 if there are none.
    #[must_use]
    pub fn compute(&self) -> (Device, DType) {
        let of = |param: &Param| {
            let shadow = param.shadow().as_ref().map(Tensor::dtype);
            (param.device(), shadow.unwrap_or(DType::F32))
        };
        self.params.first().map_or((Device::Cpu, DType::F32), of)
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
            shadow: Mutex::default(),
            leaf: Arc::default(),
            trainable: AtomicBool::new(true),
            fp8: AtomicBool::new(false),
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
        let param = self.param(name, shape, init)?;
        self.store.matrices.push(self.store.params.len() - 1);
        Ok(Weight::Param(param))
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
