//! Adapters: small trained additions to the linear layers of a frozen model.
//!
//! Each method is a file with its formula. Architectures know nothing of adapters: the
//! [`LayerBuilder`](crate::nn::LayerBuilder) hands one to every [`Linear`](crate::nn::Linear) whose
//! path a pattern selects.

mod dora;
mod lora;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

pub use dora::Dora;
use lehr_tensor::{NamePattern, ParamBuilder, Result, Role, Shape, Source, Tensor, Weight};
pub use lora::{Lora, LoraConfig, LoraScaling};

use crate::{Config, Error};

/// A linear layer without its adapter.
pub trait BaseLayer {
    /// Computes `x Wᵀ + bias`.
    ///
    /// # Errors
    /// If memory runs out or a device fails.
    fn forward(&self, x: &Tensor) -> Result<Tensor>;

    /// Computes `x Wᵀ`.
    ///
    /// # Errors
    /// If memory runs out or a device fails.
    fn product(&self, x: &Tensor) -> Result<Tensor>;

    /// Returns the bias `[O]`, if there is one.
    fn bias(&self) -> Option<Tensor>;
}

/// An adapter of one linear layer.
pub trait Adapter: Send + Sync {
    /// Computes the adapted layer at `x [.., I]`, `[.., O]`.
    ///
    /// # Errors
    /// If memory runs out or a device fails.
    fn forward(&self, x: &Tensor, base: &dyn BaseLayer) -> Result<Tensor>;

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
    /// The layers.
    pub targets: Targets,
    /// The method.
    pub method: AdapterMethod,
    /// Seed of the new parameters.
    pub seed: u64,
}

/// The layers that get an adapter.
#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    /// All linear layers of the blocks.
    Blocks,
    /// Those whose paths match a pattern, such as `model.layers.*.self_attn.q_proj`.
    Layers(Vec<NamePattern>),
}

impl Targets {
    fn select(&self, path: &str, role: Role) -> bool {
        match self {
            Self::Blocks => role.is_hidden_matrix(),
            Self::Layers(patterns) => patterns.iter().any(|pattern| pattern.matches(path)),
        }
    }
}

/// The adapter methods.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AdapterMethod {
    /// Low-rank adaptation.
    Lora(LoraConfig),
    /// Low-rank adaptation of directions, with lengths of their own.
    Dora(LoraConfig),
}

impl AdapterConfig {
    /// Checks that the settings are valid.
    pub(crate) fn validate(&self) -> crate::Result<()> {
        self.method.low_rank().validate()
    }
}

impl AdapterMethod {
    /// Returns the settings of the low-rank update.
    #[must_use]
    pub fn low_rank(self) -> LoraConfig {
        match self {
            Self::Lora(config) | Self::Dora(config) => config,
        }
    }

    /// Returns the parameters of an adapted layer by name and file name: PEFT's files leave out
    /// `.weight` behind the magnitude.
    pub(crate) fn parts(self) -> &'static [&'static str] {
        match self {
            Self::Lora(_) => &["lora_A.weight", "lora_B.weight"],
            Self::Dora(_) => &["lora_A.weight", "lora_B.weight", "lora_magnitude_vector"],
        }
    }

    /// Builds the adapter of `layer`.
    fn build(self, p: &mut ParamBuilder<'_>, layer: &AdaptedLayer<'_>) -> Result<Arc<dyn Adapter>> {
        let AdaptedLayer { n_in, n_out, weight, transposed } = *layer;
        match self {
            Self::Lora(config) => Ok(Arc::new(Lora::build(p, config, n_in, n_out)?)),
            Self::Dora(config) => {
                Ok(Arc::new(Dora::build(p, config, [n_in, n_out], weight, transposed)?))
            }
        }
    }
}

/// A linear layer that gets an adapter.
#[derive(Clone, Copy)]
pub(crate) struct AdaptedLayer<'a> {
    /// Number of inputs.
    pub(crate) n_in: usize,
    /// Number of outputs.
    pub(crate) n_out: usize,
    /// Its matrix.
    pub(crate) weight: &'a Weight,
    /// Whether the matrix is `[in, out]`, if it is a parameter.
    pub(crate) transposed: bool,
}

/// An adapter and the path of the layer it belongs to.
#[derive(Clone)]
pub struct Adapted {
    /// Path of the linear layer.
    pub path: String,
    /// Its adapter.
    pub adapter: Arc<dyn Adapter>,
    /// Its method and settings.
    pub method: AdapterMethod,
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

/// The trained adapters of a model.
pub(crate) trait SavedAdapters {
    /// Finds the adapter of a linear layer, known by one of the names that checkpoints have for its
    /// weight: how it is named, and its settings.
    fn find(&self, weights: &[String]) -> Option<(&str, AdapterMethod)>;

    /// Reads a part of an adapted layer, such as `lora_A.weight`.
    fn tensor(&self, layer: &str, name: &str, shape: Shape) -> crate::Result<Tensor>;

    /// Checks that all adapters have been used, by their names.
    fn check_used(&self, used: &BTreeSet<String>) -> crate::Result<()>;
}

/// The adapters that a model gets.
#[derive(Clone, Copy)]
pub(crate) enum Adapters<'a> {
    /// New ones.
    New(&'a AdapterConfig),
    /// Trained ones.
    Saved(&'a dyn SavedAdapters),
}

impl Adapters<'_> {
    /// Checks that the settings are valid.
    pub(crate) fn validate(self) -> crate::Result<()> {
        match self {
            Self::New(config) => config.validate(),
            // They were checked when they were opened.
            Self::Saved(_) => Ok(()),
        }
    }
}

/// The adapters of one model while its layers are built.
pub(crate) struct AdapterFactory<'a> {
    adapters: Adapters<'a>,
    config: &'a Config,
    built: RefCell<Vec<Adapted>>,
    /// The modules of a saved adapter that are built.
    used: RefCell<BTreeSet<String>>,
}

impl<'a> AdapterFactory<'a> {
    pub(crate) fn new(adapters: Adapters<'a>, config: &'a Config) -> Self {
        Self { adapters, config, built: RefCell::default(), used: RefCell::default() }
    }

    /// Builds the adapter of the layer at the current path of `p`, if it gets one.
    pub(crate) fn build(
        &self,
        p: &mut ParamBuilder<'_>,
        role: Role,
        layer: AdaptedLayer<'_>,
    ) -> Result<Option<Arc<dyn Adapter>>> {
        let path = p.path().to_owned();
        let (method, adapter) = match self.adapters {
            Adapters::New(config) => {
                if !config.targets.select(&path, role) {
                    return Ok(None);
                }
                let source = Source::Init { seed: config.seed };
                let mut p = p.with_source(&source);
                (config.method, config.method.build(&mut p, &layer)?)
            }
            Adapters::Saved(saved) => {
                let names = self.config.checkpoint_names(&format!("{path}.weight"));
                let Some((found, method)) = saved.find(&names) else { return Ok(None) };
                let load = |name: &str, shape: Shape| {
                    let part = name.strip_prefix(&path).and_then(|part| part.strip_prefix('.'));
                    let value = saved.tensor(found, part.unwrap_or(name), shape);
                    value.map(Some).map_err(|e| e.to_string())
                };
                let source = Source::Load { load: &load, stored: None, seed: 0 };
                let adapter = method.build(&mut p.with_source(&source), &layer)?;
                self.used.borrow_mut().insert(found.to_owned());
                (method, adapter)
            }
        };
        let transposed = layer.transposed;
        let adapted = Adapted { path, adapter: Arc::clone(&adapter), method, transposed };
        self.built.borrow_mut().push(adapted);
        Ok(Some(adapter))
    }

    /// Returns the built adapters in the order of their layers.
    ///
    /// # Errors
    /// If a pattern selected no layer, or a saved adapter has layers that the model lacks.
    pub(crate) fn finish(self) -> crate::Result<Vec<Adapted>> {
        let built = self.built.into_inner();
        match self.adapters {
            Adapters::New(config) => {
                let selects =
                    |target: &NamePattern| built.iter().any(|one| target.matches(&one.path));
                let patterns = match &config.targets {
                    Targets::Blocks => &[],
                    Targets::Layers(patterns) => patterns.as_slice(),
                };
                if let Some(unused) = patterns.iter().find(|target| !selects(target)) {
                    return Err(Error::adapter(
                        "adapting the model",
                        format!("no linear layer matches `{unused}`"),
                        "`*` stands for any characters; the paths are the names of the weights \
                         without `.weight`",
                    ));
                }
            }
            Adapters::Saved(saved) => saved.check_used(&self.used.into_inner())?,
        }
        Ok(built)
    }
}
