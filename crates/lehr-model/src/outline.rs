//! Outline of a model: its parameters without their values, for loading plans and memory estimates.

use std::cell::RefCell;

use lehr_tensor::quant::WeightFormat;
use lehr_tensor::{Param, Role, Shape, Source, Tensor};

use crate::io::{Checkpoint, leftover};
use crate::model::Lookup;
use crate::{Config, Model, Result};

/// A parameter with its name and shape, without its values.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Its path in the model.
    pub name: String,
    /// Its name in the checkpoint.
    pub stored_as: String,
    /// Its shape.
    pub shape: Shape,
    /// Its role.
    pub role: Role,
}

/// All parameters of a model, in order. Tied weights occur once.
#[derive(Clone, Debug, PartialEq)]
pub struct Outline {
    /// The parameters.
    pub parameters: Vec<Parameter>,
    /// Whether the model can continue a text.
    pub is_causal: bool,
    /// What the user must know about tensors that the model does not use.
    pub warnings: Vec<String>,
}

impl Outline {
    /// Lists what a model of `config` would load from `checkpoint`. It reads no values.
    ///
    /// # Errors
    /// If the configuration is invalid, or a weight is missing or has another size.
    pub fn new(config: Config, checkpoint: &Checkpoint) -> Result<Self> {
        let lookup = Lookup::new(config, checkpoint)?;
        let found = RefCell::new(Vec::new());
        let load = |name: &str, shape: Shape| {
            let Some(stored_as) = lookup.find(name) else { return Err(checkpoint.missing(name)) };
            let stored = checkpoint.shape(&stored_as).unwrap_or_default();
            if stored.iter().try_fold(1usize, |n, d| n.checked_mul(*d)) != Some(shape.n_elements())
            {
                return Err(format!("`{stored_as}` has shape {stored:?}"));
            }
            found.borrow_mut().push((stored_as, shape));
            // Building only assigns the parameters; nothing reads this one.
            Tensor::zeros([1]).map(Some).map_err(|e| e.to_string())
        };
        let source = Source::Load { load: &load, stored: None, seed: 0 };
        let built = Model::build_as(lookup.config.clone(), &source, lookup.has_head);
        let model = built.map_err(|e| checkpoint.explain(e))?;
        // The builder requests parameters in the order of the model.
        let parameter = |(param, (stored_as, shape)): (&Param, (String, Shape))| Parameter {
            name: param.name().to_owned(),
            stored_as,
            shape,
            role: param.role(),
        };
        let found = found.into_inner();
        let parameters = model.params().params().iter().zip(found).map(parameter).collect();
        let mut warnings: Vec<String> = leftover::describe(&lookup.unused()).into_iter().collect();
        if !model.has_head() && model.is_causal() {
            warnings.push(
                "the weights hold no language-model head: they serve as an embedder".to_owned(),
            );
        }
        Ok(Self { is_causal: model.is_causal(), parameters, warnings })
    }

    /// Returns the number of parameter values.
    #[must_use]
    pub fn n_values(&self) -> u64 {
        self.parameters.iter().map(Parameter::n_values).sum()
    }

    /// Returns the number of parameter values of one role.
    #[must_use]
    pub fn n_values_of(&self, role: Role) -> u64 {
        self.parameters.iter().filter(|p| p.role == role).map(Parameter::n_values).sum()
    }

    /// Returns the bytes of all weights with matrices in `format`. Vectors stay in f32, as do
    /// matrices whose row length is not a multiple of the block size.
    #[must_use]
    pub fn weight_bytes(&self, format: WeightFormat) -> u64 {
        let bytes = |p: &Parameter| {
            let is_matrix = p.shape.len() >= 2;
            let format =
                if is_matrix { format.fallback_for(p.shape.last_dim()) } else { WeightFormat::F32 };
            p.n_values() / format.block_len() as u64 * format.block_bytes() as u64
        };
        self.parameters.iter().map(bytes).sum()
    }
}

impl Parameter {
    /// Returns the number of its values.
    #[must_use]
    pub fn n_values(&self) -> u64 {
        self.shape.n_elements() as u64
    }
}
