//! The weights of a model, by name.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use super::Param;
use crate::cuda::FP8_MULTIPLE;
use crate::quant::QMatrix;
use crate::{DType, Device, Error, Result, Shape, Tensor};

/// The parameters of a model in the order they were built, and the matrices that are used as they
/// are stored.
#[derive(Clone, Default)]
pub struct ParamStore {
    pub(super) params: Vec<Param>,
    by_name: HashMap<String, usize>,
    /// Which of them are matrices of layers.
    pub(super) matrices: Vec<usize>,
    stored: Vec<(String, QMatrix)>,
    /// Of each stored matrix, how many parameters come before it, and whether as a parameter it
    /// would be `[in, out]`.
    places: Vec<(usize, bool)>,
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

    /// All weights, in the order they were built.
    #[must_use]
    pub fn named(&self) -> Vec<Named<'_>> {
        let mut stored = self.stored.iter().zip(&self.places).peekable();
        let mut all = Vec::new();
        for (n_before, param) in self.params.iter().map(Some).chain([None]).enumerate() {
            while let Some(((name, matrix), (_, transposed))) =
                stored.next_if(|(_, (place, _))| *place <= n_before)
            {
                let (rows, cols, transposed) = (matrix.rows(), matrix.cols(), *transposed);
                let shape = Shape::from(if transposed { [cols, rows] } else { [rows, cols] });
                all.push(Named { name, shape, value: Value::Stored { matrix, transposed } });
            }
            all.extend(param.map(|param| {
                let (name, shape) = (param.name(), param.shape());
                Named { name, shape, value: Value::Param(param) }
            }));
        }
        all
    }

    /// Adds a matrix in its stored form; as a parameter it would be `[in, out]` if `transposed`.
    pub(super) fn add_stored(&mut self, name: String, matrix: QMatrix, transposed: bool) {
        self.places.push((self.params.len(), transposed));
        self.stored.push((name, matrix));
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

    /// From now on training multiplies the matrices of layers in fp8 whose both sides are multiples
    /// of 16 and at least `side_min`; how many there are. Of those `is_wanted` is asked by name:
    /// tables and heads are matrices too.
    pub fn use_fp8(&self, side_min: usize, is_wanted: impl Fn(&str) -> bool) -> usize {
        let fits = |side: &usize| *side >= side_min && side.is_multiple_of(FP8_MULTIPLE);
        let matrices = self.matrices.iter().map(|index| &self.params[*index]);
        let wide =
            matrices.filter(|param| is_wanted(param.name()) && param.shape().iter().all(fits));
        wide.map(|param| param.0.fp8.store(true, Ordering::Relaxed)).count()
    }

    /// Moves all parameters to `device`, where they are computed with in `dtype`
    /// ([`Param::to_device`]), and stored matrices, in their form.
    ///
    /// # Errors
    /// If memory runs out or a device fails.
    pub fn to_device(&self, device: Device, dtype: DType) -> Result<()> {
        self.params.iter().try_for_each(|param| param.to_device(device, dtype))?;
        self.stored.iter().try_for_each(|(_, matrix)| matrix.to_device(device, dtype))
    }

    /// Where the parameters live and what they are computed with; the CPU and f32 if there are
    /// none.
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

    pub(super) fn add(&mut self, name: String, value: Tensor) -> Result<Param> {
        if self.by_name.contains_key(&name) {
            return Err(Error::DuplicateParam { name });
        }
        self.by_name.insert(name.clone(), self.params.len());
        let param = Param::new(name, value);
        self.params.push(param.clone());
        Ok(param)
    }
}

/// A weight of a store by its name, whether it can be trained or is used as it is stored.
#[derive(Clone, Copy)]
pub struct Named<'a> {
    name: &'a str,
    shape: Shape,
    value: Value<'a>,
}

#[derive(Clone, Copy)]
enum Value<'a> {
    Param(&'a Param),
    Stored { matrix: &'a QMatrix, transposed: bool },
}

impl Named<'_> {
    /// Its path, which is its name in checkpoints.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name
    }

    /// Its shape as a parameter.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Its numbers in f32 on the CPU, of a stored form those that it stands for.
    ///
    /// # Errors
    /// If memory runs out or a device fails.
    pub fn to_host(&self) -> Result<Tensor> {
        match self.value {
            Value::Param(param) => param.to_host(),
            Value::Stored { matrix, transposed } => {
                let mut values = Tensor::uninit([matrix.rows(), matrix.cols()], DType::F32)?;
                matrix.dequantize_rows(0..matrix.rows(), values.data_mut());
                if transposed { Ok(values.transpose(0, 1)?.detach()) } else { Ok(values) }
            }
        }
    }
}
