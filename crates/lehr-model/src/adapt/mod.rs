//! Adapters: small trained additions to the linear layers of a frozen model.
//!
//! Each method is a file with its formula. Architectures know nothing of adapters: the
//! [`LayerBuilder`](crate::nn::LayerBuilder) hands one to every [`Linear`](crate::nn::Linear) whose
//! path a pattern selects.

mod lora;

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use lehr_tensor::{NamePattern, ParamBuilder, Result, Source, Tensor};
pub use lora::{Lora, LoraConfig};

/// An adapter of one linear layer.
pub trait Adapter: Send + Sync {
    /// Computes the adapted layer at `x [.., I]`, `[.., O]`. `base` computes the layer without the
    /// adapter.
    ///
    /// # Errors
    /// If memory runs out or a device fails.
    fn forward(&self, x: &Tensor, base: &dyn Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor>;

    /// Computes the single matrix equivalent to `weight` with the adapter. Both are `[O, I]`, in
    /// f32 on the CPU.
    ///
    /// # Errors
    /// If memory runs out or a device fails.
    fn merge(&self, weight: &Tensor) -> Result<Tensor>;
}

/// The adapted layers of a model, and the method.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// Patterns of the layers' paths, such as `model.layers.*.self_attn.q_proj`.
    pub targets: Vec<NamePattern>,
    /// The method.
    pub method: AdapterMethod,
    /// Seed of the new parameters.
    pub seed: u64,
}

/// The adapter methods.
#[derive(Clone, Debug, PartialEq)]
pub enum AdapterMethod {
    /// Low-rank adaptation.
    Lora(LoraConfig),
}

impl AdapterConfig {
    /// Checks that the settings are valid.
    pub(crate) fn validate(&self) -> crate::Result<()> {
        match self.method {
            AdapterMethod::Lora(config) => config.validate(),
        }
    }
}

impl AdapterMethod {
    fn build(
        &self,
        p: &mut ParamBuilder<'_>,
        n_in: usize,
        n_out: usize,
    ) -> Result<Arc<dyn Adapter>> {
        match self {
            Self::Lora(config) => Ok(Arc::new(Lora::build(p, *config, n_in, n_out)?)),
        }
    }
}

/// An adapter and the path of the layer it belongs to.
#[derive(Clone)]
pub struct Adapted {
    /// Path of the linear layer.
    pub path: String,
    /// Its adapter.
    pub adapter: Arc<dyn Adapter>,
    /// Whether the layer's weight is `[in, out]`.
    pub(crate) transposed: bool,
}

impl Adapted {
    /// Returns the layer's weight as a parameter, merged with the adapter, in the same memory
    /// layout.
    pub(crate) fn merge(&self, weight: &Tensor) -> Result<Tensor> {
        if !self.transposed {
            return self.adapter.merge(weight);
        }
        Ok(self.adapter.merge(&weight.transpose(0, 1)?)?.transpose(0, 1)?.detach())
    }
}

impl fmt::Debug for Adapted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Adapted({})", self.path)
    }
}

/// The adapters of one model while its layers are built.
pub(crate) struct AdapterFactory<'a> {
    config: &'a AdapterConfig,
    source: Source<'static>,
    built: RefCell<Vec<Adapted>>,
}

impl<'a> AdapterFactory<'a> {
    pub(crate) fn new(config: &'a AdapterConfig) -> Self {
        let source = Source::Init { seed: config.seed };
        Self { config, source, built: RefCell::default() }
    }

    /// Builds the adapter of the layer at the current path of `p`, if a pattern selects it. The
    /// layer's weight is `[in, out]` if `transposed`.
    pub(crate) fn build(
        &self,
        p: &mut ParamBuilder<'_>,
        [n_in, n_out]: [usize; 2],
        transposed: bool,
    ) -> Result<Option<Arc<dyn Adapter>>> {
        let path = p.path().to_owned();
        if !self.config.targets.iter().any(|target| target.matches(&path)) {
            return Ok(None);
        }
        let adapter = self.config.method.build(&mut p.with_source(&self.source), n_in, n_out)?;
        let adapted = Adapted { path, adapter: Arc::clone(&adapter), transposed };
        self.built.borrow_mut().push(adapted);
        Ok(Some(adapter))
    }

    /// Returns the built adapters in the order of their layers.
    ///
    /// # Errors
    /// If a pattern selected no layer.
    pub(crate) fn finish(self) -> std::result::Result<Vec<Adapted>, NamePattern> {
        let built = self.built.into_inner();
        let selects = |target: &NamePattern| built.iter().any(|one| target.matches(&one.path));
        match self.config.targets.iter().find(|target| !selects(target)) {
            Some(unused) => Err(unused.clone()),
            None => Ok(built),
        }
    }
}
