//! The builder through which all layers obtain their parameters.

use std::sync::Arc;

use lehr_tensor::ops::linear::WeightLayout;
use lehr_tensor::{Init, Param, ParamBuilder, ParamStore, Result, Role, Shape, Source, Weight};

use super::LinearShape;
use crate::adapt::{AdaptedLayer, Adapter, AdapterFactory};

/// A path in a model with the source of its parameters and the adapters of its linear layers.
/// `p.at("layers").at(3)` is `layers.3`.
pub struct LayerBuilder<'a> {
    params: ParamBuilder<'a>,
    adapters: Option<&'a AdapterFactory<'a>>,
    has_head: bool,
}

impl<'a> LayerBuilder<'a> {
    /// Creates a builder at the root of a store.
    pub fn new(store: &'a mut ParamStore, source: &'a Source<'a>) -> Self {
        Self { params: ParamBuilder::new(store, source), adapters: None, has_head: true }
    }

    /// Returns the same builder with `adapters` for the linear layers they select.
    pub(crate) fn with_adapters(self, adapters: Option<&'a AdapterFactory<'a>>) -> Self {
        Self { adapters, ..self }
    }

    /// Returns the same builder for a decoder whose weights lack a language-model head.
    #[must_use]
    pub fn without_head(self) -> Self {
        Self { has_head: false, ..self }
    }

    /// Returns whether the weights have an untied language-model head.
    pub(super) fn has_head(&self) -> bool {
        self.has_head
    }

    /// Returns a builder one level deeper.
    pub fn at(&mut self, part: impl std::fmt::Display) -> LayerBuilder<'_> {
        let Self { adapters, has_head, .. } = *self;
        LayerBuilder { params: self.params.at(part), adapters, has_head }
    }

    /// Returns the current path, which is the name of the layer.
    #[must_use]
    pub fn path(&self) -> &str {
        self.params.path()
    }

    /// Adds the parameter `name` below the current path.
    ///
    /// # Errors
    /// If the name exists already, the source fails or memory runs out.
    pub fn param(
        &mut self,
        name: &str,
        role: Role,
        shape: impl Into<Shape>,
        init: Init,
    ) -> Result<Param> {
        self.params.param(name, role, shape, init)
    }

    /// Adds the matrix `name`, in its stored format if the source has one
    /// ([`ParamBuilder::matrix`]).
    ///
    /// # Errors
    /// As [`LayerBuilder::param`].
    pub(super) fn matrix(
        &mut self,
        name: &str,
        role: Role,
        shape: [usize; 2],
        transposed: bool,
        init: Init,
    ) -> Result<Weight> {
        self.params.matrix(name, role, shape, transposed, init)
    }

    /// Builds the adapter of the linear layer with the matrix `weight` at the current path, if one
    /// is configured.
    ///
    /// # Errors
    /// If memory runs out.
    pub(super) fn adapter(
        &mut self,
        role: Role,
        shape: LinearShape,
        weight: &Weight,
    ) -> Result<Option<Arc<dyn Adapter>>> {
        let LinearShape { n_in, n_out, layout, .. } = shape;
        let transposed = layout == WeightLayout::InOut;
        let layer = AdaptedLayer { n_in, n_out, weight, transposed };
        self.adapters.map_or(Ok(None), |adapters| adapters.build(&mut self.params, role, layer))
    }
}

/// Returns the start of a weight that is normal with `std`. With 0 all bits are 0.
pub(super) fn init(std: f32) -> Init {
    if std == 0.0 { Init::Constant(0.0) } else { Init::Normal(std) }
}
