//! Building parameters: from a seed or a checkpoint.

use super::{Init, Param, ParamStore, Role, Weight};
use crate::quant::QMatrix;
use crate::{Error, Philox, Result, Shape, Tensor};

/// Reads a parameter by name and shape. `Ok(None)` means that it starts as new; an error is a text.
pub type Load<'a> = dyn Fn(&str, Shape) -> std::result::Result<Option<Tensor>, String> + 'a;

/// Finds a matrix `[rows, cols]` in its stored form by name and role; `None` = load it as a
/// parameter.
pub type LoadStored<'a> = dyn Fn(&str, StoredShape, Role) -> Option<QMatrix> + 'a;

/// The shape of a requested matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredShape {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Whether the parameter of that name would be `[cols, rows]`.
    pub transposed: bool,
}

/// The source of the values of new parameters.
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
        /// Finds matrices that are used in their storage format; `None` = there are none.
        stored: Option<&'a LoadStored<'a>>,
        /// Seed for the parameters the reader does not have.
        seed: u64,
    },
}

/// A place in a model where parameters are built: `p.at("layers").at(3).param("weight", …)` is
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

    /// Returns the same place with another source of values, for parameters that a checkpoint of
    /// the model does not have.
    pub fn with_source<'b>(&'b mut self, source: &'b Source<'b>) -> ParamBuilder<'b> {
        ParamBuilder { path: self.path.clone(), store: &mut *self.store, source }
    }

    /// Whether parameters start as new.
    #[must_use]
    pub fn is_new(&self) -> bool {
        matches!(self.source, Source::Init { .. })
    }

    /// The present path, which is the name of the layer.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Adds the parameter `name` below the present path.
    ///
    /// # Errors
    /// If the name is taken, the source fails or memory runs out.
    pub fn param(
        &mut self,
        name: &str,
        role: Role,
        shape: impl Into<Shape>,
        init: Init,
    ) -> Result<Param> {
        let (name, shape) = (self.join(name), shape.into());
        let value = match self.source {
            Source::Init { seed } => initial(*seed, &name, shape, init)?,
            Source::Load { load, seed, .. } => match load(&name, shape) {
                Ok(Some(value)) => value,
                Ok(None) => initial(*seed, &name, shape, init)?,
                Err(reason) => return Err(Error::Source { name, shape, reason }),
            },
        };
        self.store.add(name, role, value)
    }

    /// Adds the matrix `name` of a layer: in its stored form if the source has it so, else as a
    /// parameter of `shape`, `[out, in]` or, if `transposed`, `[in, out]`.
    ///
    /// # Errors
    /// As [`ParamBuilder::param`].
    pub fn matrix(
        &mut self,
        name: &str,
        role: Role,
        shape: [usize; 2],
        transposed: bool,
        init: Init,
    ) -> Result<Weight> {
        if let Source::Load { stored: Some(find), .. } = self.source {
            let [rows, cols] = if transposed { [shape[1], shape[0]] } else { shape };
            let path = self.join(name);
            if let Some(matrix) = find(&path, StoredShape { rows, cols, transposed }, role) {
                self.store.add_stored(path, role, matrix.clone(), transposed);
                return Ok(Weight::Stored(matrix));
            }
        }
        Ok(Weight::Param(self.param(name, role, shape, init)?))
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
