//! `Tensor`: a shape over shared storage, plus the node that produced it if a gradient is wanted.

use std::fmt;
use std::sync::Arc;

use lehr_kernels::bf16::Panels;
use lehr_kernels::buffer::{CpuBuffer, Element};

use crate::autograd::Edge;
use crate::cuda::{Arg, Cuda, CudaBuffer};
use crate::panels::WeightPanels;
use crate::{DType, Device, Error, Result, Shape, threads};

/// The memory behind a tensor, one arm per device.
#[derive(Clone, Debug)]
pub(crate) enum Storage {
    Cpu(Arc<CpuBuffer>),
    Cuda(Arc<CudaBuffer>),
}

/// A contiguous row-major array. Clones share storage; values are never changed in place while
/// shared.
#[derive(Clone)]
pub struct Tensor {
    shape: Shape,
    storage: Storage,
    pub(crate) edge: Option<Edge>,
    /// Copies of a weight for products in bf16 on the CPU.
    panels: Option<Arc<WeightPanels>>,
}

impl Tensor {
    /// A tensor of unspecified values, to be filled through [`Tensor::data_mut`].
    ///
    /// # Errors
    /// If the arena is full.
    pub fn uninit(shape: impl Into<Shape>, dtype: DType) -> Result<Self> {
        let shape = shape.into();
        let buffer = CpuBuffer::uninit(dtype, shape.n_elements())?;
        Ok(Self { shape, storage: Storage::Cpu(Arc::new(buffer)), edge: None, panels: None })
    }

    /// [`Tensor::uninit`] on any device.
    ///
    /// # Errors
    /// If the device's arena is full, or the device cannot be used.
    pub fn uninit_on(device: Device, shape: impl Into<Shape>, dtype: DType) -> Result<Self> {
        let Device::Cuda(ordinal) = device else { return Self::uninit(shape, dtype) };
        #[cfg(test)]
        crate::cuda::use_emulator();
        let shape = shape.into();
        let buffer = CudaBuffer::uninit(ordinal, dtype, shape.n_elements())?;
        Ok(Self { shape, storage: Storage::Cuda(Arc::new(buffer)), edge: None, panels: None })
    }

    /// A tensor of zeros on any device.
    ///
    /// # Errors
    /// As [`Tensor::uninit_on`].
    pub fn zeros_on(device: Device, shape: impl Into<Shape>, dtype: DType) -> Result<Self> {
        let mut out = Self::uninit_on(device, shape, dtype)?;
        out.fill_zero()?;
        Ok(out)
    }

    /// A tensor of unspecified values with the device and element type of this one.
    pub(crate) fn like(&self, shape: impl Into<Shape>) -> Result<Self> {
        Self::uninit_on(self.device(), shape, self.dtype())
    }

    /// A tensor of unspecified f32 values on the device of this one: statistics, gradients of
    /// parameters.
    pub(crate) fn like_f32(&self, shape: impl Into<Shape>) -> Result<Self> {
        Self::uninit_on(self.device(), shape, DType::F32)
    }

    /// Sets all values to 0.
    pub(crate) fn fill_zero(&mut self) -> Result<()> {
        match &mut self.storage {
            Storage::Cuda(buffer) => {
                let bytes = buffer.n_bytes();
                Cuda::get(buffer.ordinal())?.set(buffer.ptr(), 0, bytes)
            }
            Storage::Cpu(buffer) => {
                let buffer = Arc::get_mut(buffer).expect("only an unshared tensor is written");
                buffer.bytes_mut().fill(0);
                Ok(())
            }
        }
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

    /// An integer tensor with the given bytes, and zeros up to a whole word: bytes on their way to
    /// a GPU.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let words = bytes.len().div_ceil(4);
        let mut buffer = CpuBuffer::uninit(DType::I32, words)?;
        let (whole, rest) = buffer.bytes_mut().split_at_mut(bytes.len());
        whole.copy_from_slice(bytes);
        rest.fill(0);
        Ok(Self {
            shape: [words].into(),
            storage: Storage::Cpu(Arc::new(buffer)),
            edge: None,
            panels: None,
        })
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
        Ok(Self { shape, storage: Storage::Cpu(Arc::new(buffer)), edge: None, panels: None })
    }

    /// Returns the shape.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        match &self.storage {
            Storage::Cpu(buffer) => buffer.dtype(),
            Storage::Cuda(buffer) => buffer.dtype(),
        }
    }

    /// Where it lives.
    #[must_use]
    pub fn device(&self) -> Device {
        match &self.storage {
            Storage::Cpu(_) => Device::Cpu,
            Storage::Cuda(buffer) => Device::Cuda(buffer.ordinal()),
        }
    }

    /// Whether it lives on a GPU.
    pub(crate) fn is_cuda(&self) -> bool {
        matches!(self.storage, Storage::Cuda(_))
    }

    /// The GPU it lives on.
    pub(crate) fn cuda(&self) -> Result<&'static Cuda> {
        match &self.storage {
            Storage::Cuda(buffer) => Cuda::get(buffer.ordinal()),
            Storage::Cpu(_) => {
                Err(Error::NoKernel { op: "a kernel for GPUs", device: Device::Cpu })
            }
        }
    }

    /// Its storage on its GPU.
    pub(crate) fn gpu_buffer(&self) -> Result<Arc<CudaBuffer>> {
        match &self.storage {
            Storage::Cuda(buffer) => Ok(Arc::clone(buffer)),
            Storage::Cpu(_) => {
                Err(Error::NoKernel { op: "a copy from a GPU", device: Device::Cpu })
            }
        }
    }

    /// A tensor over storage on a GPU, which has room for the shape.
    pub(crate) fn on_gpu(shape: Shape, buffer: Arc<CudaBuffer>) -> Self {
        debug_assert_eq!(shape.n_elements() * buffer.dtype().size(), buffer.n_bytes());
        Self { shape, storage: Storage::Cuda(buffer), edge: None, panels: None }
    }

    /// Returns its address on its GPU. A tensor on the CPU has none, and kernels then fail.
    pub(crate) fn device_ptr(&self) -> u64 {
        match &self.storage {
            Storage::Cuda(buffer) => buffer.ptr(),
            Storage::Cpu(_) => 0,
        }
    }

    /// Returns the same values on another device, without the graph; the tensor itself if it is
    /// already there.
    ///
    /// # Errors
    /// If memory runs out or a device fails.
    pub fn to_device(&self, device: Device) -> Result<Self> {
        if self.device() == device {
            return Ok(self.detach());
        }
        match (&self.storage, device) {
            (Storage::Cpu(buffer), Device::Cuda(ordinal)) => {
                #[cfg(test)]
                crate::cuda::use_emulator();
                let buffer = CudaBuffer::upload(ordinal, buffer.dtype(), buffer.bytes())?;
                Ok(Self {
                    shape: self.shape,
                    storage: Storage::Cuda(Arc::new(buffer)),
                    edge: None,
                    panels: None,
                })
            }
            (Storage::Cuda(buffer), Device::Cpu) => {
                let mut out = CpuBuffer::uninit(buffer.dtype(), self.shape.n_elements())?;
                Cuda::get(buffer.ordinal())?.download(out.bytes_mut(), buffer.ptr())?;
                Ok(Self {
                    shape: self.shape,
                    storage: Storage::Cpu(Arc::new(out)),
                    edge: None,
                    panels: None,
                })
            }
            _ => self.to_device(Device::Cpu)?.to_device(device),
        }
    }

    /// Returns the values on the CPU, floats as f32, without the graph. Waits for a GPU.
    ///
    /// # Errors
    /// If memory runs out or a device fails.
    pub fn to_host(&self) -> Result<Self> {
        let here = self.to_device(Device::Cpu)?;
        if here.dtype() == DType::I32 { Ok(here) } else { Ok(here.to_f32()?.detach()) }
    }

    /// Whether backward will compute a gradient for it.
    #[must_use]
    pub fn wants_grad(&self) -> bool {
        self.edge.is_some()
    }

    /// The same matrix, a weight whose products on the CPU are in bf16.
    pub(crate) fn with_panels(mut self, panels: Option<Arc<WeightPanels>>) -> Self {
        self.panels = panels;
        self
    }

    /// Whether products with this weight are in bf16 on the CPU.
    pub(crate) fn has_panels(&self) -> bool {
        self.panels.is_some()
    }

    /// This matrix, or its transpose, in bf16 as the right operand of a product.
    ///
    /// # Panics
    /// Without [`Tensor::has_panels`].
    pub(crate) fn right_operand(&self, is_transposed: bool) -> Result<Arc<Panels>> {
        let panels = self.panels.as_ref().expect("a weight in bf16 has panels");
        let &[rows, columns] = &*self.shape else { unreachable!("a weight has two dimensions") };
        panels.get(self.data(), (rows, columns), is_transposed)
    }

    /// Its storage on the CPU.
    ///
    /// # Panics
    /// If it lives on a GPU.
    pub(crate) fn cpu_buffer(&self) -> &CpuBuffer {
        match &self.storage {
            Storage::Cpu(buffer) => buffer,
            Storage::Cuda(_) => panic!("values on a GPU are read with to_host"),
        }
    }

    /// The same values behind another edge of the graph.
    pub(crate) fn with_edge(mut self, edge: Edge) -> Self {
        self.edge = Some(edge);
        self
    }

    /// Returns the same values without the graph.
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

    /// # Panics
    /// If the values are not on the CPU: ops check devices at their boundary.
    pub(crate) fn elements<T: Element>(&self) -> &[T] {
        match &self.storage {
            Storage::Cpu(buffer) => buffer.as_slice(),
            Storage::Cuda(_) => panic!("values on a GPU are read with to_host"),
        }
    }

    /// The float values for writing.
    ///
    /// # Panics
    /// If the storage is shared: a value others can see never changes.
    pub fn data_mut(&mut self) -> &mut [f32] {
        self.elements_mut()
    }

    pub(crate) fn elements_mut<T: Element>(&mut self) -> &mut [T] {
        match &mut self.storage {
            Storage::Cpu(buffer) => {
                Arc::get_mut(buffer).expect("only an unshared tensor is written").as_mut_slice()
            }
            Storage::Cuda(_) => panic!("values on a GPU are written by kernels"),
        }
    }

    /// Returns whether both share one storage.
    #[must_use]
    pub fn shares_storage(&self, other: &Self) -> bool {
        match (&self.storage, &other.storage) {
            (Storage::Cpu(a), Storage::Cpu(b)) => Arc::ptr_eq(a, b),
            (Storage::Cuda(a), Storage::Cuda(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// Whether no other tensor shares the storage, so that it may be written.
    pub(crate) fn is_unique(&self) -> bool {
        match &self.storage {
            Storage::Cpu(buffer) => Arc::strong_count(buffer) == 1,
            Storage::Cuda(buffer) => Arc::strong_count(buffer) == 1,
        }
    }

    /// A copy of the float values.
    #[must_use]
    pub fn to_vec(&self) -> Vec<f32> {
        self.data().to_vec()
    }

    /// The only value of a one-element float tensor. It waits for a GPU.
    ///
    /// # Errors
    /// If there is more or less than one element.
    pub fn item(&self) -> Result<f32> {
        if self.is_cuda() && self.shape.n_elements() == 1 {
            return self.to_host()?.item();
        }
        if self.is_cuda() {
            return Err(Error::Rank {
                op: "item",
                found: self.shape,
                expected: "one element".into(),
            });
        }
        match self.data() {
            [value] => Ok(*value),
            _ => Err(Error::Rank { op: "item", found: self.shape, expected: "one element".into() }),
        }
    }

    /// A copy with storage of its own, without the graph behind it.
    ///
    /// # Errors
    /// If memory runs out or a device fails.
    pub fn duplicate(&self) -> Result<Self> {
        let mut out = self.like(self.shape)?;
        match (&self.storage, &mut out.storage) {
            (Storage::Cuda(from), Storage::Cuda(to)) => {
                Cuda::get(from.ordinal())?.copy(to.ptr(), from.ptr(), from.n_bytes())?;
            }
            (Storage::Cpu(from), Storage::Cpu(to)) => {
                let to = Arc::get_mut(to).expect("a new tensor is not shared");
                to.bytes_mut().copy_from_slice(from.bytes());
            }
            _ => unreachable!("a tensor like another is on its device"),
        }
        Ok(out)
    }

    /// The same storage under another shape, without a gradient edge: ops build views from it.
    pub(crate) fn with_shape(&self, shape: Shape) -> Self {
        debug_assert_eq!(shape.n_elements(), self.shape.n_elements());
        Self { shape, storage: self.storage.clone(), edge: None, panels: None }
    }

    /// An error unless the elements are floats that kernels of the device compute with: f32 on the
    /// CPU; f32, bf16 or f16 on a GPU.
    pub(crate) fn expect_float(&self, op: &'static str) -> Result<()> {
        match self.dtype() {
            DType::F32 => Ok(()),
            DType::BF16 | DType::F16 if self.is_cuda() => Ok(()),
            found => Err(Error::DType { op, found, expected: DType::F32 }),
        }
    }

    /// An error unless the elements are i32.
    pub(crate) fn expect_ids(&self, op: &'static str) -> Result<()> {
        self.expect_dtype(op, DType::I32)
    }

    pub(crate) fn expect_dtype(&self, op: &'static str, expected: DType) -> Result<()> {
        match self.dtype() {
            found if found == expected => Ok(()),
            found => Err(Error::DType { op, found, expected }),
        }
    }

    /// An error unless it lives on `expected`.
    pub(crate) fn expect_on(&self, op: &'static str, expected: Device) -> Result<()> {
        match self.device() {
            found if found == expected => Ok(()),
            found => Err(Error::Device { op, found, expected }),
        }
    }

    /// An error unless `other` has this tensor's device and element type.
    pub(crate) fn expect_beside(&self, op: &'static str, other: &Self) -> Result<()> {
        other.expect_on(op, self.device())?;
        other.expect_dtype(op, self.dtype())
    }
}

/// The address of a tensor.
impl From<&Tensor> for Arg {
    fn from(tensor: &Tensor) -> Self {
        tensor.device_ptr().into()
    }
}

impl From<&mut Tensor> for Arg {
    fn from(tensor: &mut Tensor) -> Self {
        tensor.device_ptr().into()
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {}, grad {})", self.dtype(), self.shape, self.wants_grad())
    }
}
