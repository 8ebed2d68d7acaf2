//! The weights of a model, by name.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use super::{NamePattern, Param, Role};
use crate::cuda::FP8_MULTIPLE;
use crate::quant::QMatrix;
use crate::{DType, Device, Error, Result, Shape, Tensor};

/// The parameters of a model in the order they were built, and the matrices that are used in their
/// storage format.
#[derive(Clone, Default)]
pub struct ParamStore {
    pub(super) params: Vec<Param>,
    by_name: HashMap<String, usize>,
    stored: Vec<StoredMatrix>,
}

/// A matrix that is used in its storage format.
#[derive(Clone)]
pub struct StoredMatrix {
    name: String,
    role: Role,
    matrix: QMatrix,
    /// Whether as a parameter it would be `[in, out]`.
    transposed: bool,
    /// Number of parameters that were built before it.
    n_before: usize,
}

impl StoredMatrix {
    /// Returns its path, which is its name in checkpoints.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns its role.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// Its numbers, `[out, in]`.
    #[must_use]
    pub fn matrix(&self) -> &QMatrix {
        &self.matrix
    }

    /// Its shape as a parameter.
    #[must_use]
    pub fn shape(&self) -> Shape {
        let (rows, cols) = (self.matrix.rows(), self.matrix.cols());
        Shape::from(if self.transposed { [cols, rows] } else { [rows, cols] })
    }
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

    /// Returns the matrices in their storage format, in order. They are not among
    /// [`params`](Self::params).
    #[must_use]
    pub fn stored(&self) -> &[StoredMatrix] {
        &self.stored
    }

    /// All weights, in the order they were built.
    #[must_use]
    pub fn named(&self) -> Vec<Named<'_>> {
        let mut stored = self.stored.iter().peekable();
        let mut all = Vec::new();
        for (n_before, param) in self.params.iter().map(Some).chain([None]).enumerate() {
            while let Some(matrix) = stored.next_if(|matrix| matrix.n_before <= n_before) {
                all.push(Named(Value::Stored(matrix)));
            }
            all.extend(param.map(|param| Named(Value::Param(param))));
        }
        all
    }

    /// Adds a matrix in its stored form; as a parameter it would be `[in, out]` if `transposed`.
    pub(super) fn add_stored(
        &mut self,
        name: String,
        role: Role,
        matrix: QMatrix,
        transposed: bool,
    ) {
        let n_before = self.params.len();
        self.stored.push(StoredMatrix { name, role, matrix, transposed, n_before });
    }

    /// Freezes the parameters that `is_frozen` selects, and returns their number. The others do not
    /// change.
    pub fn freeze(&self, is_frozen: impl Fn(&Param) -> bool) -> usize {
        let frozen = self.params.iter().filter(|param| is_frozen(param));
        frozen.map(|param| param.set_trainable(false)).count()
    }

    /// Freezes the parameters whose names match one of `patterns`, and returns their number.
    ///
    /// # Errors
    /// If a pattern matches no parameter. Then nothing is frozen.
    pub fn freeze_matching(&self, patterns: &[NamePattern]) -> Result<usize> {
        for pattern in patterns {
            if !self.params.iter().any(|param| pattern.matches(param.name())) {
                return Err(Error::NoParam { pattern: pattern.to_string() });
            }
        }
        Ok(self.freeze(|param| patterns.iter().any(|pattern| pattern.matches(param.name()))))
    }

    /// The parameters that are trained, in order.
    pub fn trainable(&self) -> impl Iterator<Item = &Param> {
        self.params.iter().filter(|param| param.is_trainable())
    }

    /// Number of values, those of stored matrices included, tied weights counted once.
    #[must_use]
    pub fn n_values(&self) -> usize {
        let stored: usize = self.stored.iter().map(|s| s.matrix.rows() * s.matrix.cols()).sum();
        stored + self.params.iter().map(|p| p.shape().n_elements()).sum::<usize>()
    }

    /// Bytes that the values take.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        let stored: usize = self.stored.iter().map(|s| s.matrix.n_bytes()).sum();
        stored + self.params.iter().map(|p| 4 * p.shape().n_elements()).sum::<usize>()
    }

    /// Bytes that a forward pass which uses everything reads.
    #[must_use]
    pub fn read_bytes(&self) -> usize {
        let stored: usize = self.stored.iter().map(|s| s.matrix.n_bytes()).sum();
        stored + self.params.iter().map(Param::read_bytes).sum::<usize>()
    }

    /// Lets training multiply in fp8 the hidden matrices ([`Role::is_hidden_matrix`]) whose both
    /// sides are at least `side_min` and multiples of 16. Returns their number.
    pub fn use_fp8(&self, side_min: usize) -> usize {
        let fits = |side: &usize| *side >= side_min && side.is_multiple_of(FP8_MULTIPLE);
        let matrices = self.params.iter().filter(|param| param.role().is_hidden_matrix());
        let wide = matrices.filter(|param| param.shape().iter().all(fits));
        wide.map(|param| param.0.fp8.store(true, Ordering::Relaxed)).count()
    }

    /// Moves all parameters to `device`, where they are computed with in `dtype`
    /// ([`Param::to_device`]), and stored matrices, in their form.
    ///
    /// # Errors
    /// If memory runs out or a device fails.
    pub fn to_device(&self, device: Device, dtype: DType) -> Result<()> {
        self.params.iter().try_for_each(|param| param.to_device(device, dtype))?;
        self.stored.iter().try_for_each(|stored| stored.matrix.to_device(device, dtype))
    }

    /// Returns the device and the computing type of the parameters; the CPU and f32 if there are
    /// none.
    #[must_use]
    pub fn compute(&self) -> (Device, DType) {
        let device = self.params.first().map_or(Device::Cpu, Param::device);
        // On the CPU only matrices have another type.
        let dtypes = self.params.iter().map(Param::compute_dtype);
        (device, dtypes.into_iter().find(|dtype| *dtype != DType::F32).unwrap_or(DType::F32))
    }

    /// Frees all gradients.
    pub fn clear_grads(&self) {
        self.params.iter().for_each(Param::clear_grad);
    }

    pub(super) fn add(&mut self, name: String, role: Role, value: Tensor) -> Result<Param> {
        if self.by_name.contains_key(&name) {
            return Err(Error::DuplicateParam { name });
        }
        self.by_name.insert(name.clone(), self.params.len());
        let param = Param::new(name, role, value);
        self.params.push(param.clone());
        Ok(param)
    }
}

/// A weight of a store by its name, whether it can be trained or is used as it is stored.
#[derive(Clone, Copy)]
pub struct Named<'a>(Value<'a>);

#[derive(Clone, Copy)]
enum Value<'a> {
    Param(&'a Param),
    Stored(&'a StoredMatrix),
}

impl Named<'_> {
    /// Returns its path, which is its name in checkpoints.
    #[must_use]
    pub fn name(&self) -> &str {
        match self.0 {
            Value::Param(param) => param.name(),
            Value::Stored(stored) => stored.name(),
        }
    }

    /// Returns its role.
    #[must_use]
    pub fn role(&self) -> Role {
        match self.0 {
            Value::Param(param) => param.role(),
            Value::Stored(stored) => stored.role(),
        }
    }

    /// Its shape as a parameter.
    #[must_use]
    pub fn shape(&self) -> Shape {
        match self.0 {
            Value::Param(param) => param.shape(),
            Value::Stored(stored) => stored.shape(),
        }
    }

    /// The matrix in its stored form, if it is used so.
    #[must_use]
    pub fn stored(&self) -> Option<&QMatrix> {
        match self.0 {
            Value::Param(_) => None,
            Value::Stored(stored) => Some(stored.matrix()),
        }
    }

    /// Bytes that a forward pass which uses all of it reads.
    #[must_use]
    pub fn read_bytes(&self) -> usize {
        match self.0 {
            Value::Param(param) => param.read_bytes(),
            Value::Stored(stored) => stored.matrix.n_bytes(),
        }
    }

    /// Returns its numbers in f32 on the CPU; a stored matrix is decoded.
    ///
    /// # Errors
    /// If memory runs out or a device fails.
    pub fn to_host(&self) -> Result<Tensor> {
        match self.0 {
            Value::Param(param) => param.to_host(),
            Value::Stored(StoredMatrix { matrix, transposed, .. }) => {
                let values = matrix.to_f32()?;
                if *transposed { Ok(values.transpose(0, 1)?.detach()) } else { Ok(values) }
            }
        }
    }
}
