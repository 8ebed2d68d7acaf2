//! Parameters: named, ordered, with their gradients.

mod build;
mod form;
mod pattern;
mod role;
mod store;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::autograd::{Leaf, ParamId, note_trained_param};
use crate::panels::WeightPanels;
use crate::quant::QMatrix;
use crate::{DType, Device, Error, Result, Shape, Tensor, is_recording};
pub use build::{Load, LoadStored, ParamBuilder, Source, StoredShape};
pub use form::{MatrixForm, OutputParts, OutputRuns};
pub use pattern::NamePattern;
pub use role::Role;
pub use store::{Named, ParamStore, StoredMatrix};

/// Initial values of a parameter without a checkpoint.
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
    role: Role,
    shape: Shape,
    value: Mutex<Tensor>,
    /// The value in the computing type, on a GPU. It is kept with the f32 value, and both are
    /// written together.
    shadow: Mutex<Option<Tensor>>,
    /// Copies in bf16 for products on the CPU, if it is computed with in bf16 there.
    panels: Mutex<Option<Arc<WeightPanels>>>,
    leaf: Arc<Leaf>,
    trainable: AtomicBool,
    fp8: AtomicBool,
    form: OnceLock<MatrixForm>,
}

/// One learnable tensor. Clones are the same parameter: tied weights are one `Param` used twice.
#[derive(Clone)]
pub struct Param(Arc<Inner>);

impl Param {
    fn new(name: String, role: Role, value: Tensor) -> Self {
        Self(Arc::new(Inner {
            name,
            role,
            shape: value.shape(),
            value: Mutex::new(value),
            shadow: Mutex::default(),
            panels: Mutex::default(),
            leaf: Arc::default(),
            trainable: AtomicBool::new(true),
            fp8: AtomicBool::new(false),
            form: OnceLock::new(),
        }))
    }

    /// Returns its path, which is its name in checkpoints.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Returns its role.
    #[must_use]
    pub fn role(&self) -> Role {
        self.0.role
    }

    /// Returns its shape.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.0.shape
    }

    /// Returns the form of the matrix of a linear map. It is `[out, in]` and one map unless
    /// [`Param::set_form`] says otherwise.
    #[must_use]
    pub fn form(&self) -> MatrixForm {
        self.0.form.get().copied().unwrap_or_default()
    }

    /// Sets the form of the matrix, once: where the layer is built.
    pub fn set_form(&self, form: MatrixForm) {
        self.0.form.get_or_init(|| form);
    }

    /// Returns its identity for [`Tensor::backward_each`].
    #[must_use]
    pub fn id(&self) -> ParamId {
        ParamId::of(&self.0.leaf)
    }

    /// The value as a tensor for the forward pass, in the type it is computed with; a leaf of the
    /// graph if it is trained.
    #[must_use]
    pub fn tensor(&self) -> Tensor {
        let shadow = self.shadow().clone();
        let value = shadow.unwrap_or_else(|| self.value().clone());
        self.as_leaf(value.with_panels(self.panels().clone()))
    }

    /// Returns [`Param::tensor`] in f32, whatever the computing type: the scales and shifts of
    /// norms.
    #[must_use]
    pub fn tensor_f32(&self) -> Tensor {
        self.as_leaf(self.value().clone())
    }

    fn as_leaf(&self, value: Tensor) -> Tensor {
        if !self.is_trainable() {
            return value;
        }
        note_trained_param();
        if is_recording() { value.as_leaf(Arc::clone(&self.0.leaf)) } else { value }
    }

    fn value(&self) -> MutexGuard<'_, Tensor> {
        self.0.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shadow(&self) -> MutexGuard<'_, Option<Tensor>> {
        self.0.shadow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn panels(&self) -> MutexGuard<'_, Option<Arc<WeightPanels>>> {
        self.0.panels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The type of products with it.
    pub(crate) fn compute_dtype(&self) -> DType {
        match (self.shadow().as_ref(), self.panels().is_some()) {
            (Some(shadow), _) => shadow.dtype(),
            (None, true) => DType::BF16,
            (None, false) => DType::F32,
        }
    }

    /// Moves it to `device` and chooses the type it is computed with: f32, bf16, or on a GPU also
    /// f16. Copies in 16 bits are then kept beside the f32 value: of all parameters on a GPU, of
    /// matrices on the CPU, where only products are in bf16. Its gradient is dropped.
    ///
    /// # Errors
    /// If memory runs out or a device fails.
    pub fn to_device(&self, device: Device, dtype: DType) -> Result<()> {
        if !device.is_cuda() && !matches!(dtype, DType::F32 | DType::BF16) {
            return Err(Error::DType { op: "to_device", found: dtype, expected: DType::F32 });
        }
        self.clear_grad();
        let mut value = self.value();
        let moved = value.to_device(device)?;
        let in_panels = !device.is_cuda() && dtype == DType::BF16 && self.shape().len() == 2;
        *self.panels() = in_panels.then(Arc::default);
        *self.shadow() = match dtype {
            _ if !device.is_cuda() => None,
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

    /// Bytes that a forward pass reads: of the copy in the type it is computed with, if there is
    /// one.
    #[must_use]
    pub fn read_bytes(&self) -> usize {
        let size = self.shadow().as_ref().map_or(DType::F32, Tensor::dtype).size();
        size * self.shape().n_elements()
    }

    /// Returns its device.
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

    /// Freezes the parameter (`false`) or makes it trainable again. A frozen parameter is a
    /// constant of the forward pass: backward does not reach it, and computes nothing that only it
    /// would need. Its gradient, if any, is dropped.
    ///
    /// Freeze parameters before creating the optimiser, which allocates state for the trained ones.
    pub fn set_trainable(&self, trainable: bool) {
        self.0.trainable.store(trainable, Ordering::Relaxed);
        if !trainable {
            self.clear_grad();
        }
    }

    /// Whether products with it may be in fp8 during training ([`crate::ops::linear::Affine`]).
    #[must_use]
    pub fn is_fp8(&self) -> bool {
        self.0.fp8.load(Ordering::Relaxed)
    }

    /// Returns the gradient accumulated since the last [`Param::clear_grad`], if any.
    #[must_use]
    pub fn grad(&self) -> Option<Tensor> {
        self.grad_slot().clone()
    }

    /// Frees the gradient. The next forward pass reuses its memory: gradients and activations share
    /// the arena.
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
        // A separate copy, because the caller may keep using `value`.
        let moved =
            if value.device() == device { value.duplicate()? } else { value.to_device(device)? };
        if dtype != DType::F32 {
            *self.shadow() = Some(moved.cast(dtype)?.detach());
        }
        if let Some(panels) = &mut *self.panels() {
            *panels = Arc::default();
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
        let result = body(value.data_mut(), grad.as_ref().map(Tensor::data));
        if let Some(panels) = &*self.panels() {
            panels.refresh(value.data(), self.shape());
        }
        Ok(result)
    }
}

/// The matrix of a layer: a parameter, or a matrix in its storage format.
#[derive(Clone)]
pub enum Weight {
    /// In f32; it can be trained.
    Param(Param),
    /// In a storage format `[out, in]`; it cannot be trained.
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
