//! `Tensor`: a shape over shared storage, plus the node that produced it if a gradient is wanted.

use std::fmt;
use std::sync::Arc;

use crate::autograd::Edge;
use crate::cpu::buffer::{CpuBuffer, Element};
use crate::{DType, Error, Result, Shape, threads};

/// Where a tensor lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// Main memory and the processor's cores.
    Cpu,
}

/// The memory behind a tensor, one arm per device.
#[derive(Clone, Debug)]
pub(crate) enum Storage {
    Cpu(Arc<CpuBuffer>),
}

/// A contiguous row-major array. Clones share storage; values are never changed in place while
/// shared.
#[derive(Clone)]
pub struct Tensor {
    shape: Shape,
    storage: Storage,
    pub(crate) edge: Option<Edge>,
}

impl Tensor {
    /// A tensor of unspecified values, to be filled through [`Tensor::data_mut`].
    ///
    /// # Errors
    /// If the arena is full.
    pub fn uninit(shape: impl Into<Shape>, dtype: DType) -> Result<Self> {
        let shape = shape.into();
        let buffer = CpuBuffer::uninit(dtype, shape.n_elements())?;
        Ok(Self { shape, storage: Storage::Cpu(Arc::new(buffer)), edge: None })
    }

    /// A float tensor filled with one value.
    ///
    /// # Errors
    /// If the arena is full.
    pub fn full(shape: impl Into<Shape>, value: f32) -> Result<Self> {
        let mut out = Self::uninit(shape, DType::F32)?;
        // In parallel, because the first touch of a page costs more than its filling.
        threads::run_chunks(out.data_mut(), 1 << 18, |_, chunk| chunk.fill(value));
        Ok(out)
    }

    /// A float tensor of zeros.
    ///
    /// # Errors
    /// If the arena is full.
    pub fn zeros(shape: impl Into<Shape>) -> Result<Self> {
        Self::full(shape, 0.0)
    }

    /// A float tensor with the given values, row-major.
    ///
    /// # Errors
    /// If the number of values is not the shape's, or the arena is full.
    pub fn from_slice(values: &[f32], shape: impl Into<Shape>) -> Result<Self> {
        Self::from_elements("from_slice", values, shape.into())
    }

    /// An integer tensor (token ids, positions, labels) with the given values, row-major.
    ///
    /// # Errors
    /// If the number of values is not the shape's, or the arena is full.
    pub fn from_ids(values: &[i32], shape: impl Into<Shape>) -> Result<Self> {
        Self::from_elements("from_ids", values, shape.into())
    }

    fn from_elements<T: Element>(op: &'static str, values: &[T], shape: Shape) -> Result<Self> {
        if values.len() != shape.n_elements() {
            return Err(Error::Rank {
                op,
                found: shape,
                expected: format!("a shape of {} elements", values.len()),
            });
        }
        let mut buffer = CpuBuffer::uninit(T::DTYPE, values.len())?;
        buffer.as_mut_slice().copy_from_slice(values);
        Ok(Self { shape, storage: Storage::Cpu(Arc::new(buffer)), edge: None })
    }

    /// The extents.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        let Storage::Cpu(buffer) = &self.storage;
        buffer.dtype()
    }

    /// Where it lives.
    #[must_use]
    pub fn device(&self) -> Device {
        let Storage::Cpu(_) = &self.storage;
        Device::Cpu
    }

    /// Whether backward will compute a gradient for it.
    #[must_use]
    pub fn wants_grad(&self) -> bool {
        self.edge.is_some()
    }

    /// The same values behind another edge of the graph.
    pub(crate) fn with_edge(mut self, edge: Edge) -> Self {
        self.edge = Some(edge);
        self
    }

    /// The same values without the graph behind them.
    #[must_use]
    pub fn detach(&self) -> Self {
        Self { edge: None, ..self.clone() }
    }

    /// The float values, row-major.
    ///
    /// # Panics
    /// If the elements are not f32: kernels check dtypes at the op's boundary.
    #[must_use]
    pub fn data(&self) -> &[f32] {
        self.elements()
    }

    /// The integer values, row-major.
    ///
    /// # Panics
    /// If the elements are not i32.
    #[must_use]
    pub fn ids(&self) -> &[i32] {
        self.elements()
    }

    pub(crate) fn elements<T: Element>(&self) -> &[T] {
        let Storage::Cpu(buffer) = &self.storage;
        buffer.as_slice()
    }

    /// The float values for writing.
    ///
    /// # Panics
    /// If the storage is shared: a value others can see never changes.
    pub fn data_mut(&mut self) -> &mut [f32] {
        self.elements_mut()
    }

    pub(crate) fn elements_mut<T: Element>(&mut self) -> &mut [T] {
        let Storage::Cpu(buffer) = &mut self.storage;
        Arc::get_mut(buffer).expect("only an unshared tensor is written").as_mut_slice()
    }

    /// Whether no other tensor shares the storage, so that it may be written.
    pub(crate) fn is_unique(&self) -> bool {
        let Storage::Cpu(buffer) = &self.storage;
        Arc::strong_count(buffer) == 1
    }

    /// A copy of the float values.
    #[must_use]
    pub fn to_vec(&self) -> Vec<f32> {
        self.data().to_vec()
    }

    /// The only value of a one-element float tensor.
    ///
    /// # Errors
    /// If there is more or less than one element.
    pub fn item(&self) -> Result<f32> {
        match self.data() {
            [value] => Ok(*value),
            _ => Err(Error::Rank { op: "item", found: self.shape, expected: "one element".into() }),
        }
    }

    /// The same storage under another shape, without a gradient edge: ops build views from it.
    pub(crate) fn with_shape(&self, shape: Shape) -> Self {
        debug_assert_eq!(shape.n_elements(), self.shape.n_elements());
        Self { shape, storage: self.storage.clone(), edge: None }
    }

    /// An error unless the elements are f32.
    pub(crate) fn expect_f32(&self, op: &'static str) -> Result<()> {
        self.expect_dtype(op, DType::F32)
    }

    /// An error unless the elements are i32.
    pub(crate) fn expect_ids(&self, op: &'static str) -> Result<()> {
        self.expect_dtype(op, DType::I32)
    }

    fn expect_dtype(&self, op: &'static str, expected: DType) -> Result<()> {
        if self.dtype() == expected {
            return Ok(());
        }
        Err(Error::DType { op, found: self.dtype(), expected })
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {}, grad {})", self.dtype(), self.shape, self.wants_grad())
    }
}
